"""Inverse problems in raw units: the scaling of observations against exact posteriors, and the draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sde_toolkit as sde
from sde_toolkit.data import Circles, Scaling, Support
from sde_toolkit.guidance import (
    GaussianInformed,
    LinearObservation,
    Observed,
    TwistedSMC,
    default_sampler,
    downsampling,
    entries,
    impute,
    in_model_scale,
    inpaint,
    restore,
)
from sde_toolkit.samplers import ddim

VP, KINDS = sde.VPSDE(), ("one", "columns", "white")


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scaled(kind: str, n: int, seed: int) -> Scaling:
    shift, scale = normals(seed, n), normals(seed + 1, n).exp()
    if kind == "one":
        return Scaling(scale[0], shift[0])
    if kind == "columns":
        return Scaling(scale, shift)
    root = normals(seed + 2, n, n)
    return Scaling.whitened(shift, root @ root.mT + 0.1 * torch.eye(n, dtype=torch.float64))


def gaussian_given(
    mean: Tensor, covariance: Tensor, A: Tensor, y: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """The posterior of the Gaussian, by the textbook."""
    K = torch.linalg.solve(A @ covariance @ A.mT + variance.diag(), A @ covariance).mT
    return mean + K @ (y - A @ mean), covariance - K @ A @ covariance


def back(scaling: Scaling, n: int) -> tuple[Tensor, Tensor]:
    """w_0 and G of w = w_0 + G x."""
    origin = scaling.from_model(torch.zeros(1, n, dtype=torch.float64))[0]
    return origin, (scaling.from_model(torch.eye(n, dtype=torch.float64)) - origin).mT


@given(
    st.sampled_from(KINDS), st.integers(1, 6), st.integers(0, 10**6), st.floats(0.01, 3.0),
    st.sampled_from(("matrix", "mask", "entries", "each")), st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_posteriors_in_raw_units_are_those_of_the_textbook(kind, n, seed, std, form, data):
    scaling, root = scaled(kind, n, seed), normals(seed + 5, n, n)
    m, S = normals(seed + 6, n), root @ root.mT + 0.05 * torch.eye(n, dtype=torch.float64)
    model = sde.ExactModel(sde.Gaussian(m, S), VP)
    origin, G = back(scaling, n)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    mask[data.draw(st.integers(0, n - 1))] = True
    noise = torch.tensor(std, dtype=torch.float64)
    if form == "matrix":
        A = normals(seed + 7, data.draw(st.integers(1, n)), n)
        observation, y = LinearObservation(A, std), normals(seed + 8, len(A))
    else:
        A = torch.eye(n, dtype=torch.float64)[mask]
        y = torch.where(mask, normals(seed + 8, n), math.nan)
        noise = normals(seed + 9, n).exp() if form == "each" else noise
        mixing = kind == "white" or (kind == "columns" and n > 1)
        entry = form == "entries" and not mixing
        observation = LinearObservation(entries((n,)) if entry else mask, noise)
    posed, values = in_model_scale(observation, y, scaling)
    found = model.posterior(Observed(posed, values[0])).data
    told = y if form == "matrix" else y[mask]
    variance = (noise[mask] if noise.ndim else noise).square().expand(len(told))
    mean, covariance = gaussian_given(origin + G @ m, G @ S @ G.mT, A, told, variance)
    size = 1 + float(covariance.abs().max()) + float(mean.abs().max()) + float(m.abs().max())
    torch.testing.assert_close(origin + G @ found.mean, mean, rtol=1e-7, atol=1e-8 * size)
    torch.testing.assert_close(G @ found.covariance @ G.mT, covariance, rtol=1e-7, atol=1e-8 * size)


@given(st.integers(2, 256), st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_grey_levels_are_taken_at_the_centres_of_their_bins(levels, height, width, data):
    shape = (1, 2 * height, 2 * width)
    n = math.prod(shape)
    values = data.draw(st.lists(st.integers(0, levels - 1), min_size=n, max_size=n))
    v, scaling = torch.tensor(values).reshape(1, *shape), Scaling.grey(levels)
    x = scaling.dequantize(v, torch.full(v.shape, 0.5), torch.float64)
    coarse = downsampling(shape, 2)
    for A in (coarse, torch.ones(shape, dtype=torch.bool), entries(shape)):
        raw = LinearObservation(A, 0.3)
        y = v.double() if A is not coarse else coarse.place(coarse.forward(v.double()))
        posed, seen = in_model_scale(raw, y, scaling)
        torch.testing.assert_close(posed.A.forward(x), posed.A.pick(seen), rtol=1e-12, atol=1e-12)
        assert float(posed.std) == pytest.approx(0.3 * 2 / levels)


def test_features_are_mapped_one_by_one_where_the_scaling_is_curved():
    support = Support(torch.tensor([0.0, -math.inf, 0.0]), torch.tensor([1.0, math.inf, math.inf]))
    w = torch.tensor([[0.3, -1.0, 2.0], [0.6, 0.5, 0.1], [0.2, 1.0, 5.0]], dtype=torch.float64)
    gaps = w.clone()
    gaps[0, 1] = gaps[1, 0] = gaps[2, 2] = math.nan
    scaling = Scaling.standard(w, True, support)
    _, values = in_model_scale(LinearObservation(entries((3,)), 0.0), gaps, scaling)
    x = scaling.to_model(w, torch.float64)
    torch.testing.assert_close(values, torch.where(gaps.isnan(), math.nan, x), equal_nan=True)
    with pytest.raises(ValueError, match="std must be 0 where the data have a support"):
        in_model_scale(LinearObservation(entries((3,)), 0.1), gaps, scaling)
    with pytest.raises(ValueError, match="mask of features, or entries, where the data have a support"):
        in_model_scale(LinearObservation(torch.ones(1, 3), 0.0), w[:, :1], scaling)
    white = Scaling.whitening(w, support)
    mask = torch.tensor([True, False, True])
    posed, values = in_model_scale(LinearObservation(mask, 0.0), w, white)
    torch.testing.assert_close(posed.A.forward(white.to_model(w, torch.float64)), values)
    with pytest.raises(ValueError, match="one mask for all rows"):
        in_model_scale(LinearObservation(entries((3,)), 0.0), gaps, white)


def test_an_angle_is_observed_as_a_point_of_its_plane():
    identity = Scaling.identity()
    scaling = Scaling(identity.scale, identity.shift, circles=Circles((0,), (360.0,)))
    w = torch.tensor([[30.0, 1.0], [math.nan, 2.0], [200.0, math.nan]], dtype=torch.float64)
    posed, values = in_model_scale(LinearObservation(entries((2,)), 0.0), w, scaling)
    assert posed.event_shape == (3,)
    assert values.isnan().tolist() == [[False] * 3, [True, False, True], [False, True, False]]
    assert torch.atan2(values[0, 2], values[0, 0]).item() == pytest.approx(math.radians(30))
    model = sde.ExactModel(sde.Gaussian(torch.zeros(3), torch.eye(3)), VP)
    model.scaling = scaling
    found = impute(model, w, num_draws=3, sampler=ddim(4))
    assert found.draws.shape == (3, 3, 2)
    assert bool((found.draws[:, 1, 0] >= 0).all())
    assert torch.equal(found.draws[:, 0], w[0].expand(3, 2))


def test_a_scaling_of_another_kind_is_refused():
    class Other:
        def to_data(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(TypeError, match="scaling must be a Scaling"):
        in_model_scale(LinearObservation(torch.ones(1, 2), 0.1), torch.ones(1), Other())


GAUSSIAN = sde.Gaussian(torch.tensor([0.2, -0.1, 0.0]), torch.eye(3) * 0.5 + 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_imputed_rows_have_the_law_of_the_exact_posterior(kind: str) -> None:
    model = sde.ExactModel(GAUSSIAN, VP)
    model.scaling = scaled(kind, 3, 3)
    w = model.scaling.from_model(model.data.sample(2, 1))
    w[0, 1] = w[1, 0] = w[1, 2] = math.nan
    found = impute(model, w, num_draws=300, method=GaussianInformed(), sampler=ddim(60), seed=4)
    origin, G = back(model.scaling, 3)
    S = G @ GAUSSIAN.covariance @ G.mT
    for i in range(2):
        held, gaps = ~w[i].isnan(), w[i].isnan()
        A = torch.eye(3, dtype=torch.float64)[held]
        law = gaussian_given(origin + G @ GAUSSIAN.mean, S, A, w[i][held], torch.zeros(len(A)).double())
        std = law[1].diagonal()[gaps].sqrt()
        assert bool(((found.mean[i] - law[0])[gaps].abs() < 5 * std / 300**0.5 + 0.02 * std).all())  # 1e-6
        spread = found.draws[:, i].std(0)[gaps] / std
        assert bool(((spread - 1).abs() < 5 / 600**0.5 + 0.02).all())
        assert torch.equal(found.draws[:, i][:, held], w[i][held].expand(300, -1))
    assert found.level == pytest.approx(0.9, abs=0.01)
    assert found.nfe == 61


def test_a_draw_does_not_depend_on_the_others() -> None:
    model = sde.ExactModel(GAUSSIAN, VP)
    y = model.data.sample(4, 1)
    mask = torch.tensor([True, False, False])
    whole = inpaint(model, y, mask, num_draws=5, sampler=ddim(5, eta=1.0))
    split = inpaint(model, y, mask, num_draws=5, sampler=ddim(5, eta=1.0), batch_size=3)
    fewer = inpaint(model, y[:2], mask, num_draws=2, sampler=ddim(5, eta=1.0))
    assert torch.equal(whole.x, split.x)
    assert torch.equal(whole.x[:2, :2], fewer.x)
    counted: list[int] = []
    one = restore(
        model, LinearObservation(mask, 0.0), y[0], num_draws=1, sampler=ddim(5), progress=counted.append
    )
    assert sum(counted) == 1
    assert math.isnan(one.level)
    assert one.x.shape == (1, 1, 3)


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    model = sde.ExactModel(GAUSSIAN, VP)
    rows = torch.full((2, 3), math.nan)
    for call, words in (
        (lambda: impute(model, rows), "rows must have an entry each, got 2 without"),
        (lambda: impute(model, torch.ones(2, 4)), r"rows must have shape \(n, 3\)"),
        (lambda: inpaint(model, torch.ones(2, 3), torch.ones(2, dtype=torch.bool)), "mask must be bool"),
        (lambda: inpaint(model, torch.ones(2, 3), torch.zeros(3, dtype=torch.bool)), "True somewhere"),
        (lambda: impute(model, torch.ones(2, 3), num_draws=0), "num_draws must be at least 1"),
        (lambda: impute(model, torch.ones(2, 3), level=1.0), "level must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_draws_of_the_default_sampler_are_as_wide_as_the_posterior() -> None:
    """Of exact means at every level: what is lost is the sampler's (DDIM with 50 steps: 6%)."""
    root = normals(0, 16, 16) / 4
    data = sde.models.Gaussian(torch.zeros(16), root @ root.mT + 0.01 * torch.eye(16, dtype=torch.float64))
    model = sde.models.ExactModel(data, VP)
    observation = LinearObservation(torch.arange(16) % 2 == 0, 1 / 16)
    y = observation.draw(data.sample(40, 1), 2)
    exact = model.posterior(Observed(observation, y[0])).data
    found = restore(model, observation, y, num_draws=40, method=GaussianInformed())
    width = float(found.draws.var(0).mean().sqrt())
    assert abs(width / exact.std - 1) < 0.03


