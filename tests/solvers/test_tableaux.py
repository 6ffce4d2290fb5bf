"""The tableaux: order conditions, embedded orders, dense output, and SciPy's runs of the same pairs."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from benchmarks.orders import TOLERANCE, registered
from solvers import BOSH3, DOP853, DOPRI5, ODE, TSIT5, Adaptive, FixedGrid, Interval, RungeKutta, solve

TABLEAUX = [method for method in registered() if isinstance(method, RungeKutta)]
PAIRS = [method for method in TABLEAUX if method.has_error]
Tree = tuple["Tree", ...]


@cache
def forests(size: int, largest: int) -> tuple[Tree, ...]:
    """Multisets of rooted trees with ``size`` nodes in all and at most ``largest`` in each."""
    if size == 0:
        return ((),)
    found = set()
    for first in range(1, min(size, largest) + 1):
        for tree in trees(first):
            for rest in forests(size - first, first):
                found.add(tuple(sorted((tree, *rest))))
    return tuple(found)


def trees(order: int) -> tuple[Tree, ...]:
    """Rooted trees with so many nodes, each as the sorted tuple of its branches."""
    return forests(order - 1, order - 1)


def size(tree: Tree) -> int:
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    return size(tree) * math.prod(map(density, tree))


def weights(tree: Tree, a: np.ndarray) -> np.ndarray:
    """Elementary weights of every stage."""
    return math.prod((a @ weights(branch, a) for branch in tree), start=np.ones(len(a)))


def matrix(method: RungeKutta) -> np.ndarray:
    rows = [(), *method.a, *(method.dense.a if method.dense else ())]
    return np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows])


def test_there_are_as_many_trees_as_there_should_be() -> None:
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("method", TABLEAUX, ids=lambda method: method.name)
def test_order_conditions_hold_up_to_the_order_and_not_beyond(method: RungeKutta) -> None:
    a = matrix(method)
    b = np.array([*method.b, *[0.0] * (len(a) - len(method.b))])

    def residual(order: int) -> float:
        return max(abs(b @ weights(tree, a) - 1 / density(tree)) for tree in trees(order))

    assert max(residual(order) for order in range(1, method.order + 1)) < 2e-13
    assert residual(method.order + 1) > 1e-6


@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
def test_order_conditions_hold_everywhere_inside_a_step(method: RungeKutta) -> None:
    assert method.dense is not None
    a, p = matrix(method), np.array(method.dense.p)
    for u in (0.1, 0.35, 0.5, 0.8, 1.0):
        b = (p * u ** np.arange(1, p.shape[1] + 1)).sum(1)
        for order in range(1, method.dense.order + 1):
            for tree in trees(order):
                assert b @ weights(tree, a) == pytest.approx(u**order / density(tree), abs=5e-13)
    assert p.sum(1) == pytest.approx([*method.b, *[0.0] * (len(a) - len(method.b))], abs=2e-13)


@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
def test_error_estimates_and_dense_output_have_their_local_orders(method: RungeKutta) -> None:
    term = ODE(lambda t, y: 2 * t.cos() * y * (1 - y))
    y0, rows = torch.tensor([0.1, 0.4, 0.8, 0.9], dtype=torch.float64), []
    assert method.dense is not None
    sizes = [0.5 * 1.12**-k if method is DOP853 else 0.2 * 1.3**-k for k in range(8)]
    for h in sizes:
        t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.5 + h))
        interval = Interval(0, t, s, h)
        step = method.step(term, interval, y0, method.start(term, t, y0, None), None)
        stages = method.dense.extend(term, interval, y0, step.stages)
        inside = max(
            float((method.dense.at(h, y0, stages, u) - logistic(y0, 0.5, 0.5 + u * h)).norm())
            for u in (0.2, 0.4, 0.6, 0.8)
        )
        assert step.error is not None
        rows.append((float(step.error.norm()), inside))
    slopes = np.polyfit(np.log(sizes), np.log(rows), 1)[0]
    assert abs(slopes[0] - method.order) < (1.0 if method is DOP853 else 2 * TOLERANCE)
    assert abs(slopes[1] - (method.dense.order + 1)) < (1.0 if method is DOP853 else 2 * TOLERANCE)


def logistic(y0: Tensor, t: float, s: float) -> Tensor:
    return (y0.logit() + 2 * (math.sin(s) - math.sin(t))).sigmoid()


@pytest.mark.parametrize(
    ("method", "name"), [(BOSH3, "RK23"), (DOPRI5, "RK45"), (DOP853, "DOP853")], ids=lambda v: str(v)[:12]
)
def test_one_step_equals_scipys_inside_and_at_the_end(method: RungeKutta, name: str) -> None:
    def field(t: float, y: np.ndarray) -> np.ndarray:
        return np.array([y[1] * np.cos(t), -np.sin(y[0]) - 0.1 * y[1] * t])

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1] * t.cos(), -y[:, 0].sin() - 0.1 * y[:, 1] * t], 1)

    stepper = getattr(scipy.integrate, name)(field, 0.3, [1.0, -0.5], 0.8, first_step=0.5, atol=10, rtol=10)
    stepper.step()
    y0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.8))
    interval = Interval(0, t, s, 0.5)
    step = method.step(ODE(drift), interval, y0, None, None)
    np.testing.assert_allclose(step.y[0].numpy(), stepper.y, rtol=1e-14)
    assert method.dense is not None
    stages, theirs = method.dense.extend(ODE(drift), interval, y0, step.stages), stepper.dense_output()
    for u in (0.0, 0.13, 0.5, 0.77, 1.0):
        ours = method.dense.at(0.5, y0, stages, u)[0].numpy()
        np.testing.assert_allclose(ours, theirs(0.3 + 0.5 * u), rtol=1e-13)


@pytest.mark.parametrize("method", PAIRS, ids=lambda method: method.name)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_adaptive_runs_meet_their_tolerance(method: RungeKutta, tolerance: float) -> None:
    y0 = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)[:, None]
    term = ODE(lambda t, y: 2 * t.cos()[:, None] * y * (1 - y))
    solution = solve(term, y0, method, Adaptive(0.0, 6.0, rtol=tolerance, atol=tolerance))
    assert float((solution.y - logistic(y0, 0.0, 6.0)).abs().max()) < 20 * tolerance


@pytest.mark.slow
def test_high_order_needs_the_fewest_evaluations_at_tight_tolerances() -> None:
    y0 = torch.tensor([[0.3]], dtype=torch.float64)
    term = ODE(lambda t, y: 2 * t.cos()[:, None] * y * (1 - y))
    control = Adaptive(0.0, 6.0, rtol=1e-10, atol=1e-10)
    nfe = [int(solve(term, y0, method, control).stats.nfe[0]) for method in (BOSH3, TSIT5, DOP853)]
    assert nfe[0] > 10 * nfe[1]
    assert nfe[1] > nfe[2]


def test_first_stages_are_carried_over() -> None:
    grid, y0 = FixedGrid([0.0, 0.5, 1.0]), torch.ones(1, 1)
    for method, stages in ((BOSH3, 3), (TSIT5, 6), (DOP853, 12)):
        assert method.first_same_as_last
        assert method.nfe_per_step == stages
        assert int(solve(ODE(lambda t, y: -y), y0, method, grid).stats.nfe[0]) == 2 * stages + 1
