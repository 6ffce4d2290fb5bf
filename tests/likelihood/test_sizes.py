"""The divergence by size: exact where it is cheap, else Walsh's probes up to a standard error."""

import math

import pytest
import torch
from problems import mixture

from sde_toolkit.likelihood import (
    DEFAULT_PROBES,
    EXACT_UP_TO,
    TARGET_SE,
    Endpoint,
    ExactDivergence,
    FlowSolver,
    Hutchinson,
    HutchPlusPlus,
    chosen_divergence,
    likelihood_cost,
    log_likelihood,
    values_only,
)
from sde_toolkit.models import ExactModel, Gaussian, GaussianMixture, LowRank, Moments, Wrapper
from sde_toolkit.sdes import VESDE, VPSDE
from solvers import AB3, RK4, Normals

FLOAT64 = torch.float64
FAST = FlowSolver(rtol=1e-4, atol=1e-4)


def rms(x):
    return float(x.square().mean().sqrt())


def wide(features):
    data = mixture(3, features, seed=1)
    return data, ExactModel(data, VPSDE())


def test_the_choice_goes_by_the_number_of_features():
    assert chosen_divergence("auto", EXACT_UP_TO) == ExactDivergence() == chosen_divergence(None, 1000)
    assert chosen_divergence("auto", EXACT_UP_TO + 1) == DEFAULT_PROBES == Hutchinson(8, "walsh")
    assert chosen_divergence(3, 1000) == Hutchinson(3)
    with pytest.raises(ValueError, match="divergence must be 'auto', a number of probes"):
        chosen_divergence("exact", 3)
    data, model = wide(3)
    x = data.sample(3, seed=0)
    plain = log_likelihood(model, x)
    assert torch.equal(plain.nats, log_likelihood(model, x, divergence=None).nats)
    assert "target_se" not in plain.settings


@pytest.mark.parametrize("features", [1, 5, 8, 13])
def test_walsh_probes_are_orthogonal_signs_and_all_of_them_are_exact(features):
    count = 1 << (features - 1).bit_length()
    probes = Hutchinson(count, "walsh").probes(Normals(0, 50, (features,)))
    assert torch.equal(probes.abs(), torch.ones_like(probes))
    whole = torch.einsum("bki,bkj->bij", probes, probes) / count
    torch.testing.assert_close(whole, torch.eye(features, dtype=FLOAT64).expand(50, -1, -1))
    if count == features:
        gram = probes @ probes.mT
        torch.testing.assert_close(gram, features * torch.eye(count, dtype=FLOAT64).expand(50, -1, -1))
    with pytest.raises(ValueError, match=f"got {count + 1}; {count} are exact"):
        Hutchinson(count + 1, "walsh").columns(features)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["walsh", "rademacher"])
def test_probes_are_added_until_the_standard_error_is_met(kind):
    data, model = wide(100)
    x, unit = data.sample(6, seed=0), 100 * math.log(2)
    start = Hutchinson(2, kind)
    for target in (0.02, 0.004):
        found = values_only(model, x, divergence=start, target_se=target, solver=FAST)
        assert bool((found.standard_error_bits_per_dim <= target).all())
        assert found.settings["target_se"] == pytest.approx(target)
    assert int(found.num_probes.min()) >= 8 < int(found.num_probes.max())
    error = found.nats - model.log_prob(x, torch.tensor(1e-5, dtype=FLOAT64))
    assert float(error.abs().max()) < 6 * 0.004 * unit
    alone = values_only(model, x, divergence=start, solver=FAST)
    assert torch.equal(alone.num_probes, torch.full((6,), 2))
    assert "target_se" not in alone.settings


