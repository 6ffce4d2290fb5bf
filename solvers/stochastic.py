"""One-step methods for stochastic differential equations, driven by increments W and areas H over each step.

Additive noise, dy = f(t, y) dt + g(t) dW.  A stochastic Runge-Kutta method takes the step from t to
s = t + h by

    k_i = f(t + c_i h, Y_i),     Y_i = y + h sum_{j<i} a_ij k_j + g_m (w_i W + a_i H),
    y_s = y + h sum_i b_i k_i + g_m W - (g(s) - g(t)) H,          g_m = (g(t) + g(s)) / 2,

whose last two terms are the stochastic integral of a linear g, exactly.  With
I = int_t^s (W_r - W_t) dr / h = W / 2 + H, the conditions for strong order 3/2 and weak order 2 are

    sum b_i = 1,    sum b_i c_i = 1/2,    sum b_i n_i = I,    sum b_i E[n_i^2] = |h| / 2,

n_i = w_i W + a_i H being the noise in stage i and E[n_i^2] = |h| (w_i^2 + a_i^2 / 12).  Methods that use W
alone have strong order 1, and weak order 2 if they meet the conditions with W / 2 in place of I (Heun).  The
error estimate is the difference to y + h sum_i b^_i k_i + g(t) W, which is the step of Euler-Maruyama where
b^ weights the first stage alone.  It measures changes of the drift and of the diffusion and falls like
|h|^error_order.

Diagonal noise, dy_i = f_i dt + g_i(t, y_i) dW_i in the sense of Ito (Milstein):

    y_s = y + h f + g W + g (dg/dy) (W^2 - |h|) / 2.

References: Roessler, "Runge-Kutta Methods for the Strong Approximation of Solutions of Stochastic
Differential Equations" (SIAM J. Numer. Anal. 48, 2010), for SRA1; Foster, dos Reis and Strange, "High order
splitting methods for SDEs satisfying a commutativity condition" (2210.17543), for ShARK;
Rackauckas and Nie, "Stability-optimized high order methods and stiffness detection for pathwise stiff
stochastic differential equations" (1804.04344), for SOSRA; Kloeden and Platen, "Numerical Solution of
Stochastic Differential Equations", section 10.3 (Milstein).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.brownian import BrownianMotion
from solvers.control import FixedGrid
from solvers.dense import combine
from solvers.interval import Interval, Step
from solvers.methods import Method, Numbers, diffusions, increment, matching, plus, root
from solvers.terms import SDE, expand_like

_SQRT_12 = math.sqrt(12)


@dataclass(frozen=True, kw_only=True)
class AdditiveRungeKutta(Method):
    """A stochastic Runge-Kutta method for additive noise given by its tableau.

    Args:
        name, order, strong_order, weak_order: declared facts, see ``Method``.
        a: rows of the lower triangle, without the empty first row.
        b: weights of the solution.
        c: nodes of the stages after the first.
        w: coefficient of W in every stage.
        area: coefficient of H in every stage; None for a method that uses W alone.
        b_error: b minus the embedded weights, or None.
        error_order: power of the step size with which the error estimate falls.

    Raises:
        ValueError: tuples of inconsistent lengths.
    """

    name: str
    order: int
    strong_order: float
    weak_order: float
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    w: tuple[float, ...]
    area: tuple[float, ...] | None = None
    b_error: tuple[float, ...] | None = None
    error_order: float | None = None
    terms = (SDE,)

    def __post_init__(self) -> None:
        stages = len(self.b)
        rows = (self.w, self.w if self.area is None else self.area)
        if len(self.a) != stages - 1 or len(self.c) != stages - 1 or any(len(r) != stages for r in rows):
            raise ValueError(
                f"{self.name}: {stages} weights need {stages - 1} rows in a, as many nodes c, and {stages} "
                "coefficients in w and area"
            )

    @property
    def nfe_per_step(self) -> int:  # type: ignore[override]
        """Number of stages."""
        return len(self.b)

    @property
    def has_error(self) -> bool:  # type: ignore[override]
        """Whether the tableau has an embedded pair."""
        return self.b_error is not None

    def prepare(self, term: SDE, grid: FixedGrid, like: Tensor) -> Numbers | None:
        """The diffusion at all times, where it is one number per time."""
        return diffusions(term, grid)

    def start(self, term: SDE, t: Tensor, y: Tensor, plan: Numbers | None) -> Numbers | None:
        """The plan."""
        return plan

    def step(
        self,
        term: SDE,
        interval: Interval,
        y: Tensor,
        carry: Numbers | None,
        noise: BrownianMotion | None,
    ) -> Step:
        """Stages, solution and embedded error."""
        assert noise is not None
        number, t, s, h = interval
        if self.area is None:
            z_w, z_h = increment(noise, interval, y), None
        else:
            z_w, z_h = (matching(z, y) for z in noise.increment_and_area(interval))
        numbers = carry
        g_t: float | Tensor
        g_s: float | Tensor
        if numbers is None:
            g_t, g_s = expand_like(term.diffusion(t), y), expand_like(term.diffusion(s), y)
        else:
            g_t, g_s = numbers[number], numbers[number + 1]
        deviation, mean = root(h), (g_t + g_s) / 2
        unit = mean * deviation
        total = unit * z_w
        if z_h is not None:
            total = plus(total, (g_t - g_s) * (deviation / _SQRT_12), z_h)
        k: list[Tensor] = []
        for i, (row, c) in enumerate(zip(((), *self.a), (0.0, *self.c), strict=True)):
            stage = plus(y, h, combine(row, k)) if any(row) else y
            if self.w[i]:
                stage = plus(stage, unit if self.w[i] == 1 else self.w[i] * mean * deviation, z_w)
            if self.area is not None and z_h is not None and self.area[i]:
                stage = plus(stage, self.area[i] / _SQRT_12 * mean * deviation, z_h)
            k.append(term.drift(t if c == 0 else s if c == 1 else torch.lerp(t, s, c), stage))
        error = None
        if self.b_error is not None:
            error = h * combine(self.b_error, k) + plus(total, -(g_t * deviation), z_w)
        return Step(plus(y, h, combine(self.b, k)) + total, error, carry)


STOCHASTIC_HEUN = AdditiveRungeKutta(
    name="stochastic_heun",
    order=2,
    strong_order=1.0,
    weak_order=2.0,
    a=((1.0,),),
    b=(1 / 2, 1 / 2),
    c=(1.0,),
    w=(0.0, 1.0),
    b_error=(-1 / 2, 1 / 2),  # against Euler-Maruyama
    error_order=1.5,
)
SRA1 = AdditiveRungeKutta(
    name="sra1",
    order=2,
    strong_order=1.5,
    weak_order=2.0,
    a=((3 / 4,),),
    b=(1 / 3, 2 / 3),
    c=(3 / 4,),
    w=(0.0, 3 / 4),
    area=(0.0, 3 / 2),
    b_error=(-2 / 3, 2 / 3),
    error_order=1.5,
)
SHARK = AdditiveRungeKutta(
    name="shark",
    order=2,
    strong_order=1.5,
    weak_order=2.0,
    a=((5 / 6,),),
    b=(2 / 5, 3 / 5),
    c=(5 / 6,),
    w=(0.0, 5 / 6),
    area=(1.0, 1.0),
    b_error=(-3 / 5, 3 / 5),
    error_order=1.5,
)


def _sosra() -> AdditiveRungeKutta:
    """The published digits; the noise of stage i is B_i (W / 2 + H)."""
    a32, a3 = 4.1609142252828395, -3.1609142252828395
    b_2, b_31, b_32 = 1.3371632704399763, 1.442371048468624, 1.8632741501139225
    b = (0.2889874966892885, 0.6859880440839937, 0.025024459226717772)
    noise = (0.0, b_2, b_31 + b_32)
    return AdditiveRungeKutta(
        name="sosra",
        order=2,
        strong_order=1.5,
        weak_order=2.0,
        a=((0.6923962376159507,), (a3, a32)),
        b=b,
        c=(0.6923962376159507, 1.0),
        w=tuple(x / 2 for x in noise),
        area=noise,
        b_error=(b[0] - 1, b[1], b[2]),
        error_order=1.5,
    )


SOSRA = _sosra()


@dataclass(frozen=True)
class Milstein(Method):
    """y_s = y + h f + g W + g g' (W^2 - |h|) / 2: strong order 1 for diagonal noise, weak order 1.

    g' is the elementwise derivative of the diffusion, from the term where it states one and otherwise by
    automatic differentiation, which needs that g_i depends on y_i alone.  With additive noise the step is
    that of Euler-Maruyama.
    """

    name: str = "milstein"
    terms = (SDE,)
    order: int = 1
    strong_order: float = 1.0
    weak_order: float = 1.0
    diagonal_strong_order: float = 1.0
    nfe_per_step: int = 1

    def start(self, term: SDE, t: Tensor, y: Tensor, plan: None) -> None:
        """Nothing to prepare."""

    def step(
        self, term: SDE, interval: Interval, y: Tensor, carry: None, noise: BrownianMotion | None
    ) -> Step:
        """One drift, one diffusion with its derivative, one draw."""
        _, t, _, h = interval
        deviation = root(h)
        w, variance = deviation * increment(noise, interval, y), deviation * deviation
        moved = y + h * term.drift(t, y)
        if term.noise == "additive":
            return Step(moved + expand_like(term.diffusion(t), y) * w, None, None)
        g, product = diffusion_and_product(term, t, y)
        return Step(moved + g * w + product * ((w.square() - variance) / 2), None, None)


def diffusion_and_product(term: SDE, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """g and g dg/dy, elementwise, of a term with diagonal noise, each with the shape (B, *) of y."""
    if term.diffusion_derivative is not None:
        g = term.diffusion(t, y, *term.args)
        return g, g * term.diffusion_derivative(t, y, *term.args)
    g, pullback = torch.func.vjp(lambda x: term.diffusion(t, x, *term.args), y)[:2]
    return g, pullback(g)[0]


MILSTEIN = Milstein()
