"""Families of problems with many scales: disjoint sets, errors by definition, columns that add up."""

import dataclasses
import math

import pytest
import torch

from benchmarks import families, flows
from benchmarks.families import Case, make_data, make_problem
from benchmarks.peers import diffusers as peer_diffusers
from benchmarks.peers import spectrum

pytestmark = [  # of diffusers, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]


def test_no_data_are_in_two_sets() -> None:
    sets = [families.tuning(), families.reporting(), families.untouched()]
    seen = [{(c.kind, c.D, c.condition, c.seed) for c in cases} for cases in sets]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert {c.process for c in families.reporting()} == set(families.make_processes())
    assert {c.condition for c in families.untouched()} == {1.0, 10.0, 100.0, 300.0}
    reported = [data.components.means for data in flows.make_data().values()]
    for case in families.tuning():
        means = make_data(case.kind, case.D, case.condition, case.seed).components.means
        assert not any(means.shape == other.shape and torch.allclose(means, other) for other in reported)


@pytest.mark.parametrize("condition", [1.0, 30.0])
def test_the_axes_of_spread_data_span_the_condition(condition: float) -> None:
    # of many data sets, since means and covariances are drawn
    spans = []
    for seed in range(12):
        variances = torch.linalg.eigvalsh(make_data("spread", 3, condition, 5000 + seed).covariance)
        spans.append(0.5 * math.log(float(variances[-1] / variances[0])))
    assert abs(sum(spans) / len(spans) - math.log(condition)) < 1.0


def test_errors_are_pooled_and_whitened() -> None:
    problem = make_problem(Case("spread", 2, 30.0, "vp", 9000))
    assert problem.errors(problem.end) == (0.0, 0.0)
    assert problem.errors(problem.zero_end, at_zero=True) == (0.0, 0.0)
    model, moments = problem.model, problem.model.moments
    assert moments is not None
    assert moments.axes is not None
    alpha = float(model.sde.alpha(torch.tensor(problem.t_min, dtype=torch.float64)))
    # every end moved by a tenth of a standard deviation along the thin axis
    thin = moments.axes[:, 0] * moments.variances[0].sqrt() * 0.1
    pooled, whitened = problem.errors(problem.end + alpha * thin)
    away = (problem.end / alpha - moments.mean).square().sum(1).mean().sqrt()
    assert whitened == pytest.approx(0.1 / math.sqrt(2), rel=1e-6)
    assert pooled == pytest.approx(float(thin.norm() / away), rel=1e-6)
    assert problem.errors(problem.end * math.nan) == (math.inf, math.inf)


def test_the_exact_ends_have_the_weight_of_the_rare_mode() -> None:
    problem = make_problem(Case("rare", 2, 1.0, "ve", 9001))
    found = spectrum.rare_weight(problem, problem.end)
    # a binomial share of 256 starts
    assert abs(found - families.RARE_WEIGHT) < 4 * math.sqrt(families.RARE_WEIGHT / flows.NUM_POINTS)


def test_a_column_has_the_best_peer_and_its_ratio() -> None:
    problem = make_problem(Case("spread", 2, 10.0, "rectified", 9002))
    peers = [p for p in peer_diffusers.deterministic() if p.name in ("UniPC-2, bh2", "DDIM")]
    column = spectrum.column(problem, peers, 10)
    every = [spectrum.peer_errors(p, problem, 10) for p in peers]
    assert column.peer == (min(e[0] for e in every), min(e[1] for e in every))
    assert column.ratios[0] == column.ours[0] / column.peer[0] < 1
    every_budget = [dataclasses.replace(column, nfe=nfe) for nfe in spectrum.EVALUATIONS]
    assert "spread 2-D 10 to 1" in spectrum.table(every_budget)
    assert spectrum.records([column])[0]["nfe"] == 10
