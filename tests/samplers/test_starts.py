"""Where runs start: the prior, or the Gaussian with the data's moments, exact for Gaussian data."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ALPHA, DIAGONAL, GAUSSIAN, MIXTURE, SDES, RowByRow
from scipy.stats import chi2

from sde_toolkit import samplers
from sde_toolkit.config import build_sampler, load_config
from sde_toolkit.models import (
    ExactModel,
    Gaussian,
    LowRank,
    Moments,
    NetworkModel,
    isotropic,
    known_moments,
)
from sde_toolkit.networks import MLP
from sde_toolkit.samplers.starts import STARTS, start_state
from sde_toolkit.sdes import VESDE, VPSDE, Chain, ChainSDE, ForwardSDE
from sde_toolkit.utils import Stream
from solvers import Normals

NARROW = VESDE(0.01, 1.0)


def eye(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def axes(n: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64))[0]


KINDS = {
    "full": Moments(GAUSSIAN.mean, GAUSSIAN.covariance),
    "low_rank": Moments(torch.arange(5.0) / 3, LowRank(axes(5, 2, 0), torch.tensor([2.0, 0.7]), 0.1)),
    "diagonal": Moments(DIAGONAL.mean, DIAGONAL.covariance),
    "scalar": isotropic((2, 2), 0.3),
    "singular": Moments([1.0, -1.0], [[1.0, 1.0], [1.0, 1.0]]),
}


def covariance(moments: Moments) -> torch.Tensor:
    n = moments.mean.numel()
    if moments.kind == "full":
        return moments.covariance
    if moments.kind == "low_rank":
        return moments.embed(moments.variances * moments.project(eye(n)))
    return moments.diagonal().covariance.flatten().diag()


class Impulses:
    """A noise source: row 0 gets zeros, every other row one unit impulse in one number of one draw."""

    def __init__(self, event_shape: tuple[int, ...], num_draws: int) -> None:
        self.n, self.event_shape = math.prod(event_shape), event_shape
        self.rows = 1 + self.n * (1 + num_draws)

    def draw(self, index: int, stream: int = 0) -> torch.Tensor:
        z = torch.zeros(self.rows, self.n, dtype=torch.float64)
        first = 1 if stream == Stream.PRIOR else 1 + self.n * (1 + index)
        z[first : first + self.n] = eye(self.n)
        return z.reshape(self.rows, *self.event_shape)


def law(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of what is affine in the draws, from its response to impulses."""
    spread = (x[1:] - x[0]).flatten(1)
    return x[0], spread.T @ spread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SDES)