def test_short_vectors_are_drawn_by_particles_without_being_asked_for() -> None:
    """Their conditional law on a mixture is the exact one, which that of a guided sampler is not."""
    data = sde.GaussianMixture([0.4, 0.6], [[-1.0, 1.0, 0.0], [1.0, -1.0, 0.5]], [[0.1] * 3, [0.2] * 3])
    model = sde.ExactModel(data, VP)
    rows = data.sample(12, 3)
    rows[:, 1:] = math.nan
    rows[::2, 0] = torch.linspace(-0.6, 0.6, 6)  # where both components are likely
    exact = torch.stack([
        model.posterior(Observed(LinearObservation(torch.tensor([True, False, False]), 0.0), row)).data.mean
        for row in rows
    ])  # fmt: skip
    found = impute(model, rows, num_draws=60, seed=1)
    guided = impute(model, rows, num_draws=60, seed=1, method=GaussianInformed())
    assert found.settings["sampler"] == "twisted_smc"
    assert guided.settings["sampler"] == "dpm_solver_pp"
    errors = [float((of.mean - exact)[:, 1:].square().mean().sqrt()) for of in (found, guided)]
    assert errors[0] < 0.2 < errors[1], errors
    again = impute(model, rows[:4], num_draws=60, seed=1, batch_size=300)
    torch.testing.assert_close(again.x, found.x[:, :4], rtol=0, atol=1e-12)


def test_images_and_long_vectors_are_drawn_by_a_guided_sampler_unless_asked_for() -> None:
    for shape in ((1, 2, 2), (65,)):
        model = sde.ExactModel(sde.Gaussian(torch.zeros(shape), torch.ones(shape)), VP)
        assert default_sampler(model).num_steps == 50
        assert not isinstance(default_sampler(model), TwistedSMC)
    short = sde.ExactModel(sde.Gaussian(torch.zeros(64), torch.ones(64)), VP)
    assert isinstance(default_sampler(short, 7), TwistedSMC)
    assert default_sampler(short, 7).num_steps == 7
    without = sde.NetworkModel(sde.networks.MLP((2,), width=8, depth=1), VP, "noise", (2,))
    assert not isinstance(default_sampler(without), TwistedSMC)
