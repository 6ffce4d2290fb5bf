"""Runs that start from given states, at any time: image to image, and states that are noised already."""

import math
from dataclasses import replace

import pytest
import torch
from problems import GAUSSIAN, MIXTURE, SDES
from torch import Tensor

from sde_toolkit import samplers
from sde_toolkit.models import ExactModel
from sde_toolkit.models.exact import Gaussian
from sde_toolkit.samplers import Sampler, grids
from sde_toolkit.samplers.restarts import Restart
from sde_toolkit.sdes import VPSDE, Chain, ChainSDE, ForwardSDE, RectifiedFlow
from sde_toolkit.utils import Stream
from solvers import Normals

PROCESSES: dict[str, ForwardSDE] = {
    **{name: sde for name, sde in SDES.items() if name != "custom"},
    "rectified": RectifiedFlow(),
}
SAMPLERS: dict[str, Sampler] = {
    "ddim": samplers.ddim(6),
    "heun": samplers.heun(4, t_min=0.01),
    "dpm_solver_pp": samplers.dpm_solver_pp(6),
    "euler_maruyama": samplers.euler_maruyama(6),
    "edm": samplers.edm(4, s_churn=4.0),
    "dopri5": samplers.dopri5(rtol=1e-3, atol=1e-3),
}
DATA = MIXTURE.sample(7, 3)


def model(sde: ForwardSDE) -> ExactModel:
    return ExactModel(MIXTURE, sde)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_samples_do_not_depend_on_the_batch(sde: ForwardSDE, sampler: Sampler) -> None:
    t = 0.4 * sde.T
    arguments = {"t_start": t, "seed": 5}
    whole = sampler.sample(model(sde), 7, x_start=DATA, **arguments)
    split = sampler.sample(model(sde), 7, x_start=DATA, batch_size=3, **arguments)
    part = sampler.sample(model(sde), 4, x_start=DATA[3:], first_sample=3, **arguments)
    assert torch.equal(whole.x, split.x)
    assert torch.equal(whole.x[3:], part.x)
    assert whole.settings["x_start"] == "clean"
    assert whole.settings["t_start"] == pytest.approx(t)
    time = torch.tensor(t, dtype=torch.float64)
    z = Normals(5, 7, (8,)).draw(0, Stream.PRIOR)
    x_t = sde.perturb(DATA, time, z)
    noised = sampler.sample(model(sde), 7, x_start=x_t, noised=True, **arguments)
    torch.testing.assert_close(noised.x, whole.x, rtol=0, atol=1e-12)
    if sampler.num_steps is not None:
        assert whole.nfe == sampler.nfe


class Impulses:
    """Normals that are unit impulses, one draw and one element in each row: an affine sampler of them gives
    its own coefficients."""

    def __init__(self, num_draws: int, event: int) -> None:
        self.rows, self.event = 1 + num_draws * event, event
        self._drawn = 0

    def draw(self, index: int, stream: int = 0) -> Tensor:
        z = torch.zeros(self.rows, self.event, dtype=torch.float64)
        first = 1 + self._drawn * self.event
        z[first : first + self.event] = torch.eye(self.event, dtype=torch.float64)
        self._drawn += 1
        return z


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_the_flow_from_a_marginal_of_a_gaussian_ends_in_the_gaussians_law(sde: ForwardSDE) -> None:
    """x_t ~ p_t exactly: the flow is affine, and its exact map has the closed form."""
    exact, t, end = ExactModel(GAUSSIAN, sde), 0.45 * sde.T, 1e-3
    time, last = (torch.tensor(v, dtype=torch.float64) for v in (t, end))
    x_t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = sde.alpha(last) * GAUSSIAN.flow(x_t / sde.alpha(time), sde.nsr(time), sde.nsr(last))
    errors = []
    for steps in (20, 40, 80):
        sampler = samplers.dpm_solver_pp(steps, order=2, t_min=end, denoise=False)
        made = sampler.sample(exact, 5, x_start=x_t, t_start=t, noised=True)
        errors.append(float((made.x - wanted).norm() / wanted.norm()))
    assert errors[-1] < 2e-3
    assert errors[0] / errors[-1] > 8  # order 2
    tight = samplers.dopri5(rtol=1e-9, atol=1e-9, t_min=end, denoise=False)
    made = tight.sample(exact, 5, x_start=x_t, t_start=t, noised=True)
    torch.testing.assert_close(made.x, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_noised_data_of_a_gaussian_become_the_gaussian_by_the_reverse_sde(sde: ForwardSDE) -> None:
    """The variance of an affine run from its impulses: data and noise are both N(0, 1) variables."""
    scale, t = 0.5, 0.5 * sde.T
    exact = ExactModel(Gaussian(mean=[0.0], covariance=[[scale**2]]), sde)
    errors = []
    for steps in (100, 200):
        sampler = samplers.sde_dpm_solver_pp(steps, denoise=False)
        noise = Impulses(steps + 1, 1)
        x_start = torch.zeros(noise.rows, 1, dtype=torch.float64)
        x_start[0] = scale  # the coefficient of the data
        made = sampler.sample(exact, noise.rows, x_start=x_start, t_start=t, noise=noise)
        last = torch.tensor(sampler.t_min, dtype=torch.float64)
        wanted = float((sde.alpha(last) * scale) ** 2 + sde.sigma(last) ** 2)
        errors.append(abs(float(made.x.square().sum()) / wanted - 1))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] > 3  # weak order 2


