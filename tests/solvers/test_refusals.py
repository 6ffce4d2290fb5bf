"""What ``solve`` refuses before the first evaluation, each with a sentence."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.orders import Fixed
from solvers import (
    DOPRI5,
    EULER,
    EULER_MARUYAMA,
    ODE,
    RECURSION,
    RK4,
    SDE,
    Adaptive,
    FixedGrid,
    Normals,
    Recursion,
    solve,
)


def never(*_: Tensor) -> Tensor:
    raise AssertionError("a refused problem must not be evaluated")


STATE, GRID, ADAPTIVE = torch.ones(2, 1), FixedGrid([0.0, 1.0]), Adaptive(0.0, 1.0)
FLOW, NOISY = ODE(never), SDE(never, lambda t: torch.ones_like(t))
CHAIN = Recursion(never, never)


@pytest.mark.parametrize(
    ("term", "method", "control", "options", "message"),
    [
        (NOISY, EULER, GRID, {}, "method euler integrates ODE, got SDE"),
        (CHAIN, DOPRI5, ADAPTIVE, {}, "method dopri5 integrates ODE, got Recursion"),
        (FLOW, EULER_MARUYAMA, GRID, {}, "method euler_maruyama integrates SDE, got ODE"),
        (FLOW, RECURSION, GRID, {}, "method recursion integrates Recursion, got ODE"),
        (NOISY, EULER_MARUYAMA, GRID, {}, "a SDE with noise needs noise="),
        (CHAIN, RECURSION, GRID, {}, "a Recursion with noise needs noise="),
        (FLOW, EULER, ADAPTIVE, {}, "method euler has no error estimate"),
        (FLOW, RK4, ADAPTIVE, {}, "method rk4 has no error estimate"),
        (NOISY, EULER_MARUYAMA, ADAPTIVE, {"noise": Fixed(STATE)}, "euler_maruyama has no error estimate"),
        (CHAIN, RECURSION, ADAPTIVE, {"noise": Fixed(STATE)}, "recursion has no error estimate"),
        (FLOW, DOPRI5, ADAPTIVE, {"after_step": never}, "after_step needs a FixedGrid"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_first_evaluation(
    term: Any, method: Any, control: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        solve(term, STATE, method, control, **options)


@pytest.mark.parametrize(
    "noise", [Normals(0, 2, (3,)), Normals(0, 2, (1,), torch.float32), Normals(0, 1, (3,), torch.float32)]
)
@pytest.mark.parametrize(
    ("term", "method"), [(NOISY, EULER_MARUYAMA), (Recursion(never, lambda t, s: (t, t, s)), RECURSION)]
)
def test_noise_of_another_shape_or_type_is_refused_before_the_first_evaluation(
    term: Any, method: Any, noise: Normals
) -> None:
    """It would broadcast one draw over many elements, or turn a float32 state into a float64 one."""
    with pytest.raises(
        ValueError, match=r"noise must draw the shape and type of the state, \(2, 3\) and torch.float32"
    ):
        solve(term, torch.ones(2, 3), method, GRID, noise=noise)


def test_a_recursion_that_hides_its_noise_is_refused() -> None:
    term = Recursion(never, lambda t, s: (t, t, s), noisy=False)
    with pytest.raises(ValueError, match="a step with noise needs a noise source; state the term as noisy"):
        solve(term, STATE, RECURSION, GRID)


@pytest.mark.parametrize("control", [GRID, ADAPTIVE])
def test_a_drift_of_another_shape_or_a_wider_type_is_refused(control: Any) -> None:
    wanted = r"the drift must return the shape and type of the state, \(4, 3\) and torch.float32, got "
    y0 = torch.ones(4, 3)
    with pytest.raises(TypeError, match=wanted + r"\(4, 1\) and torch.float32.*expand_like"):
        solve(ODE(lambda t, y: y[:, :1]), y0, DOPRI5, control)
    with pytest.raises(TypeError, match=wanted + r"\(4, 3\) and torch.float64.*expand_like"):
        solve(ODE(lambda t, y: y.double()), y0, DOPRI5, control)
    narrow = solve(ODE(lambda t, y: -y.float()), y0.double(), DOPRI5, control)
    assert narrow.y.dtype == torch.float64


@pytest.mark.parametrize(
    "y0", [torch.tensor(1.0), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.bool)]
)
@pytest.mark.parametrize("control", [GRID, ADAPTIVE])
def test_states_without_samples_or_of_other_types_are_refused(y0: Tensor, control: Any) -> None:
    with pytest.raises(ValueError, match=r"y0 must be floating point with shape \(B, \*\), got torch"):
        solve(FLOW, y0, DOPRI5, control)
