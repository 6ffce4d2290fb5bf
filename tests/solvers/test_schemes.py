"""Schemes: traced rules are the formulas they state, with the memory and the costs they declare."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from solvers import ODE, Adams, FixedGrid, Form, Normals, Scheme, SchemeMethod, SolverError, Steps, solve

FLOAT64 = torch.float64
GRID = FixedGrid([0.0, 0.2, 0.5, 0.6, 1.0, 1.3])
Y0 = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=FLOAT64)


def field(t: Tensor, y: Tensor) -> Tensor:
    return t.cos() * y * (1 - y / 3)


def bashforth(steps: Steps) -> Form:
    """Adams-Bashforth with one, two or three nodes on any grid, from the integrals of Lagrange
    polynomials."""
    nodes = [steps.t, *steps.past]
    y = steps.y
    for j, m in enumerate(steps.values):
        x, w = torch.tensor([-math.sqrt(1 / 3), math.sqrt(1 / 3)], dtype=FLOAT64), 0.5
        total = torch.zeros_like(steps.t)
        for node in x:
            u = steps.t + (steps.s - steps.t) * (1 + node) / 2
            basis = torch.ones_like(u)
            for k, other in enumerate(nodes):
                if k != j:
                    basis = basis * (u - other) / (nodes[j] - other)
            total = total + w * basis
        y = y + (steps.s - steps.t) * total * m
    return y


def test_a_multistep_rule_is_the_adams_method():
    mine = solve(Scheme(field, bashforth), Y0, SchemeMethod(name="ab3", order=3, nodes=3), GRID)
    theirs = solve(ODE(field), Y0, Adams(3, start_with="euler"), GRID)
    assert torch.allclose(mine.y, theirs.y, rtol=1e-13, atol=1e-14)
    assert int(mine.stats.nfe[0]) == 5


def heun_rule(steps: Steps) -> Form:
    h, k1 = steps.s - steps.t, steps.values[0]
    k2 = steps.evaluate(steps.s, steps.y + h * k1)
    return steps.y + h / 2 * (k1 + k2)


def pec_rule(steps: Steps) -> Form:
    """Euler, evaluate ahead, trapezium; the last step is not corrected."""
    h, m = steps.s - steps.t, steps.values[0]
    predicted = steps.y + h * m
    return predicted if steps.last else steps.y + h / 2 * (m + steps.evaluate_end(predicted))


def test_stages_and_evaluations_ahead():
    heun = SchemeMethod(name="heun", order=2, nfe_per_step=2)
    solution = solve(Scheme(field, heun_rule), Y0, heun, GRID)
    pec = SchemeMethod(name="pec", order=2, evaluates_end=True)
    ahead = solve(Scheme(field, pec_rule), Y0, pec, GRID)
    y, z, m = Y0, Y0, field(GRID.ts[0], Y0)
    for t, s in zip(GRID.ts[:-1], GRID.ts[1:], strict=True):
        k = field(t, y)
        y = y + (s - t) / 2 * (k + field(s, y + (s - t) * k))
        new = field(s, z + (s - t) * m)
        z = z + (s - t) * (m if s == GRID.ts[-1] else (m + new) / 2)
        m = new
    assert torch.allclose(solution.y, y, rtol=1e-14)
    assert torch.allclose(ahead.y, z, rtol=1e-14)
    assert int(solution.stats.nfe[0]) == heun.nfe(5) == 10
    assert int(ahead.stats.nfe[0]) == pec.nfe(5) == 5


def test_a_state_moved_from_outside_is_evaluated_again():
    pec = SchemeMethod(name="pec", order=2, evaluates_end=True)
    moved = solve(Scheme(field, pec_rule), Y0, pec, GRID, after_step=lambda interval, y: y + 0.1)
    kept = solve(Scheme(field, pec_rule), Y0, pec, GRID, after_step=lambda interval, y: None)
    z = Y0
    for t, s in zip(GRID.ts[:-1], GRID.ts[1:], strict=True):
        m = field(t, z)
        z = z + (s - t) * (m if s == GRID.ts[-1] else (m + field(s, z + (s - t) * m)) / 2) + 0.1
    assert torch.allclose(moved.y, z, rtol=1e-14)
    assert int(moved.stats.nfe[0]) == 9
    assert int(kept.stats.nfe[0]) == 5


def test_evaluations_are_scaled_without_functions_of_time():
    scale = Scheme(field, heun_rule, lambda t: (t.square(), 1 + t))
    plain = Scheme(lambda t, y: t**2 * y + (1 + t) * field(t, y), heun_rule)
    heun = SchemeMethod(name="heun", order=2, nfe_per_step=2)
    assert torch.allclose(solve(scale, Y0, heun, GRID).y, solve(plain, Y0, heun, GRID).y, rtol=1e-13)


def test_draws_are_those_of_the_steps():
    method = SchemeMethod(name="em", order=1, strong_order=1.0, weak_order=1.0)
    term = Scheme(field, lambda k: k.y + (k.s - k.t) * k.values[0] + (k.s - k.t).sqrt() * k.z, noisy=True)
    noise = Normals(3, 2, (2,))
    y = Y0
    for i, (t, s) in enumerate(zip(GRID.ts[:-1], GRID.ts[1:], strict=True)):
        y = y + (s - t) * field(t, y) + (s - t).sqrt() * noise.draw(i)
    assert torch.allclose(solve(term, Y0, method, GRID, noise=noise).y, y, rtol=1e-14)
    with pytest.raises(ValueError, match="a Scheme with noise needs noise="):
        solve(term, Y0, method, GRID)


def test_last_steps_may_use_fewer_nodes():
    seen = []

    def rule(steps: Steps) -> Form:
        seen.append((len(steps.t), steps.order, steps.last))
        return steps.y + (steps.s - steps.t) * steps.values[-1]

    grid = FixedGrid(torch.linspace(0, 1, 9))
    solve(Scheme(field, rule), Y0, SchemeMethod(name="x", order=1, nodes=3, lower_final=True), grid)
    assert seen == [(1, 1, False), (1, 2, False), (4, 3, False), (1, 2, False), (1, 1, True)]
    seen.clear()
    term = Scheme(field, rule, separate_end=lambda t: bool(t == 1))
    method = SchemeMethod(name="x", order=1, nodes=3)
    plan = method.prepare(term, grid, Y0)
    first, second = (solve(term, Y0, method, grid, plan=plan) for _ in range(2))
    assert seen == [(1, 1, False), (1, 2, False), (5, 3, False), (1, 3, True)]  # traced once
    assert torch.equal(first.y, second.y)


def test_infinite_coefficients_are_refused_before_the_first_evaluation():
    def silent(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    term = Scheme(silent, lambda k: k.y + 1 / k.t * k.values[0])
    with pytest.raises(ValueError, match="infinite coefficients"):
        solve(term, Y0, SchemeMethod(name="x", order=1), GRID)


def test_a_broken_field_is_named_with_its_step():
    term = Scheme(lambda t, y: y / (t - 0.5), heun_rule)
    with pytest.raises(SolverError, match="NONFINITE"):
        solve(term, Y0, SchemeMethod(name="heun", order=2, nfe_per_step=2), GRID)


def test_forms_compute():
    a, b = Form({0: 2.0}), Form({0: torch.ones(2), 1: 3.0})
    total = 2 * a - b / 2 + torch.tensor([1.0, 2.0]) * -a
    assert torch.equal(total.coefficients[0], torch.tensor([1.5, -0.5]))
    assert total.coefficients[1] == -1.5
    with pytest.raises(TypeError):
        a + 1.0  # type: ignore[operator]


@pytest.mark.parametrize("rule", [bashforth, heun_rule])
def test_the_numbers_of_a_long_grid_are_those_made_at_once(monkeypatch: pytest.MonkeyPatch, rule) -> None:
    grid = FixedGrid(torch.linspace(0, 1.3, 75, dtype=FLOAT64).square())
    method = SchemeMethod(name="rule", order=2, nodes=3 if rule is bashforth else 1, lower_final=True)

    def scale(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(t > 1, 0.0, t), 1 + t

    term = Scheme(field, rule, scale)
    at_once, _ = method.prepare(term, grid, Y0)
    expected = solve(term, Y0, method, grid).y
    monkeypatch.setattr("solvers.schemes.BLOCK_STEPS", 7)
    in_blocks, _ = method.prepare(term, grid, Y0)
    assert isinstance(at_once, list)
    assert not isinstance(in_blocks, list)
    assert len(in_blocks) == len(at_once) == 74
    assert all(in_blocks[i] == at_once[i] for i in (73, 0, 40, *range(74)))
    assert torch.equal(solve(term, Y0, method, grid).y, expected)


@pytest.mark.parametrize("exposed", [False, True])
def test_steps_that_evaluate_their_end_are_the_same_in_blocks(
    monkeypatch: pytest.MonkeyPatch, exposed: bool
) -> None:
    grid = FixedGrid(torch.linspace(0, 1.3, 75, dtype=FLOAT64).square())
    method = SchemeMethod(name="pec", order=2, evaluates_end=True, exposed=exposed)
    term = Scheme(field, pec_rule)
    _, at_once = method.prepare(term, grid, Y0)
    expected = solve(term, Y0, method, grid).y
    monkeypatch.setattr("solvers.schemes.BLOCK_STEPS", 7)
    monkeypatch.setattr("solvers.control.BLOCK_STEPS", 7)
    _, in_blocks = method.prepare(term, grid, Y0)
    assert isinstance(at_once, list)
    assert not isinstance(in_blocks, list)
    assert len(in_blocks) == len(at_once) == 74
    assert all(in_blocks[i] == at_once[i] for i in (73, 0, 40, *range(74)))
    assert torch.equal(solve(term, Y0, method, grid).y, expected)


MEMORY = """
import resource, torch
from solvers import FixedGrid, Scheme, SchemeMethod, solve
torch.set_num_threads(1)
def rule(steps):
    h, m = steps.s - steps.t, steps.values
    return steps.y + h * (m[0] if len(m) == 1 else 1.5 * m[0] - 0.5 * m[1])
def trapezoid(steps):
    h, m = steps.s - steps.t, steps.values[0]
    predicted = steps.y + h * m
    return predicted if steps.last else steps.y + h / 2 * (m + steps.evaluate_end(predicted))
for steps in (1_000, 200_000):
    grid = FixedGrid(torch.linspace(0, 1, steps + 1))
    method = SchemeMethod(name="ab2", order=2, nodes=2)
    solve(Scheme(lambda t, y: -y, rule), torch.ones(4, 2), method, grid)
    method = SchemeMethod(name="trapezoid", order=2, evaluates_end=True)
    solve(Scheme(lambda t, y: -y, trapezoid), torch.ones(4, 2), method, grid)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_steps():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    few, many = (int(line) for line in run.stdout.split())
    assert many - few < 60 * 1024  # KiB; 280 MiB with an object for every step