def test_at_the_last_time_the_start_is_the_prior_but_for_what_is_left_of_the_data() -> None:
    sde, sampler = VPSDE(), samplers.ddim(5)
    exact = model(sde)
    prior = sampler.sample(exact, 7, seed=2)
    given = sampler.sample(exact, 7, seed=2, x_start=DATA, t_start=sde.T)
    time = torch.tensor(sde.T, dtype=torch.float64)
    z = Normals(2, 7, (8,)).draw(0, Stream.PRIOR)
    assert torch.equal(sampler.sample(exact, 7, x_start=z, noised=True).x, prior.x)
    same = sampler.sample(exact, 7, x_start=sde.alpha(time) * DATA + sde.sigma(time) * z, noised=True)
    torch.testing.assert_close(given.x, same.x, rtol=1e-12, atol=1e-12)
    assert float((given.x - prior.x).abs().max()) < 0.1
    assert not torch.equal(given.x, prior.x)


def test_every_preset_starts_at_a_time_of_its_own_choice() -> None:
    exact = ExactModel(GAUSSIAN, VPSDE())
    x = GAUSSIAN.sample(3, 0)
    for name, preset in samplers.PRESETS.items():
        if name.startswith("score_sde"):  # made of the published times
            continue
        made = preset.make(8, exact).sample(exact, 3, x_start=x, t_start=0.5)
        assert made.settings["t_start"] == pytest.approx(0.5), name
        assert float(made.x.abs().max()) < 6, name


def test_near_the_data_little_changes() -> None:
    exact = model(VPSDE())
    for sampler in (samplers.ddim(3), samplers.default(exact, 4), samplers.dopri5()):
        made = sampler.sample(exact, 7, x_start=DATA, t_start=0.01)
        assert float((made.x - DATA).abs().max()) < 0.15


def test_indices_of_a_chain_are_where_runs_start() -> None:
    sde = ChainSDE(Chain.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)))
    exact, sampler = ExactModel(GAUSSIAN, sde), samplers.ddim(4, grid=grids.Snapped(grids.uniform))
    x = GAUSSIAN.sample(2, 0)
    made = sampler.sample(exact, 2, x_start=x, t_start=0.50037)
    assert made.settings["t_start"] == 0.5
    with pytest.raises(ValueError, match=r"begins at 0\.5; give states at t_start=0\.5"):
        sampler.sample(exact, 2, x_start=x, t_start=0.50037, noised=True)
    prepared = sampler.prepare(exact, t_start=0.50037)
    assert torch.equal(prepared.sample(2, x_start=x).x, made.x)
    with pytest.raises(ValueError, match="give x_start"):
        prepared.sample(2)


BAD: dict[str, tuple[dict, str]] = {
    "no states": ({"t_start": 0.5}, "t_start = 0.5 needs the states there; give x_start"),
    "noised nothing": ({"noised": True}, "give x_start, or leave it out"),
    "shape": ({"x_start": DATA[:3], "t_start": 0.5}, r"x_start must have shape \(7, 8\)"),
    "one": ({"x_start": DATA[0], "t_start": 0.5}, r"x\.expand\(7, 8\)"),
    "nan": ({"x_start": DATA * math.nan, "t_start": 0.5}, "x_start must hold finite numbers"),
    "late": ({"x_start": DATA, "t_start": 1.5}, "t_start must lie above t_min"),
    "early": ({"x_start": DATA, "t_start": 1e-3}, "t_start must lie above t_min"),
    "both": ({"x_start": DATA, "start": "prior"}, "give one of them"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_starts_that_cannot_be_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        samplers.ddim(3).sample(model(VPSDE()), 7, **arguments)


def test_grids_and_restarts_that_cannot_begin_there_are_refused() -> None:
    exact = model(VPSDE())
    explicit = samplers.ddim(2, grid=grids.Explicit([0.8, 0.4, 0.001]))
    with pytest.raises(ValueError, match=r"must begin at t_start = 0\.5, got 0\.8; leave t_start out"):
        explicit.sample(exact, 7, x_start=DATA, t_start=0.5)
    assert explicit.sample(exact, 7, x_start=DATA).settings["t_start"] == 0.8
    published = samplers.score_sde_vp(8)
    with pytest.raises(ValueError, match=r"must begin at t_start = 0\.5, got 1\.0"):
        published.sample(exact, 7, x_start=DATA, t_start=0.5)
    again = replace(samplers.heun(5), restarts=(Restart(0.1, 2.0),))
    with pytest.raises(ValueError, match=r"nsr_max of a restart must be at most that at t_start = 0\.2"):
        again.sample(exact, 7, x_start=DATA, t_start=0.2)
    with pytest.raises(TypeError, match="t_start"):
        samplers.ddim(3).sample(exact, 7, x_start=DATA, t_start="half")
    with pytest.raises(TypeError, match="noised"):
        samplers.ddim(3).sample(exact, 7, x_start=DATA, noised=1)
