"""The plan: its cells, its budget, and that only what is missing is run."""

import pytest
import torch

from sde_toolkit.lab import EXACT_PROBLEMS, Candidate, Experiment, Group, Metric, Store, exact_problem
from sde_toolkit.metrics import EnergyDistance
from sde_toolkit.samplers import ddim, dopri5, heun
from sde_toolkit.sdes import VESDE, VPSDE


def group(name="ring", condition=None):
    problem = exact_problem(name, VPSDE(), 100)
    candidates = [
        Candidate.of("ddim", ddim(4)),
        Candidate.of("heun", heun(4)),
        Candidate.of("dopri5", dopri5()),
    ]
    return Group(problem, candidates, [Metric("energy distance", EnergyDistance(), problem.real)], condition)


def test_cells_say_what_is_missing_and_what_it_costs(tmp_path):
    store = Store(tmp_path / "records.sqlite")
    experiment = Experiment([group()], 20, seeds=(0, 1))
    cells = experiment.cells(store)
    assert [(c.candidate.name, c.nfe, c.missing) for c in cells] == [
        ("ddim", 5, (0, 1)), ("heun", 9, (0, 1)), ("dopri5", None, (0, 1)),
    ]  # fmt: skip
    assert cells[1].seconds == pytest.approx(9 / 5 * cells[0].seconds)
    outcome = experiment.run(store)
    assert [r.sampler for r in outcome.records] == ["ddim", "heun", "dopri5"]
    assert [c.missing for c in experiment.cells(store)] == [(), (), ()]
    assert [c.missing for c in Experiment([group()], 20, seeds=(0, 2)).cells(store)] == [(2,), (2,), (2,)]
    drawn = []
    again = experiment.run(store, on_samples=lambda cell, samples: drawn.append(samples))
    assert again.records == outcome.records
    assert not drawn


def test_budgets_leave_cells_out_and_say_which(tmp_path):
    store = Store(tmp_path / "records.sqlite")
    few = Experiment([group()], 20, max_nfe=6)
    assert [c.candidate.name for c in few.cells()] == ["ddim", "dopri5"]
    outcome = Experiment([group()], 20, time_budget=1e-9).run(store)
    assert outcome.records == []
    assert [c.candidate.name for c in outcome.left_out] == ["ddim", "heun", "dopri5"]
    full = Experiment([group()], 20, time_budget=1e9).run(store)
    assert len(full.records) == 3
    assert not full.left_out
    known = Experiment([group()], 20, time_budget=1e-9).run(store)  # what is there costs nothing
    assert known.records == full.records
    with pytest.raises(ValueError, match="at least 0"):
        Experiment([group()], 20, time_budget=-1.0)


def test_problems_and_conditions_stand_in_the_records():
    groups = [group("ring", 3), group("grid25")]
    records = Experiment(groups, 20).run().records
    assert [(r.problem, r.settings.get("condition")) for r in records] == [("ring", 3)] * 3 + [
        ("grid25", None)
    ] * 3


@pytest.mark.parametrize("name", EXACT_PROBLEMS)
def test_built_in_problems_are_what_they_say(name):
    problem = exact_problem(name, VPSDE())
    assert problem.name == name
    assert problem.fingerprint != exact_problem(name, VESDE()).fingerprint
    assert problem.fingerprint == exact_problem(name, VPSDE()).fingerprint
    assert torch.isfinite(problem.log_density(problem.real)).all()
    # real examples are draws of the law: its mean within 5 standard errors, in every feature
    moments = problem.model.moments
    error = (problem.real.mean(0) - moments.mean).abs() / (
        moments.diagonal().variances / len(problem.real)
    ).sqrt()
    assert float(error.max()) < 5
    # the density is that of the draws: the score is its gradient
    x = problem.real[:3].clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.log_density(x).sum(), x)
    t = torch.tensor(1e-6, dtype=torch.float64)
    near = problem.model.score(x.detach(), t)
    assert float((slope - near).norm() / near.norm()) < 0.1


def test_unknown_problems_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of gaussian, .* got 'rings'"):
        exact_problem("rings", VPSDE())
    with pytest.raises(ValueError, match="num_real must be at least 2"):
        exact_problem("ring", VPSDE(), 1)
