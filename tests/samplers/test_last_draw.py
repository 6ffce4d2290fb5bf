"""Runs without their last draw: they end at the mean of the last step."""

import pytest
import torch
from problems import MIXTURE
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.correctors import AnnealedLangevin
from sde_toolkit.sdes import VESDE, VPSDE, ForwardSDE, SubVPSDE
from solvers import Normals
from solvers.brownian import STEPS

SONG = {"vp": VPSDE(), "sub-vp": SubVPSDE(), "ve": VESDE()}


def last_mean(name: str, sde: ForwardSDE, x: Tensor, score: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_mean of the step from t to s, by the formulas of 2011.13456, appendices D to F."""
    r = sde.alpha(t) / sde.alpha(s)
    q2 = sde.sigma(t) ** 2 - r**2 * sde.sigma(s) ** 2
    if name == "euler_maruyama":
        return x - (t - s) * (sde.f(t) * x - sde.g_squared(t) * score)
    if name == "reverse_diffusion":
        return (2 - r) * x + q2 * score
    if name == "ddpm":  # score_sde's ancestral sampling under VP
        return (x + q2 * score) / r
    x0_hat = (x + sde.sigma(t) ** 2 * score) / sde.alpha(t)
    kept = sde.sigma(s) ** 2 / sde.sigma(t) ** 2
    return kept * r * x + sde.alpha(s) * q2 / sde.sigma(t) ** 2 * x0_hat


@pytest.mark.parametrize("kind", SONG)
@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "ddpm", "ancestral"])
def test_without_its_last_draw_a_run_ends_at_the_mean_of_the_step(name, kind):
    sde, before = SONG[kind], []
    model = ExactModel(MIXTURE, sde)
    options = {"variance": "large"} if name == "ddpm" else {}
    plain = getattr(samplers, name)(8, denoise=False, **options)
    sampler = samplers.without_last_draw(plain)
    found = sampler.sample(model, 5, seed=3, callback=lambda info: before.append(info.x))
    t, s = grids.uniform(sde, 8, plain.t_min, sde.T)[-2:]
    x = before[-2]
    expected = last_mean(name, sde, x, model.score(x, t), t, s)
    torch.testing.assert_close(found.x, expected, rtol=1e-10, atol=1e-10)
    ordinary = []
    drawn = plain.sample(model, 5, seed=3, callback=lambda info: ordinary.append(info.x))
    assert all(torch.equal(a, b) for a, b in zip(before[:-1], ordinary[:-1], strict=True))
    assert not torch.allclose(drawn.x, found.x, rtol=1e-6)
    assert found.nfe == drawn.nfe == sampler.nfe == 8
    assert found.settings == drawn.settings | {"last_draw": False}


def test_the_last_draw_is_left_out_after_a_corrector_that_comes_first():
    model, prior = ExactModel(MIXTURE, VPSDE()), samplers.euler_maruyama(5, denoise=False)
    first = samplers.predictor_corrector(prior, AnnealedLangevin(0.2), corrector_first=True)
    draws = []

    class Watched(Normals):
        def draw(self, index: int, stream: int = STEPS) -> Tensor:
            draws.append((int(stream), index))
            return super().draw(index, stream)

    for sampler in (first, samplers.without_last_draw(first)):
        sampler.sample(model, 3, noise=Watched(0, 3, model.event_shape, model.dtype))
    assert draws[: len(draws) // 2] == draws[len(draws) // 2 :]
    last = [s.sample(model, 3, seed=2, callback=None).x for s in (first, samplers.without_last_draw(first))]
    t, s = grids.uniform(VPSDE(), 5, prior.t_min, 1.0)[-2:]
    z = Normals(2, 3, model.event_shape, model.dtype).draw(4)
    difference = VPSDE().g(t) * (t - s).sqrt() * z
    torch.testing.assert_close(last[0] - last[1], difference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.ddim(5),
        samplers.dopri5(),
        samplers.adaptive_sde(),
        samplers.predictor_corrector(samplers.ancestral(5)),
    ],
    ids=lambda sampler: sampler.name,
)
def test_a_run_that_ends_in_no_draw_cannot_leave_it_out(sampler):
    with pytest.raises(ValueError, match="ends in a step with a draw"):
        samplers.without_last_draw(sampler)
