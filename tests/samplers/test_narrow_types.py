"""float32 and half precision: samplers give what they give in float64, to the rounding of the model's type.

VE with a large sigma_max is the hardest case: a state of size sigma_max carries data of size one half.
"""

import pytest
import torch
from problems import SDES

from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, Gaussian, NetworkModel, Wrapper, in_run
from sde_toolkit.networks import MLP
from sde_toolkit.samplers import PRESETS, Sampler
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE
from solvers import Normals

DATA = Gaussian([0.3, -0.2], 0.25)
COUNT, STEPS = 128, 60
OURS = [name for name in PRESETS if not name.startswith(("scipy", "torchsde"))]
FIXED = [name for name in OURS if PRESETS[name].kind == "fixed" and not name.startswith("score_sde")]
"""Those for any process."""
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}
"""What many evaluations, each rounded to half an eps, may add up to, in units of the data's std."""
FLOWS = ["bosh3", "dopri5", "tsit5", "scipy_rk45"]


def make(name: str, model: ExactModel, **options) -> Sampler:
    preset = PRESETS[name]
    if "denoise" in preset.parameters:
        options["denoise"] = False
    return preset.make(STEPS, model, **options)


def ends(name: str, sde: ForwardSDE, dtype: torch.dtype, **options) -> torch.Tensor:
    model = ExactModel(DATA, sde, dtype)
    x = make(name, model, **options).sample(model, COUNT, seed=1, start="prior").x
    assert x.dtype == dtype
    return x.double()


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Root mean square in units of the data's standard deviation."""
    return float((x - y).square().mean().sqrt()) / 0.5


@pytest.mark.slow
@pytest.mark.parametrize("sigma_max", [50.0, 1e4, 1e6])
@pytest.mark.parametrize("name", [*FIXED, *FLOWS, "dop853"])
def test_float32_follows_float64_up_to_large_noise(name: str, sigma_max: float) -> None:
    sde = VESDE(0.01, sigma_max)
    assert distance(ends(name, sde, torch.float32), ends(name, sde, torch.float64)) < ROUNDING[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma_max", [50.0, pytest.param(1e6, marks=pytest.mark.slow)])
def test_adaptive_steps_with_noise_follow_float64(sigma_max: float, dtype: torch.dtype) -> None:
    # one path, but steps of other lengths: the difference is of the size of the tolerance
    sde = VESDE(0.01, sigma_max)
    x, y = (ends("adaptive_sde", sde, kind, rtol=1e-2, atol=1e-2) for kind in (dtype, torch.float64))
    assert distance(x, y) < 2e-2 + ROUNDING[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("sde", [*SDES.values(), VESDE(0.01, 1e4)], ids=[*SDES, "ve-10000"])
@pytest.mark.parametrize("name", FIXED)
def test_half_precision_follows_float64_to_its_rounding(name: str, sde: ForwardSDE) -> None:
    x, y = (ends(name, sde, dtype) for dtype in (torch.bfloat16, torch.float64))
    assert distance(x, y) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("sde", [*SDES.values(), VESDE(0.01, 1e4)], ids=[*SDES, "ve-10000"])
@pytest.mark.parametrize("name", [*FLOWS, pytest.param("dop853", marks=pytest.mark.slow)])
def test_half_precision_ends_where_the_flow_does(name: str, sde: ForwardSDE) -> None:
    exact = ExactModel(DATA, sde)
    z = Normals(1, COUNT, (2,)).draw(0, 1)
    T, t_min = (torch.tensor(t, dtype=torch.float64) for t in (sde.T, samplers.T_MIN))
    flow = exact.flow(sde.prior_sample(z), T, t_min)
    x = ends(name, sde, torch.bfloat16)
    assert distance(x, flow) < ROUNDING[torch.bfloat16]
    assert float(x.std() / flow.std()) == pytest.approx(1, abs=0.01)


class Seen(Wrapper):
    """Remembers the types that it was asked in."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.types: set[torch.dtype] = set()

    def raw(self, x_t, t, condition=None):
        self.types.add(x_t.dtype)
        return self.model.raw(x_t, t, condition)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_alone_is_of_half_precision(dtype: torch.dtype) -> None:
    network = MLP((2,), width=8, depth=1, num_classes=2)
    torch.nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(0))
    model = Seen(NetworkModel(network.to(dtype), VPSDE(), "noise", (2,)))
    wide = NetworkModel(network.float(), VPSDE(), "noise", (2,))
    expected = samplers.ddim(20).sample(wide, 16, condition=1).x
    assert in_run(wide) is wide
    network.to(dtype)
    infos = []

    def watch(info):
        infos.append(info)
        return info.x if info.number == 3 else None

    samples = samplers.ddim(20).sample(model, 16, condition=1)
    watched = samplers.ddim(20).sample(model, 16, condition=1, callback=watch)
    assert model.types == {dtype}
    assert {samples.x.dtype, watched.x.dtype} == {dtype}
    assert {kind for info in infos for kind in (info.x.dtype, info.x0_hat.dtype)} == {dtype}
    for found in (samples, watched):
        torch.testing.assert_close(found.x.float(), expected, rtol=0, atol=0.05 * float(expected.std()))


def test_the_model_of_half_precision_takes_noise_in_the_type_of_the_states() -> None:
    model = ExactModel(DATA, VPSDE(), torch.bfloat16)
    x = samplers.ddim(5).sample(model, 4, seed=2).x
    assert torch.equal(x, samplers.ddim(5).sample(model, 4, noise=Normals(2, 4, (2,), torch.float32)).x)
    with pytest.raises(ValueError, match=r"noise must give normals of torch\.float32 with shape"):
        samplers.ddim(5).sample(model, 4, noise=Normals(2, 4, (2,), torch.bfloat16))