def test_starts_have_the_law_of_the_data_at_T(name: str, kind: str) -> None:
    sde, moments = SDES[name], KINDS[kind]
    network = MLP(moments.event_shape, width=4, depth=1).double()
    model = NetworkModel(network, sde, "noise", moments.event_shape, moments=moments)
    for t in (sde.T, 0.3 * sde.T):
        t = torch.tensor(t, dtype=torch.float64)
        z = Impulses(moments.event_shape, 0).draw(0, Stream.PRIOR)
        mean, found = law(start_state("moments", model, z, t))
        wanted = sde.alpha(t) ** 2 * covariance(moments) + sde.sigma(t) ** 2 * eye(moments.mean.numel())
        torch.testing.assert_close(mean, sde.alpha(t) * moments.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(start_state(moments, model, z, t), start_state("moments", model, z, t))
        assert torch.equal(start_state("prior", model, z, t), sde.prior_sample(z))


@pytest.mark.filterwarnings("ignore:gaussian_residual begins at t = 1, where the noise")
@settings(max_examples=25, deadline=None)
@given(
    sigma_max=st.floats(0.05, 100),
    mean=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    stds=st.lists(st.floats(0.05, 3), min_size=4, max_size=4),
    seed=st.integers(0, 100),
    process=st.sampled_from(["ve", "vp-linear", "sub-vp", "custom"]),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_gaussian_data_come_out_with_their_exact_law(sigma_max, mean, stds, seed, process, eta) -> None:
    n = len(mean)
    basis = axes(n, n, seed)
    data = Gaussian(mean, (basis * torch.tensor(stds[:n], dtype=torch.float64).square()) @ basis.T)
    sde: ForwardSDE = VESDE(0.01, sigma_max) if process == "ve" else SDES[process]
    model, noise = ExactModel(data, sde), Impulses((n,), 5)
    sampler = samplers.default(model, 4, eta=eta)
    found_mean, found = law(sampler.sample(model, noise.rows, noise=noise).x)
    t = torch.tensor(sampler.t_min, dtype=torch.float64)
    exact = sde.alpha(t) ** 2 * data.covariance + sde.sigma(t) ** 2 * eye(n)
    torch.testing.assert_close(found_mean, sde.alpha(t) * data.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_moments_gives_the_exact_law(kind: str, eta: float) -> None:
    moments, sde = KINDS[kind], NARROW
    flat, n = covariance(moments), moments.mean.numel()
    data = Gaussian(
        moments.mean, flat if moments.mean.ndim == 1 else flat.diagonal().reshape(moments.mean.shape)
    )
    model, noise = ExactModel(data, sde), Impulses(moments.event_shape, 4)
    sampler = samplers.gaussian_residual(model, 3, moments=moments, eta=eta)
    mean, found = law(sampler.sample(model, noise.rows, noise=noise).x)
    t = torch.tensor(sampler.t_min, dtype=torch.float64)
    torch.testing.assert_close(mean, moments.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, flat + sde.sigma(t) ** 2 * eye(n), rtol=1e-9, atol=1e-9)


def test_unit_data_keep_their_spread_where_the_noise_ends_among_them() -> None:
    model, count = ExactModel(Gaussian([0.0, 0.0], 1.0), NARROW), 4000
    wanted = 1 + float(NARROW.sigma(samplers.T_MIN)) ** 2
    low, high = chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], 2 * count) / (2 * count) * wanted
    tight = {"rtol": 1e-4, "atol": 1e-4, "denoise": False}
    for sampler in (
        samplers.default(model, 5),
        samplers.default(model, 5, eta=1.0),
        samplers.dopri5(**tight),
        samplers.unipc(20, denoise=False),
        samplers.sra(100, denoise=False),
    ):
        x = sampler.sample(model, count, start="moments").x
        assert low < float(x.square().mean()) < high, sampler.name
    prior = samplers.dopri5(**tight).sample(model, count).x
    assert float(prior.square().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_run_from_a_later_time_starts_from_the_law_there() -> None:
    model = ExactModel(GAUSSIAN, VPSDE())
    ts = samplers.grids.Explicit(torch.linspace(0.6, 1e-3, 201, dtype=torch.float64))
    noise = Impulses((3,), 0)
    mean, found = law(samplers.heun(200, grid=ts, denoise=False).sample(
        model, noise.rows, noise=noise, start="moments"
    ).x)  # fmt: skip
    t = torch.tensor(1e-3, dtype=torch.float64)
    exact = VPSDE().alpha(t) ** 2 * GAUSSIAN.covariance + VPSDE().sigma(t) ** 2 * eye(3)
    torch.testing.assert_close(mean, VPSDE().alpha(t) * GAUSSIAN.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_a_chain_that_ends_in_noise_alone_starts_from_it() -> None:
    chain = Chain.from_alphas_cumprod([0.9, 0.5, 0.1, 0.0])
    model = ExactModel(GAUSSIAN, ChainSDE(chain))
    z = Normals(0, 5, (3,)).draw(0, Stream.PRIOR)
    t = torch.tensor(model.sde.T, dtype=torch.float64)
    torch.testing.assert_close(start_state("moments", model, z, t), z, rtol=0, atol=2e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("condition", [None, 2, torch.arange(20) * 7 % 5])
def test_starts_do_not_depend_on_the_batch(batch_size: int, condition) -> None:
    model = RowByRow(ExactModel(MIXTURE, NARROW))
    for sampler in (samplers.default(model, 3), replace(samplers.ddim(3), start="moments")):
        x = sampler.sample(model, 20, seed=4, condition=condition).x
        assert torch.equal(sampler.sample(model, 20, seed=4, condition=condition, batch_size=batch_size).x, x)


def test_every_sample_starts_from_the_moments_of_its_class() -> None:
    model = ExactModel(MIXTURE, NARROW)
    labels, z = torch.arange(20) * 7 % 5, Normals(0, 20, (8,)).draw(0, Stream.PRIOR)
    t = torch.tensor(1.0, dtype=torch.float64)
    x = start_state("moments", model, z, t, labels)
    for k in range(5):
        own = start_state("moments", model.given(k), z, t)
        torch.testing.assert_close(x[labels == k], own[labels == k], rtol=0, atol=0)
    sampler = samplers.dopri5(rtol=1e-6, atol=1e-6)
    found = sampler.sample(model, 20, condition=labels, start="moments").x
    alone = sampler.sample(model.given(3), 20, start="moments").x
    torch.testing.assert_close(found[labels == 3], alone[labels == 3], rtol=1e-4, atol=1e-4)


def test_a_network_without_moments_of_classes_has_those_of_all_data() -> None:
    network = MLP((2,), width=4, depth=1, num_classes=3).double()
    whole, laws = isotropic((2,), 0.5), [Moments([float(k), 0.0], 0.1) for k in range(3)]
    z, t = Normals(0, 4, (2,)).draw(0, Stream.PRIOR), torch.tensor(1.0, dtype=torch.float64)
    labels = torch.tensor([2, 3, 0, 1])
    without = NetworkModel(network, NARROW, "noise", (2,), moments=whole)
    x = start_state("moments", without, z, t, labels)
    assert torch.equal(x, start_state(whole, without, z, t))
    with_classes = NetworkModel(network, NARROW, "noise", (2,), moments=whole, class_moments=laws)
    y = start_state("moments", with_classes, z, t, labels)
    assert torch.equal(y[1], x[1])  # the label 3 stands for no class
    assert torch.equal(y[0], start_state(laws[2], with_classes, z, t)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_have_the_starts_of_float64_rounded(dtype: torch.dtype) -> None:
    sde, z = VESDE(0.01, 1e6), Normals(3, 9, (3,)).draw(0, Stream.PRIOR).to(dtype)
    t = torch.tensor(1.0, dtype=torch.float64)
    x = start_state("moments", ExactModel(GAUSSIAN, sde, dtype), z, t)
    exact = start_state("moments", ExactModel(GAUSSIAN, sde), z.double(), t)
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_the_default_sampler_knows_where_to_start() -> None:
    exact = ExactModel(GAUSSIAN, NARROW)
    bare = NetworkModel(MLP((3,), width=4, depth=1), NARROW, "noise", (3,), data_std=0.7)
    given = known_moments(exact).diagonal()
    assert samplers.default(exact, 3).start == "moments"
    assert samplers.default(bare, 3).start == "prior"
    assert samplers.gaussian_residual(bare, 3, moments=given).start == given
    assert samplers.ddim(3).start == "prior"
    assert "start" not in samplers.ddim(3).sample(exact, 2).settings
    assert samplers.ddim(3).sample(exact, 2, start="moments").settings["start"] == "moments"
    ready = replace(samplers.ddim(3), start=given).prepare(exact)
    assert ready.sample(2).settings["start"] == "Moments(diagonal, (3,), std=0.7257)"


def test_a_calibration_compares_runs_from_the_same_starts() -> None:
    model = ExactModel(GAUSSIAN, NARROW)
    found = samplers.calibrate(samplers.default(model, 3), model, num_samples=8, sweeps=1)
    assert found.validation_before < 1e-5


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        ("moments", ValueError, r"needs the mean and the covariance.*estimate_moments\(x\).*sampled_moments"),
        ("gaussian", ValueError, "start must be 'prior' or 'moments', or Moments, got 'gaussian'"),
        (isotropic((3,)), ValueError, r"start must be moments with the event shape \(2,\), got \(3,\)"),
        (3, TypeError, "start must be one of 'prior', 'moments' or a Moments, got 3"),
        (True, TypeError, "start must be one of 'prior', 'moments' or a Moments, got True"),
    ],
)
def test_what_cannot_be_a_start_is_refused(start, error, words) -> None:
    calls = []

    def network(x, c):
        calls.append(x)
        return x

    model = NetworkModel(network, VPSDE(), "noise", (2,))
    with pytest.raises(error, match=words):
        samplers.ddim(3).sample(model, 4, start=start)
    assert not calls


@pytest.mark.parametrize("start", STARTS)
def test_a_configuration_sets_the_start_of_any_sampler(start: str) -> None:
    model = ExactModel(GAUSSIAN, VPSDE())
    config = load_config("ring", {"sampling.start": start})
    for name in ("ddim", "dopri5", "adaptive_sde", "default", "predictor_corrector", "torchsde_euler"):
        assert build_sampler(config, name, 3, model).start == start
    other = next(name for name in STARTS if name != start)
    assert build_sampler(config, f"ddim(start={other})", 3, model).start == other
    assert build_sampler(load_config("ring", {}), "default", 3, model).start == "moments"
    with pytest.raises(ValueError, match="start"):
        load_config("ring", {"sampling.start": "start"})