@pytest.mark.slow
def test_all_walsh_probes_are_the_exact_value():
    data, model = wide(70)
    x = data.sample(3, seed=0)
    found = values_only(model, x, target_se=1e-7)
    assert found.num_probes.tolist() == [128] * 3
    assert float(found.standard_error.abs().max()) == 0
    torch.testing.assert_close(found.nats, values_only(model, x, divergence=None).nats, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_values_with_added_probes_do_not_depend_on_the_others():
    data, model = wide(70)
    x = data.sample(7, seed=3)
    options = {"target_se": 0.04, "solver": FAST}
    whole = values_only(model, x, **options)
    assert len(set(whole.num_probes.tolist())) > 1
    for batch_size in (1, 3):
        parts = values_only(model, x, batch_size=batch_size, **options)
        for name in ("nats", "standard_error", "num_probes", "skewness", "nfe"):
            assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert torch.equal(values_only(model, x[4:], first_sample=4, **options).nats, whole.nats[4:])


def test_by_default_every_value_is_within_the_standard_error():
    data, model = wide(100)
    x = data.sample(8, seed=0)
    found = log_likelihood(model, x)
    assert bool((found.standard_error_bits_per_dim <= TARGET_SE).all())
    assert found.settings["columns"] == 8


class Counted(Wrapper):
    def __init__(self, model):
        super().__init__(model)
        self.rows = 0

    def raw(self, x_t, t, condition=None):
        self.rows += len(x_t)
        return self.model.raw(x_t, t, condition)


@pytest.mark.parametrize(
    "solver",
    [FlowSolver(RK4, num_steps=3), FlowSolver(AB3, num_steps=8), FAST],
    ids=["rk4", "ab3", "adaptive"],
)
def test_the_cost_is_told_before(solver):
    data, model = wide(100)
    x, counted = data.sample(8, seed=0), Counted(model)
    cost = likelihood_cost(counted, x, solver=solver)
    if solver.num_steps:
        assert counted.rows == 0
        assert cost.nfe == int(values_only(model, x, target_se=math.inf, solver=solver).nfe[0])
    else:
        assert abs(cost.nfe / float(values_only(model, x, target_se=math.inf).nfe.double().mean()) - 1) < 0.6
    assert (cost.num_samples, cost.products, cost.adds_probes) == (8, 8, True)
    assert cost.passes == 8 * cost.nfe * 9
    assert f"8 samples x {cost.nfe} evaluations x (1 + 8 derivatives)" in cost.sentence
    few = likelihood_cost(wide(3)[1], x[:1, :3].contiguous(), solver=solver)
    assert (few.products, few.adds_probes) == (3, False)


def test_bad_targets_are_refused():
    data, model = wide(100)
    x = data.sample(1, seed=0)
    with pytest.raises(ValueError, match="target_se must be positive, got 0"):
        log_likelihood(model, x, target_se=0.0)
    with pytest.raises(ValueError, match="target_se must be None but for divergences by Hutchinson's probes"):
        log_likelihood(model, x, divergence=HutchPlusPlus(2), target_se=0.1)


def ill_conditioned(features):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=FLOAT64))[0]
    covariance = axes @ torch.logspace(-8, 0, features, dtype=FLOAT64).diag() @ axes.mT
    return torch.randn(features, generator=generator, dtype=FLOAT64), (covariance + covariance.mT) / 2


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["ve", "vp"])
@pytest.mark.parametrize("features", [100, 128])
def test_the_truncation_of_a_gaussian_is_exact_however_small_its_variances(features, sde):
    data = Gaussian(*ill_conditioned(features))
    model, x = ExactModel(data, sde), data.sample(8, seed=0)
    found = log_likelihood(model, x)
    exact = data.log_prob(x) - model.log_prob(x, torch.tensor(found.settings["t_min"], dtype=FLOAT64))
    entry = found.budget["truncation"]
    assert float(exact.abs().max()) > 5
    # the moments' own variances are known to 1e-16 of the largest
    assert float((entry.shift - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    assert float(entry.error.max()) < 0.2 * float(exact.abs().max())  # other data would look the same


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 3, 50, 99])
@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["ve", "vp"])
def test_the_truncation_of_an_ill_conditioned_mixture_is_within_its_error(axis, sde):
    _, covariance = ill_conditioned(100)
    variances, axes = torch.linalg.eigh(covariance)
    mean = 2.5 * axes[:, axis] * variances[axis].sqrt()
    data = GaussianMixture(
        [0.4, 0.6], torch.stack([mean, -mean]), torch.stack([covariance, 1.5 * covariance])
    )
    model, x = ExactModel(data, sde), data.sample(16, seed=0)
    found = log_likelihood(model, x, num_diagnostic_samples=16, solver=FAST)
    exact = data.log_prob(x) - model.log_prob(x, torch.tensor(found.settings["t_min"], dtype=FLOAT64))
    entry = found.budget["truncation"]
    left = entry.shift - exact
    assert rms(left) < 0.1 * rms(exact)
    assert rms(left) < rms(entry.error) < 0.5 * rms(exact)
    assert float((left.abs() < 3 * entry.error).double().mean()) > 0.85


@pytest.mark.parametrize("correction", ["none", "tweedie"])
@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["ve", "vp"])
def test_low_rank_moments_give_what_full_ones_give(sde, correction):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 4, generator=generator, dtype=FLOAT64))[0]
    low = LowRank(axes, torch.tensor([3.0, 1.0, 0.5, 0.3], dtype=FLOAT64), 0.01)
    variances = low.variances - low.rest
    covariance = axes @ variances.diag() @ axes.mT + low.rest * torch.eye(12, dtype=FLOAT64)
    data = mixture(3, 12, seed=2)
    model, x = ExactModel(data, sde), data.sample(5, seed=0)
    found = [
        log_likelihood(
            model,
            x,
            divergence=Hutchinson(4, "walsh"),
            solver=FlowSolver(RK4, num_steps=24),
            endpoint=Endpoint(correction, moments=Moments(data.mean, kind)),
        )
        for kind in (low, (covariance + covariance.mT) / 2)
    ]
    assert found[0].settings["moments"] == "low_rank"
    for name in ("nats", "standard_error", "latent"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=1e-9, atol=1e-9)
    for name in ("truncation", "solver"):
        torch.testing.assert_close(
            found[0].budget[name].shift, found[1].budget[name].shift, rtol=1e-9, atol=1e-9
        )
