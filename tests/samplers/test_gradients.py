"""Gradients through a run of a sampler equal finite differences."""

import pytest
import torch

from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, Gaussian, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE

SAMPLERS = {
    "ddim": samplers.ddim(4),
    "heun": samplers.heun(4),
    "euler_maruyama": samplers.euler_maruyama(4),
    "unipc": samplers.unipc(4),
    "dpm_solver_pp": samplers.dpm_solver_pp(4),
    "corrected": samplers.predictor_corrector(samplers.reverse_diffusion(4)),
    "default": None,
}


def network_model() -> NetworkModel:
    network = MLP((2,), width=6, depth=1, num_frequencies=2).double()
    torch.nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(0))
    return NetworkModel(network, VPSDE(), "velocity", (2,))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_is_that_of_finite_differences(name):
    model = network_model()
    sampler = SAMPLERS[name] or samplers.default(model, 4)
    weight = model.network.last.weight

    def value(gradients: bool) -> torch.Tensor:
        return sampler.sample(model, 3, seed=1, gradients=gradients).x.square().sum()

    (found,) = torch.autograd.grad(value(True), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    step, ends = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
        ends.append(float(value(False)))
        with torch.no_grad():
            weight.sub_(direction, alpha=sign * step)
    assert float((found * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_without_gradients_nothing_is_recorded_and_the_values_are_the_same():
    model = network_model()
    plain, recorded = (samplers.ddim(4).sample(model, 3, gradients=g).x for g in (False, True))
    assert not plain.requires_grad
    assert recorded.requires_grad
    assert torch.equal(plain, recorded.detach())


def test_runs_without_a_grid_have_none():
    model = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())
    with pytest.raises(ValueError, match="gradients need a fixed grid, but dopri5"):
        samplers.dopri5().sample(model, 2, gradients=True)
