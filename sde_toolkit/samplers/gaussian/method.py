"""The Gaussian-residual sampler: the data's Gaussian in closed form, and only the residual integrated.

In the scale-free state y = x_t / alpha with the clock n = sigma / alpha (the noise-to-signal ratio) the
probability flow is dy/dn = z_hat(y, n).  Data with mean m and covariance S = U diag(l) U^T
(``sde_toolkit.models.moments``) would have z_hat = n (S + n^2)^{-1} (y - m) if they were Gaussian, and in
whitened coordinates u only what is not Gaussian moves:

    u = (l + n^2)^{-1/2} U^T (y - m),    du/dn = (l + n^2)^{-1/2} r,    r = U^T z_hat - n (l + n^2)^{-1/2} u

The residual is written r = e(n) q with the envelope e(n) = (c_e^2 + n^2)^{-b/2}, since it falls off where
noise dominates; q is joined by polynomials in v = arctan(n / c_v), and a step from n to n' is exact for them:

    u' = u + sum_j w_j q_j,              w_j = int_n^n' e(p) (l + p^2)^{-1/2} l_j(v(p)) dp

Two values of q are known without an evaluation and serve as nodes: q = 0 at n = infinity, where the data look
Gaussian, and q = 0 at n = 0, where a density leaves no noise to be found.  So the run needs no start-up, the
way from T to the first evaluation is closed form, and the last step interpolates.  Every evaluation is used
twice: it corrects the step that led to it (with the new node), then predicts the next one.  N evaluations, at
t_1 > ... > t_N; the first and the last step, T to t_1 and t_N to t_min, take none of their own.

The evaluations are equally spaced in a clock that the spectrum l makes,

    d tau = sum_i w_i (n^2 + c_a^2 l_i)^{-1/2} (1 + n^2 / c_b^2)^{-p/2} dn,        w_i = l_i^g / sum l^g

logarithmic in the middle and with both ends, n = 0 and n = infinity, at a finite distance.  The lengths c_b,
c_e and c_v are fixed multiples (``Constants``) of one scale of the data, s = (sum l^2 / sum l)^{1/2}, the
standard deviation along the axes weighted by their variance.

With noise, eta > 0, the reverse family is dy = (1 + eta^2) z_hat dn + eta (2 n)^{1/2} dW.  What the Gaussian
makes of it is closed form again,

    u' = rho u + (1 - rho^2)^{1/2} z,                rho(n', n) = ((l + n'^2) / (l + n^2))^{eta^2 / 2},

and the weights of the residual get the factor (1 + eta^2) rho(n', p); a correction keeps the step's draw.

Not promised: an order of convergence for networks, whose predictions are not smooth, or equal accuracy where
the moments are those of other data.  With moments that are diagonal or scalar, less is done in closed form.

References: Zhang and Chen, DEIS (2204.13902) and Lu et al., DPM-Solver++ (2211.01095) for exponential
multistep methods in the ratio; Zhao et al., UniPC (2302.04867) for the corrector without evaluations; Wang
and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation" (2412.09726) for the
Gaussian's own flow.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models import Moments, ScoreModel, conversion, known_moments
from sde_toolkit.samplers.gaussian.folded import FoldedPlan, Window, fold, folds
from sde_toolkit.samplers.gaussian.grid import CONSTANTS, NOISY_CONSTANTS, Constants, ResidualGrid
from sde_toolkit.samplers.gaussian.plan import Carry, Plan, Tables, make_plan
from sde_toolkit.samplers.sampler import T_MIN, Sampler
from sde_toolkit.samplers.starts import Start
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import checked
from solvers import BrownianMotion, FixedGrid, Interval, Method, Semilinear, Step
from solvers.methods import increment
from solvers.weights import lagrange

_POINTS = 24
"""Gauss-Legendre points per step, in arcsinh(5 n / s)."""

_MOST_ELEMENTS = 1 << 21

_BEFORE = math.pi / 2
_AFTER = 0.0
"""Values of v at infinite and at no noise, where the residual vanishes."""


Nodes = list[tuple[float, int | None]]
"""Values of v, and which evaluation they belong to, the newest is 0; None where q is known to vanish."""


@dataclass(frozen=True)
class RawFlow(Semilinear):
    """The flow of a model whose drift is what the model puts out; its conversion and the linear part go into
    the weights.

    Args:
        sde: the forward process.
        predicts, data_std: what the model puts out, as for ``ScoreModel``.
    """

    sde: ForwardSDE = field(kw_only=True)
    predicts: str = "noise"
    data_std: float = 1.0


@dataclass(frozen=True)
class ResidualAdams(Method):
    """The method of the module's head, on a ``ResidualGrid`` or any other whose first step is closed form.

    It integrates the reverse family of a model as ``RawFlow`` terms.

    Args:
        moments: of the data.
        constants: lengths and counts.
        eta: stochasticity.
    """

    moments: Moments
    constants: Constants = CONSTANTS
    eta: float = 0.0
    name: str = "residual_adams"
    terms = (RawFlow,)
    nfe_per_step: int = 1
    nfe_extra: int = -1

    @property
    def order(self) -> int:  # type: ignore[override]
        """At least 3 for smooth predictions; the step from T and the fractional power of the envelope keep it
        below the number of nodes."""
        return min(self.constants.nodes, 3)

    @property
    def strong_order(self) -> float | None:  # type: ignore[override]
        """1 with noise."""
        return 1.0 if self.eta else None

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        """1 with noise."""
        return 1.0 if self.eta else None

    def prepare(self, term: RawFlow, grid: FixedGrid, like: Tensor) -> Plan | FoldedPlan:
        """The coefficients of all steps."""
        tables = self._tables(term, grid.ts)
        return (fold if folds(tables) else make_plan)(tables, self.moments, like)

    def start(self, term: RawFlow, t: Tensor, y: Tensor, plan: Plan | FoldedPlan) -> Carry | Window:
        """The start, and no evaluations yet."""
        return plan.start(y)

    def replaced(self, carry: Carry | Window) -> Carry | Window:
        """There is nothing to correct."""
        return carry.without_prediction()

    def step(
        self,
        term: RawFlow,
        interval: Interval,
        y: Tensor,
        carry: Carry | Window,
        noise: BrownianMotion | None,
    ) -> Step:
        """The first step is a closed form; every other evaluates, corrects and predicts."""
        raw = term.drift(interval.t, y) if interval.number else None
        z = increment(noise, interval, y) if self.eta else None
        y, carry = carry.plan.step(interval.number, y, carry, raw, z)  # type: ignore[arg-type]
        return Step(y, None, carry)

    @property
    def _longest(self) -> int:
        """Evaluations that a step may use."""
        return max(self.constants.nodes + 1, self.constants.corrector_nodes)

    def _tables(self, term: RawFlow, ts: Tensor) -> Tables:
        sde, scale = term.sde, self.moments.scale
        alpha, sigma, nsr = (f(ts)[:, None] for f in (sde.alpha, sde.sigma, sde.nsr))
        std = self.moments.marginal_variances(alpha[:, 0], sigma[:, 0]).sqrt()
        factor = self._shrink(nsr[:-1], nsr[1:])
        # z_hat = keep x + scaled raw, at the evaluations
        keep, scaled = conversion(term.predicts, "noise", alpha[1:-1], sigma[1:-1], term.data_std)
        v = torch.atan(nsr[:, 0] / (self.constants.bend * scale)).tolist()
        correctors, predictors = self._nodes(v)
        units = scaled / self._envelope(nsr[1:-1])
        predicted = self._table(nsr[:, 0], predictors, units, 1)
        corrected = self._table(nsr[:, 0], correctors[:-1], units, 0)
        # the correction of a step is made by the next: what predicted it goes, one evaluation older by then
        corrected[:, 1:] -= predicted[:-1, :-1]
        corrected = factor[:, None] * torch.cat([torch.zeros_like(predicted[:1]), corrected])
        end = std[1:]
        used = [[k for _, k in chosen if k is not None] for chosen in predictors]
        older = [[], *([k + 1 for k in which] for which in used[:-1])]
        newer = [[], *([k for _, k in chosen if k is not None] for chosen in correctors[:-1])]
        centre = alpha * self.moments.project(self.moments.mean.unsqueeze(0))
        return Tables(
            mean=alpha * self.moments.mean.flatten(),
            centre=centre,
            shift=keep / scaled * centre[1:-1],
            mix=(keep - sigma[1:-1] / std[1:-1].square()) / scaled,
            keep=factor * end / std[:-1],
            spread=(1 - factor.square()).sqrt() * end if self.eta else None,
            usual=end[:, None] * (corrected + predicted),
            moved=end[:, None] * predicted,
            used=[sorted({*a, *b, *c}) for a, b, c in zip(used, older, newer, strict=True)],
            used_moved=used,
        )

    def _shrink(self, start: Tensor, end: Tensor) -> Tensor:
        """rho(end, start), for ratios that broadcast against shape (n,)."""
        variances = self.moments.variances
        ratio = (variances + end.square()) / (variances + start.square())
        return ratio ** (self.eta**2 / 2)

    def _envelope(self, nsr: Tensor) -> Tensor:
        c = self.constants.envelope * self.moments.scale
        return (c**2 + nsr.square()) ** (-self.constants.power / 2)

    def _nodes(self, v: Sequence[float]) -> tuple[list[Nodes], list[Nodes]]:
        """The nodes of every step's corrector and predictor, from the values of v at all times."""
        corrector, predictor = [], []
        for i in range(len(v) - 1):
            predictor.append(self._pick(v[1 : i + 1][::-1], v[i + 1], self.constants.nodes))
            corrector.append(self._pick(v[1 : i + 2][::-1], v[i + 1], self.constants.corrector_nodes))
        return corrector, predictor

    def _pick(self, past: Sequence[float], end: float, count: int) -> Nodes:
        """The newest ``count`` nodes, the one at no noise among them if it is near enough to ``end``."""
        every: Nodes = [*((value, k) for k, value in enumerate(past)), (_BEFORE, None)]
        chosen = every[:count]
        distance = self.constants.reach * abs(end - _AFTER)
        nearer = sum(abs(value - end) <= distance for value, _ in chosen)
        if nearer == len(chosen) == count:
            return chosen
        return [*chosen[:nearer], (_AFTER, None), *chosen[nearer:]][:count]

    def _table(self, nsr: Tensor, nodes: Sequence[Nodes], units: Tensor, lag: int) -> Tensor:
        """Weights of the evaluations in every step with shape (N, K, n), those with equally many nodes made
        together.

        Args:
            nsr: at all times.
            nodes: of the first N steps.
            units: q over what is kept of an evaluation, with shape (M, 1).
            lag: evaluation k of step i has the entry i - k - lag there.
        """
        table = torch.zeros(len(nodes), self._longest, len(self.moments.variances), dtype=torch.float64)
        for count in {len(chosen) for chosen in nodes}:
            steps = [i for i, chosen in enumerate(nodes) if len(chosen) == count]
            at = torch.tensor([[value for value, _ in nodes[i]] for i in steps], dtype=torch.float64)
            index = torch.tensor(steps)
            weights = self._integrals(nsr[index], nsr[index + 1], at)
            chosen = [(m, j, i, nodes[i][j][1]) for m, i in enumerate(steps) for j in range(count)]
            used = [entry for entry in chosen if entry[3] is not None]
            if used:
                m, j, i, k = torch.tensor(used).unbind(1)
                table[i, k] = weights[m, j] * units[i - k - lag]
        return table

    def _integrals(self, start: Tensor, end: Tensor, at: Tensor) -> Tensor:
        """w_j with shape (M, k, n) for M steps; ``at`` with shape (M, k) are the values of v at the nodes."""
        scale, variances = self.moments.scale, self.moments.variances
        unit = 0.2 * scale
        x, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_POINTS))
        most = max(1, _MOST_ELEMENTS // (_POINTS * len(variances)))
        parts = []
        for a, b, nodes in zip(start.split(most), end.split(most), at.split(most), strict=True):
            first, last = torch.asinh(a / unit)[:, None], torch.asinh(b / unit)[:, None]
            clock = first + (last - first) * (x + 1) / 2
            n = unit * torch.sinh(clock)
            dn = (last - first) * (weight / 2) * unit * torch.cosh(clock) * self._envelope(n)
            basis = lagrange(torch.atan(n / (self.constants.bend * scale)), nodes) * dn[..., None]
            kernel = (variances + n.square()[..., None]).rsqrt()
            if self.eta:
                kernel = (1 + self.eta**2) * kernel * self._shrink(n[..., None], b[:, None, None])
            parts.append(torch.einsum("mqk,mqd->mkd", basis, kernel))
        return torch.cat(parts)


def _diffusion(sde: ForwardSDE, eta: float, t: Tensor) -> Tensor:
    return eta * sde.g(t)


@dataclass(frozen=True)
class ResidualFlow:
    """model -> the reverse family as a ``RawFlow``, for models of one event shape.

    Raises (when called):
        ValueError: a model of another event shape.
    """

    event_shape: tuple[int, ...]
    eta: float = 0.0

    def __call__(self, model: ScoreModel) -> RawFlow:
        """The term of this model."""
        if model.event_shape != self.event_shape:
            raise ValueError(
                f"this sampler was made for data with event shape {self.event_shape}, got a model of "
                f"{model.event_shape}; make one with gaussian_residual(model, num_steps)"
            )
        return RawFlow(
            lambda t, x, *condition: model.raw(x, t, *condition),
            diffusion=partial(_diffusion, model.sde, self.eta) if self.eta else None,
            sde=model.sde,
            predicts=model.predicts,
            data_std=model.data_std,
        )


@checked
def gaussian_residual(
    model: ScoreModel,
    num_steps: int = 20,
    *,
    t_min: float = T_MIN,
    moments: Moments | None = None,
    eta: float = 0.0,
) -> Sampler:
    """The Gaussian with the data's moments in closed form, the residual by polynomials of 5 and 6 nodes;
    ``num_steps`` evaluations in all.

    Args:
        model: what will be sampled, or another model of the same process and event shape.
        num_steps: evaluations, at least 1.
        t_min: end of the run.
        moments: of the data; the model's own when None, mean 0 and variance data_std^2 where it has none.
            Runs start from the Gaussian that they are at T, from the prior where the model has none.
        eta: stochasticity; 0 is the probability flow, 1 the reverse SDE.

    Raises:
        ValueError: an argument out of range, or moments of another event shape.
    """
    if operator.index(num_steps) < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    start: Start = "prior" if model.moments is None else "moments"
    start = start if moments is None else moments
    moments = known_moments(model) if moments is None else moments
    if moments.event_shape != model.event_shape:
        raise ValueError(f"moments must have the event shape {model.event_shape}, got {moments.event_shape}")
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a finite number >= 0, got {eta}; 0 is deterministic")
    constants = NOISY_CONSTANTS if eta else CONSTANTS
    return Sampler(
        "gaussian_residual",
        ResidualFlow(model.event_shape, eta),
        ResidualAdams(moments, constants, eta),
        num_steps + 1,
        t_min,
        ResidualGrid(moments, constants),
        denoise=False,
        start=start,
        options={"num_steps": num_steps, "moments": moments.kind, "eta": eta},
    )


@checked
def default(model: ScoreModel, num_steps: int = 20, *, t_min: float = T_MIN, eta: float = 0.0) -> Sampler:
    """The sampler that we recommend: ``gaussian_residual`` with the model's own moments.

    Arguments and errors are those of ``gaussian_residual``.

    Args:
        model: what will be sampled.
        num_steps: network evaluations, at least 1.
        t_min: end of the run.
        eta: stochasticity; 0 is the probability flow, 1 the reverse SDE.
    """
    return gaussian_residual(model, num_steps, t_min=t_min, eta=eta)
