"""What is solved: a term states an equation for a batch of independent samples.

    ODE        dy = f(t, y) dt
    SDE        dy = f(t, y) dt + g(t) dW                  additive noise: g a number, or broadcastable
               dy = f(t, y) dt + g(t, y) * dW             diagonal noise: g with the shape of y
    Semilinear dy = [A(t) y + B(t) N(t, y)] dt + C(t) dW  A, B, C numbers or diagonal
    Recursion  y_s = a(t, s) y_t + b(t, s) N(t, y_t) + c(t, s) z,      z ~ N(0, I)
    Spread     y_s = a y_t + b N + c_0^(1 - v) c_1^v z, with N and v from one evaluation
    Scheme     y_s = a y_t + sum_j b_j N_j + c z, the N_j of this step and of steps before

The state ``y`` has shape (B, *): dimension 0 counts samples, which never influence each other.  Time ``t`` is
a tensor of shape () (float64, on the host) on a fixed grid and of shape (B,) (float64, on the state's device)
when every sample keeps its own time.  Time may run up or down; ``W`` is a Brownian motion in the direction of
the run, so that ``dW`` over a step from t to s has variance |s - t|.

``args`` are tensors with shape (B, *) that belong to the samples, such as labels or probes.  Functions are
called as ``f(t, y, *args)``; a solver that works on a part of the batch passes the rows of that part.

A recursion is a complete one-step method.  Its coefficients depend on the two times alone, so they are
computed once per grid in float64 and enter the step as Python floats.  DDPM's ancestral step, DDIM and the
reverse-diffusion step are recursions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from solvers.arguments import check_fields

Field = Callable[..., Tensor]
Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def expand_like(c: Tensor, x: Tensor) -> Tensor:
    """Return ``c`` with shape () or (B,) so that it broadcasts against ``x`` with shape (B, *).

    Values with shape (B,) take the dtype of ``x``.  A scalar is returned as it is: a tensor with shape ()
    never promotes a floating-point state, and a scalar on the host combines with a state on any device.
    """
    if c.ndim == 0:
        return c
    c = c if c.dtype == x.dtype else c.to(x.dtype)
    return c.unsqueeze(1) if x.ndim == 2 and c.ndim == 1 else c.reshape(-1, *[1] * (x.ndim - 1))


def flatten(x: Tensor) -> Tensor:
    """``x`` with shape (B, *) as a matrix with shape (B, D); a state of shape (B,) has D = 1."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


@dataclass(frozen=True)
class ODE:
    """dy = f(t, y) dt with ``f(t, y, *args) -> (B, *)``."""

    drift: Field
    args: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class SDE:
    """dy = f(t, y) dt + g dW, where ``noise`` says what g depends on.

    With ``noise="additive"`` the diffusion is ``g(t) -> () or (B,)``; with ``noise="diagonal"`` it is
    ``g(t, y, *args) -> (B, *)``, multiplied elementwise, in the sense of Ito.

    Args:
        drift, diffusion: f and g.
        noise: "additive" or "diagonal".
        args: passed to the functions.
        diffusion_derivative: dg_i / dy_i of diagonal noise as ``(t, y, *args) -> (B, *)``, for methods that
            use it; found by automatic differentiation when None.

    Raises:
        ValueError: ``noise`` is neither.
    """

    drift: Field
    diffusion: Callable[..., Tensor]
    noise: Literal["additive", "diagonal"] = "additive"
    args: tuple[Tensor, ...] = ()
    diffusion_derivative: Field | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.noise not in ("additive", "diagonal"):
            raise ValueError(f"noise must be 'additive' or 'diagonal', got {self.noise!r}")


@dataclass(frozen=True)
class Semilinear:
    """dy = [A(t) y + B(t) N(t, y)] dt + C(t) dW: a linear part that is solved exactly, and a remainder N.

    A, B and C are functions of times with shape (M,), float64 on the host, with values (M,) or (M, *D), one
    for every element of a sample with shape D.  They are called once per grid.

    Args:
        drift: N(t, y, *args) with shape (B, *).
        linear: A; not needed where ``integral`` is given; 0 when both are None.
        integral: a function with derivative A, in closed form, preferred to quadrature of A.
        source: B; 1 when None.
        diffusion: C, additive noise; none when None.
    """

    drift: Field
    linear: Callable[[Tensor], Tensor] | None = None
    integral: Callable[[Tensor], Tensor] | None = None
    source: Callable[[Tensor], Tensor] | None = None
    diffusion: Callable[[Tensor], Tensor] | None = None
    args: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Recursion:
    """y_s = a y_t + b N(t, y_t) + c z with ``coefficients(ts, ss) -> (a, b, c)`` for whole grids at once.

    Args:
        drift: N(t, y, *args) with shape (B, *), one evaluation per step.
        coefficients: maps the start times and end times of all steps (float64, shape (N,)) to three tensors
            with shape (N,).
        noisy: whether c differs from zero, that is, whether a noise source is needed.
    """

    drift: Field
    coefficients: Coefficients
    noisy: bool = True
    args: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Spread:
    """A recursion whose noise depends on the state: y_s = a y_t + b N + c_0^(1 - v) c_1^v z, by elements.

    Args:
        drift: (t, y, *args) -> (N, v), each with shape (B, *), from one evaluation.
        coefficients: maps the start times and end times of all steps (float64, shape (N,)) to the four
            tensors a, b, c_0 and c_1 with shape (N,); c_0 and c_1 are not negative, and a step with one of
            them 0 draws nothing.
        args: as for ``Recursion``.
    """

    drift: Callable[..., tuple[Tensor, Tensor]]
    coefficients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    args: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Scheme:
    """Steps that are linear combinations of the state, of evaluations and of a draw (``solvers.schemes``).

    Args:
        drift: N(t, y, *args) with shape (B, *).
        rule: one step, a function of ``solvers.schemes.Steps`` with a ``Form`` as its value.
        scale: times (M,) -> (P, Q), each with shape (M,): what the rule calls an evaluation is P y + Q N;
            N itself when None.
        noisy: whether the rule uses the draw, that is, whether a noise source is needed.
        separate_end: whether a last step that ends at this time is traced by itself, with ``Steps.last``.
    """

    drift: Field
    rule: Callable[[Any], Any]
    scale: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    noisy: bool = False
    separate_end: Callable[[Tensor], bool] | None = None
    args: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


Term = ODE | SDE | Semilinear | Recursion | Spread | Scheme
