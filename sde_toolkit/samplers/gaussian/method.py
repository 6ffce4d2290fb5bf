"""The Gaussian-residual sampler: the data's Gaussian in closed form, and only the residual integrated.

In the scale-free state y = x_t / alpha with the clock n = sigma / alpha (the noise-to-signal ratio) the
probability flow is dy/dn = z_hat(y, n).  Data with mean m and covariance S = U diag(l) U^T
(``sde_toolkit.models.moments``) would have z_hat = n (S + n^2)^{-1} (y - m) if they were Gaussian, and in
whitened coordinates u only what is not Gaussian moves:

    u = (l + n^2)^{-1/2} U^T (y - m),    du/dn = (l + n^2)^{-1/2} r,    r = U^T z_hat - n (l + n^2)^{-1/2} u

Along an axis with standard deviation s_i = l_i^{1/2} the residual is largest where n is about s_i: above, the
noise hides what is not Gaussian there, and below z_hat = -n grad log p falls like n itself.  So it is written
r_i = e_i(n) q_i with the envelope e_i(n) = n (l_i + n^2)^{-(1 + b) / 2}.  Then q is smooth at n = 0; it is
joined by polynomials in a variable v(n), and a step from n to n' is exact for them:

    u' = u + sum_j w_j q_j,              w_j = int_n^n' e(p) (l + p^2)^{-1/2} l_j(v(p)) dp

One value of q is known without an evaluation and serves as a node: q = 0 at n = infinity, where the data look
Gaussian.  So the run needs no start-up and the way from T to the first evaluation is closed form.  Every
evaluation is used twice: it corrects the step that led to it (with the new node), then predicts the next one.
N evaluations, at t_1 > ... > t_N; the first and the last step, T to t_1 and t_N to t_min, take none of their
own.

The variable v and the clock tau, in which evaluations are equally spaced, follow the whole spectrum
(``sde_toolkit.samplers.gaussian.clock``): with s_i the standard deviations of the axes,

    dv   / d ln n = ( sum_i l_i arctan'(n / (c_v s_i))^{1 / k_v} / sum l )^{k_v}
    dtau / d ln n = ( sum_i l_i arcsinh'(n / (c_a s_i))^{1 / k_a} / sum l )^{k_a} (1 + n^2 / c_b^2)^{-p / 2}

where f'(r) stands for r df / dr.  Few evaluations cannot resolve thin axes, whose error stays below l_i then:
k_a = k_0 + k_1 / N lets them go to the wide ones.  Both ends, n = 0 and n = infinity, are at a finite
distance.  Between the largest and the smallest s_i both are about logarithmic, so that polynomials see every
axis at its own scale; with one scale v = arctan(n / (c_v s)).  The length c_b is a multiple of one scale of
the data, s = (sum l^2 / sum l)^{1/2}, the standard deviation along the axes weighted by their variance.

With noise, eta > 0, the reverse family is dy = (1 + eta^2) z_hat dn + eta (2 n)^{1/2} dW.  What the Gaussian
makes of it is closed form again,

    u' = rho u + (1 - rho^2)^{1/2} z,                rho(n', n) = ((l + n'^2) / (l + n^2))^{eta^2 / 2},

and the weights of the residual get the factor (1 + eta^2) rho(n', p); a correction keeps the step's draw.

Where n is not far below s, the noise has smoothed the residual, and more nodes predict it better; further
below, where thin parts of the data show, more nodes amplify what is rough.  So steps from n > c_n s take one
node more, in runs long enough to have it.  Networks' residuals are rough everywhere: for them no step does.

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
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sde_toolkit.models import Moments, ScoreModel, conversion, known_moments
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.gaussian.folded import FoldedPlan, Window, fold, folds
from sde_toolkit.samplers.gaussian.grid import (
    CONSTANTS,
    NETWORK_CONSTANTS,
    NOISY_CONSTANTS,
    ROUGH_CONSTANTS,
    Constants,
    ResidualGrid,
)
from sde_toolkit.samplers.gaussian.low_rank import LowRankCarry, LowRankPlan, make_low_rank_plan
from sde_toolkit.samplers.gaussian.plan import Carry, Plan, Tables, make_plan
from sde_toolkit.samplers.gaussian.residual import Residual
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.samplers.starts import Start
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import checked
from solvers import BrownianMotion, FixedGrid, Interval, Method, Semilinear, Step
from solvers.methods import increment

AnyPlan = Plan | FoldedPlan | LowRankPlan
AnyCarry = Carry | Window | LowRankCarry


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

    def prepare(self, term: RawFlow, grid: FixedGrid, like: Tensor) -> AnyPlan:
        """The coefficients of all steps."""
        tables = self._tables(term, grid.ts)
        if self.moments.kind == "low_rank":
            return make_low_rank_plan(tables, self.moments, like)
        return (fold if folds(tables) else make_plan)(tables, self.moments, like)

    def start(self, term: RawFlow, t: Tensor, y: Tensor, plan: AnyPlan) -> AnyCarry:
        """The start, and no evaluations yet."""
        return plan.start(y)

    def replaced(self, carry: AnyCarry) -> AnyCarry:
        """There is nothing to correct."""
        return carry.without_prediction()

    def step(
        self,
        term: RawFlow,
        interval: Interval,
        y: Tensor,
        carry: AnyCarry,
        noise: BrownianMotion | None,
    ) -> Step:
        """The first step is a closed form; every other evaluates, corrects and predicts."""
        raw = term.drift(interval.t, y) if interval.number else None
        z = increment(noise, interval, y) if self.eta else None
        y, carry = carry.plan.step(interval.number, y, carry, raw, z)  # type: ignore[arg-type]
        return Step(y, None, carry)

    def _tables(self, term: RawFlow, ts: Tensor) -> Tables:
        sde = term.sde
        alpha, sigma, nsr = (f(ts)[:, None] for f in (sde.alpha, sde.sigma, sde.nsr))
        std = (alpha.square() * self.moments.distinct + sigma.square()).sqrt()
        residual = Residual(self.moments, self.constants, self.eta, nsr[:, 0])
        factor = residual.shrink(nsr[:-1], nsr[1:])
        # z_hat = keep x + scaled raw, at the evaluations
        keep, scaled = conversion(term.predicts, "noise", alpha[1:-1], sigma[1:-1], term.data_std)
        correctors, predictors = residual.nodes()
        units = scaled / residual.envelope(nsr[1:-1])
        predicted = residual.table(predictors, units, 1)
        corrected = residual.table(correctors[:-1], units, 0)
        # the correction of a step is made by the next: what predicted it goes, one evaluation older by then
        corrected[:, 1:] -= predicted[:-1, :-1]
        corrected = factor[:, None] * torch.cat([torch.zeros_like(predicted[:1]), corrected])
        end = std[1:]
        used = [[k for _, k in chosen if k is not None] for chosen in predictors]
        older = [[], *([k + 1 for k in which] for which in used[:-1])]
        newer = [[], *([k for _, k in chosen if k is not None] for chosen in correctors[:-1])]
        return Tables(
            mean=alpha * self.moments.mean.flatten(),
            shift=keep / scaled,
            mix=(keep - sigma[1:-1] / std[1:-1].square()) / scaled,
            keep=factor * end / std[:-1],
            spread=(1 - factor.square()).sqrt() * end if self.eta else None,
            usual=end[:, None] * (corrected + predicted),
            moved=end[:, None] * predicted,
            used=[sorted({*a, *b, *c}) for a, b, c in zip(used, older, newer, strict=True)],
            used_moved=used,
        )


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


def _noise_network(model: ScoreModel) -> bool:
    return model.predicts in ("noise", "score") and not model.exact


@checked
def gaussian_residual(
    model: ScoreModel,
    num_steps: int = 20,
    *,
    t_min: float = T_MIN,
    moments: Moments | None = None,
    eta: float = 0.0,
) -> Sampler:
    """The Gaussian with the data's moments in closed form, the residual by polynomials of 4 to 7 nodes;
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
    if eta:
        constants = NOISY_CONSTANTS
    elif _noise_network(model):
        constants = NETWORK_CONSTANTS
    else:
        constants = CONSTANTS if model.exact else ROUGH_CONSTANTS
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
