"""Metrics against what is known exactly."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_toolkit import Gaussian, GaussianMixture
from sde_toolkit.metrics import FlowError, ModeCoverage, NegativeLogLikelihood, bootstrap, difference
from sde_toolkit.metrics.errors.resampling import _group_masks
from sde_toolkit.metrics.exact import BLOCK, sizes, subset_means
from sde_toolkit.utils import Stream, permutation


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MEANS = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
MIXTURE = GaussianMixture([0.5, 0.3, 0.2], MEANS, [0.1, 0.1, 0.1])


def around(counts):
    """So many points close to every mean."""
    places = torch.repeat_interleave(MEANS, torch.tensor(counts), dim=0)
    return places + 0.1 * normal(*places.shape)


def test_negative_log_likelihood_of_a_normal_is_the_textbooks():
    x = normal(500, 3) * 1.5
    found = NegativeLogLikelihood(Gaussian(torch.zeros(3), torch.eye(3)).log_prob)
    expected = float(x.square().sum(1).mean()) / 2 + 1.5 * math.log(2 * math.pi)
    assert found(x) == pytest.approx(expected, rel=1e-12)
    assert bootstrap(found, x).value == pytest.approx(expected, rel=1e-12)
    one_each = bootstrap(found, x[:50])
    assert one_each.standard_error == pytest.approx(float(x[:50].square().sum(1).std()) / 2 / 50**0.5)


def test_densities_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"log_density must return shape \(5,\) for 5 samples, got \(5, 2\)"):
        NegativeLogLikelihood(lambda x: x)(normal(5, 2))
    with pytest.raises(ValueError, match="log_density must be finite at every sample, got 5 values"):
        NegativeLogLikelihood(lambda x: x[:, 0] * -math.inf)(1 + normal(5, 2).abs())
    with pytest.raises(ValueError, match="y must be left out for the negative log-likelihood"):
        bootstrap(NegativeLogLikelihood(MIXTURE.log_prob), normal(20, 2), normal(20, 2))


@pytest.mark.parametrize("assign", ["responsibility", "nearest", "soft"])
def test_masses_of_modes(assign):
    x, weights = around([60, 30, 10]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    masses = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    near = 1e-6
    assert ModeCoverage(MIXTURE, "tv", assign)(x) == pytest.approx(0.1, abs=near)
    kl = float((masses * (masses / weights).log()).sum())
    assert ModeCoverage(MIXTURE, "kl", assign)(x) == pytest.approx(kl, abs=near)
    assert ModeCoverage(MIXTURE, "share", assign)(x) == pytest.approx(1)
    assert ModeCoverage(MIXTURE, "share", assign)(around([60, 40, 0])) == pytest.approx(2 / 3)
    found = ModeCoverage(MIXTURE, "kl", assign)(around([50, 0, 50]))
    assert found == pytest.approx(0.5 * math.log(0.5 / 0.2), abs=near)


def test_a_mode_that_one_group_alone_holds_has_an_error_bar():
    for seed in range(5):  # masses of modes without samples are 0, not -1e-17
        found = bootstrap(ModeCoverage(MIXTURE, "kl"), around([60, 39, 1]), seed=seed)
        assert 0 < found.standard_error < 1


def test_a_mode_is_hit_by_a_part_of_its_samples():
    x = around([600, 395, 5])  # 200 belong to the last one
    assert ModeCoverage(MIXTURE, "share")(x) == pytest.approx(2 / 3)
    assert ModeCoverage(MIXTURE, "share", least=0.0)(x) == 1
    assert ModeCoverage(MIXTURE, "share", least=0.0)(x[:-5]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="least must be from 0 to 1"):
        ModeCoverage(MIXTURE, least=2.0)


def test_total_variation_has_kinks_that_halves_see():
    """Its interval by the derivative was too wide; a difference that is 0 by chance had no error bar."""
    law = MIXTURE
    found = [bootstrap(ModeCoverage(law), law.sample(100, seed=seed)) for seed in range(80)]
    values = np.array([e.value for e in found])
    errors = np.sqrt(np.mean([e.standard_error**2 for e in found]))
    assert 0.75 < errors / values.std() < 1.3  # the spread of 80 is .08 off
    low, high = np.array([e.interval() for e in found]).T
    assert ((low <= values.mean()) & (values.mean() <= high)).sum() >= 66  # less once in 100,000 for 95%
    same = difference(found[0], found[0])
    assert (same.value, same.standard_error) == (0, 0.01)


@pytest.mark.parametrize("measure", ["share", "tv", "kl"])
def test_no_error_bar_is_zero_because_nothing_moved(measure):
    one = bootstrap(ModeCoverage(MIXTURE, measure), around([50, 30, 20]))
    assert one.standard_error > 0
    assert difference(one, one).standard_error > 0
    low, high = one.interval()
    assert high - low > 0.009


def test_a_mode_that_is_hit_by_chance_has_an_interval():
    """Three samples where two are needed: the share was 1 with an error bar of 0."""
    found = bootstrap(ModeCoverage(MIXTURE, "share"), around([60, 37, 3]))
    assert found.value == 1
    assert found.interval()[0] < 2 / 3 + 0.2


def test_soft_masses_are_the_weights_on_average():
    close = GaussianMixture([0.7, 0.3], torch.tensor([[-0.5], [0.5]]), [1.0, 1.0])
    x = close.sample(20_000, seed=0)
    assert ModeCoverage(close, "tv", "soft")(x) < 0.01  # standard error .002
    assert ModeCoverage(close, "tv", "responsibility")(x) > 0.05


def test_flow_error():
    x, e = normal(40, 2, 3), normal(40, 2, 3, seed=1)
    square = (x - e).square().sum() / 40
    assert FlowError()(x, e) == pytest.approx(float(square.sqrt()), rel=1e-12)
    size = e.square().sum() / 40
    assert FlowError(relative=True)(x, e) == pytest.approx(float((square / size).sqrt()), rel=1e-12)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert FlowError()(x[order], e[order]) == pytest.approx(FlowError()(x, e), rel=1e-12)
    assert FlowError()(x, x) == 0


def test_the_error_bar_of_a_flow_error_keeps_the_pairs():
    x, e = normal(50, 2), normal(50, 2, seed=1)
    found = bootstrap(FlowError(), x, e)
    alone = [float((x - e).square().sum(1)[torch.arange(50) != i].mean().sqrt()) for i in range(50)]
    jackknife = math.sqrt(49 * torch.tensor(alone, dtype=torch.float64).var(correction=0))
    assert found.standard_error == pytest.approx(jackknife, rel=0.02)


def test_flow_errors_need_pairs():
    with pytest.raises(
        ValueError, match="y must hold one row for every sample of x for the flow error, 20, got 30"
    ):
        bootstrap(FlowError(), normal(20, 2), normal(30, 2))
    with pytest.raises(ValueError, match="y must not be 0 everywhere"):
        FlowError(relative=True)(normal(20, 2), torch.zeros(20, 2))


def test_subset_means():
    values, keep = normal(20, 3), torch.rand(5, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = torch.stack([values[one].mean(0) for one in keep])
    torch.testing.assert_close(subset_means(values, keep), expected)
    torch.testing.assert_close(subset_means(values[:, 0], keep), expected[:, 0])


def test_large_sets_are_measured_in_blocks():
    """Masks, means and densities of more samples than a block are those of the whole set at once."""
    n, groups = 2 * BLOCK + 7, 10
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = _group_masks(n, groups, 3, 0)
    group = torch.empty(n, dtype=torch.int64)
    group[permutation(n, 3, 0, Stream.SPLIT)] = torch.arange(n) % groups
    for g in range(groups):
        assert torch.equal(keep[1 + g], group != g)
        assert torch.equal(keep[1 + groups + g], (group != g) & (group != (g + 1) % groups))
    assert bool(keep[0].all())
    assert torch.equal(sizes(keep), keep.sum(1))
    whole = torch.stack([x[kept].mean(0) for kept in keep])
    assert torch.allclose(subset_means(x, keep), whole, rtol=0, atol=1e-13)
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.0]], [0.5, 0.5])
    log_p = law.log_prob(x)
    found = NegativeLogLikelihood(law.log_prob).on_subsets(x, keep)
    assert torch.allclose(found, torch.stack([-log_p[kept].mean() for kept in keep]), rtol=1e-13)
    soft = ModeCoverage(law, "tv", "soft")
    mass = torch.stack([soft._parts(x)[kept].mean(0) for kept in keep])
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert torch.allclose(soft.on_subsets(x, keep), (mass - weights).abs().sum(1) / 2, rtol=1e-11)


MEMORY = """
import torch
from pathlib import Path
from sde_toolkit.metrics import bootstrap, metric
from sde_toolkit.models import GaussianMixture

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

law = GaussianMixture([1 / 8] * 8, torch.randn(8, 2), [0.1] * 8)
judges = metric("nll", log_density=law.log_prob), metric("mode_coverage", mixture=law)
for judge in judges:
    bootstrap(judge, torch.randn(200_000, 2))
before, x = peak(), torch.randn(1_000_000, 2, dtype=torch.float64)
for judge in judges:
    bootstrap(judge, x)
print(1024 * (peak() - before) / 800_000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the memory")
def test_memory_of_likelihoods_and_modes_grows_by_few_bytes_a_sample():
    """Beside 16 bytes of a sample: 101 of the masks, and the densities or the masses of 8 modes."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 400
