"""Reverse-time equations of a model, as terms of ``solvers``: what a sampler integrates from noise to data.

The reverse family, eta >= 0, and its members 0 and 1, the probability-flow ODE and Anderson's reverse SDE:

    dx = [ f x - (1 + eta^2)/2 g^2 score(x, t) ] dt + eta g dW

With any prediction in place of the score the equation is semilinear, dx = [A x + B prediction] dt + eta g dW.
With n = sigma / alpha, n' = g^2 / (2 alpha sigma), kappa = 1 + eta^2, and R^2 = alpha^2 + sigma^2,

    prediction      integral of A                            B
    score           log alpha                                -kappa g^2 / 2
    noise           log alpha                                 kappa alpha n'
    data            log alpha + kappa log n                  -kappa alpha n' / n
    velocity        log R          (eta = 0)                  n' / (1 + n^2)

Integrated with the prediction held constant over a step, noise, data and velocity with eta = 0 give DDIM.

Formulas of the literature are schemes (``solvers.schemes``): a rule writes the step from t to s < t as a
combination of the state, of predictions and of a draw.  A rule sees ``ReverseSteps``, whose levels carry
alpha, sigma, their ratio nsr and lam = -log nsr.

A condition travels as the term's ``args``, one row per sample, and so follows its sample through a solver.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), section 4 and appendix D; Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential
Integrator" (2204.13902); Lu et al., "DPM-Solver++" (2211.01095); Salimans and Ho (2202.00512).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel, conversion
from sde_toolkit.sdes import ForwardSDE, ancestral_coefficients
from sde_toolkit.utils import Partial
from solvers import Form, Scheme, Semilinear, Spread, Steps, Term
from solvers.weights import kernel_weights

SEMILINEAR = ("score", "noise", "data", "velocity")
"""Predictions that a semilinear equation can be written with."""


ReverseEquation = Callable[[ScoreModel], Term]
"""model -> the term of x to integrate from T down; a condition is its ``args``."""


def reverse_sde(model: ScoreModel) -> Term:
    """Anderson's reverse SDE, eta = 1."""
    return model.sde.reverse(model)


def reverse_family(eta: float) -> ReverseEquation:
    """The reverse SDE with the given stochasticity.

    Raises:
        ValueError: eta negative or not finite.
    """
    _check_eta(eta)
    return Partial(_reverse, eta)


def _reverse(model: ScoreModel, eta: float) -> Term:
    return model.sde.reverse(model, eta)


def probability_flow(model: ScoreModel) -> Term:
    """The probability-flow ODE, eta = 0."""
    return model.sde.probability_flow(model)


def semilinear(predicts: str, eta: float = 0.0) -> ReverseEquation:
    """The reverse family with its linear part solved exactly, see the module's table.

    Args:
        predicts: one of ``SEMILINEAR``.
        eta: stochasticity; 0 for the velocity.

    Raises:
        ValueError: another prediction, or an eta out of range.
    """
    _check_eta(eta)
    if predicts not in SEMILINEAR:
        raise ValueError(f"predicts must be one of {', '.join(SEMILINEAR)}, got {predicts!r}")
    if predicts == "velocity" and eta:
        raise ValueError(f"the velocity form is that of the ODE: eta must be 0, got {eta}; take 'data'")
    return Partial(_semilinear_term, predicts, eta)


def _semilinear_term(model: ScoreModel, predicts: str, eta: float) -> Semilinear:
    field = {
        "score": model.score,
        "noise": model.noise,
        "data": model.denoise,
        "velocity": model.velocity,
    }[predicts]
    return replace(
        linear_part(model.sde, predicts, eta), drift=lambda t, x, *condition: field(x, t, *condition)
    )


def linear_part(sde: ForwardSDE, predicts: str, eta: float) -> Semilinear:
    """A, B and C of the module's table, with no field yet."""
    kappa = 1 + eta**2

    def slope(t: Tensor) -> Tensor:  # alpha n'
        return sde.g_squared(t) / (2 * sde.sigma(t))

    integral: dict[str, Callable[[Tensor], Tensor]] = {
        "score": sde.log_alpha,
        "noise": sde.log_alpha,
        "data": lambda t: sde.log_alpha(t) + kappa * sde.nsr(t).log(),
        "velocity": lambda t: sde.log_alpha(t) + 0.5 * torch.log1p(sde.nsr(t).square()),
    }
    source: dict[str, Callable[[Tensor], Tensor]] = {
        "score": lambda t: -0.5 * kappa * sde.g_squared(t),
        "noise": lambda t: kappa * slope(t),
        "data": lambda t: -kappa * slope(t) / sde.nsr(t),
        "velocity": lambda t: slope(t) / (sde.alpha(t) * (1 + sde.nsr(t).square())),
    }
    diffusion = None if eta == 0 else lambda t: eta * sde.g(t)
    return Semilinear(
        lambda t, x: x, integral=integral[predicts], source=source[predicts], diffusion=diffusion
    )


class NoiseLevels(NamedTuple):
    """Noise levels of N steps at one of their times, each with shape (N,) in float64."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    nsr: Tensor
    lam: Tensor


def _level(sde: ForwardSDE, time: Tensor) -> NoiseLevels:
    nsr = sde.nsr(time)
    return NoiseLevels(time, sde.alpha(time), sde.sigma(time), nsr, -nsr.log())


Clock = Callable[[ForwardSDE, Tensor], Tensor]
"""A monotone function of the time, such as ``in_time``, ``in_nsr``, ``in_lam``."""


def in_time(sde: ForwardSDE, t: Tensor) -> Tensor:
    """The time t itself, with the shape of t."""
    return t


def in_nsr(sde: ForwardSDE, t: Tensor) -> Tensor:
    """nsr = sigma / alpha, with the shape of t."""
    return sde.nsr(t)


def in_lam(sde: ForwardSDE, t: Tensor) -> Tensor:
    """lam = log(alpha / sigma), with the shape of t."""
    return sde.lam(t)


def in_angle(sde: ForwardSDE, t: Tensor) -> Tensor:
    """arctan(nsr), with the shape of t."""
    return sde.nsr(t).arctan()


class ReverseSteps:
    """N steps of a reverse run as the rules of the literature see them.

    Attributes:
        t, s: levels where the steps start and end.
        past: the levels of earlier evaluations, the latest first.
        x, z: the state at t and the draw of the step, as forms.
        m: predictions as forms, the newest first: at t, then at ``past``.
        h: lam_s - lam_t with shape (N,), positive.
        order: the number of predictions at hand.
        last: whether this is the last step, treated by itself because it goes to sigma = 0, or because
            the method ends in its own way.
    """

    def __init__(self, sde: ForwardSDE, steps: Steps, grid: NoiseLevels) -> None:
        self._sde, self._steps = sde, steps
        tables = [steps.of(table, len(steps.past)) for table in grid]
        self.t, self.s, *past = (NoiseLevels(*entry) for entry in zip(*tables, strict=True))
        self.past = tuple(past)
        self.x, self.z, self.m = steps.y, steps.z, steps.values
        self.h = self.s.lam - self.t.lam
        self.order, self.last = steps.order, steps.last

    def level(self, time: Tensor) -> NoiseLevels:
        """The levels at times with shape (N,)."""
        return _level(self._sde, time)

    def at_lam(self, lam: Tensor) -> NoiseLevels:
        """The levels where log(alpha / sigma) has the given values (N,)."""
        return self.level(self._sde.inverse_nsr((-lam).exp()))

    def at_nsr(self, nsr: Tensor) -> NoiseLevels:
        """The levels where sigma / alpha has the given values (N,)."""
        return self.level(self._sde.inverse_nsr(nsr))

    def adams(self, predicts: str, clock: Clock) -> Form:
        """x at s when the predictions, joined by a polynomial in ``clock``, are integrated exactly.

        With R^2 = alpha^2 + sigma^2 and d nsr = -nsr dlam, the forms of the module's table are

            noise       x_s / alpha_s = x_t / alpha_t - int nsr z_hat dlam
            score       x_s / alpha_s = x_t / alpha_t + int nsr sigma score dlam
            data        x_s / sigma_s = x_t / sigma_t + int x0_hat / nsr dlam
            velocity    x_s / R_s     = x_t / R_t     - int nsr / (1 + nsr^2) v_hat / R dlam
        """
        t, s, sde = self.t, self.s, self._sde
        to_zero = self.last and not bool(s.sigma.all())
        if to_zero and predicts == "data" and self.order == 1:
            return s.alpha * self.m[0]

        def norm(u: NoiseLevels) -> Tensor:
            return (u.alpha.square() + u.sigma.square()).sqrt()

        kernels: dict[str, Callable[[NoiseLevels], Tensor]] = {
            "noise": lambda u: -u.nsr,
            "score": lambda u: u.nsr * u.sigma,
            "data": lambda u: 1 / u.nsr,
            "velocity": lambda u: -u.nsr / (1 + u.nsr.square()) / norm(u),
        }
        scale: dict[str, Callable[[NoiseLevels], Tensor]] = {
            "noise": lambda u: u.alpha,
            "score": lambda u: u.alpha,
            "data": lambda u: u.sigma,
            "velocity": norm,
        }
        # on the way to sigma = 0 the integral is taken over nsr
        level = self.at_nsr if to_zero else self.at_lam
        start, end = (t.nsr, s.nsr) if to_zero else (t.lam, s.lam)

        def kernel(u: Tensor) -> Tensor:
            here = level(u)
            return kernels[predicts](here) * (-1 / here.nsr if to_zero else 1.0)

        nodes = [clock(sde, node.time) for node in (t, *self.past)]
        weights = kernel_weights(kernel, nodes, start, end, lambda u: clock(sde, level(u).time))
        x = self.x / scale[predicts](t)
        for w, m in zip(weights, self.m, strict=True):
            x = x + w * m
        return scale[predicts](s) * x

    def evaluate(self, level: NoiseLevels, x: Form) -> Form:
        """The prediction at a level and a state.

        Raises:
            ValueError: sigma is 0 there.
        """
        self._need_noise(level)
        return self._steps.evaluate(level.time, x)

    def evaluate_end(self, x: Form) -> Form:
        """The prediction at s, which serves the next step as m[0]."""
        self._need_noise(self.s)
        return self._steps.evaluate_end(x)

    @staticmethod
    def _need_noise(level: NoiseLevels) -> None:
        if not bool((level.sigma > 0).all()):
            raise ValueError(
                "a step evaluates the model where sigma = 0; raise t_min, or lower the order of the last step"
            )


Rule = Callable[[ReverseSteps], Form]


def scheme(rule: Rule, predicts: str, *, noisy: bool = False) -> ReverseEquation:
    """The equation of a model for a rule of the literature.

    Args:
        rule: one step as a form.
        predicts: what the rule calls a prediction: "noise", "data", "velocity" or "score"; or "drift", the
            probability flow dx/dt.
        noisy: whether the rule uses the draw.

    ``SchemeMethod.prepare`` turns the rule into numbers for one grid.
    """
    return Partial(_scheme_term, rule, predicts, noisy)


def _scheme_term(model: ScoreModel, rule: Rule, predicts: str, noisy: bool) -> Term:
    sde = model.sde

    def scale(t: Tensor) -> tuple[Tensor, Tensor]:
        drift = predicts == "drift"
        wanted = "score" if drift else predicts
        keep, factor = conversion(model.predicts, wanted, sde.alpha(t), sde.sigma(t), model.data_std)
        if not drift:
            return keep, factor
        half = -0.5 * sde.g_squared(t)
        return sde.f(t) + half * keep, half * factor

    def step(steps: Steps) -> Form:
        return rule(ReverseSteps(sde, steps, _level(sde, steps.grid)))

    def noiseless(t: Tensor) -> bool:
        return bool(sde.sigma(t) == 0)

    return Scheme(lambda t, x, *condition: model.raw(x, t, *condition), step, scale, noisy, noiseless)


def learned_steps(model: ScoreModel) -> Spread:
    """The steps of DDPM with the variances that the model has learned (2102.09672, eq. 15).

    Raises:
        ValueError: it has none.
    """
    sde = model.sde
    if not model.learned_variance:
        raise ValueError(
            'variance="learned" needs a model with learned variances, got one without; take "small" or '
            '"large", or train IndexedModel(..., learned_variance=True)'
        )

    def coefficients(ts: Tensor, ss: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t, s = (_level(sde, time) for time in (ts, ss))
        levels = (t.alpha, t.sigma, s.alpha, s.sigma)
        a, b, small = ancestral_coefficients(*levels)
        _, _, large = ancestral_coefficients(*levels, variance="large")
        keep, factor = conversion(model.predicts, "data", t.alpha, t.sigma, model.data_std)
        return a + b * keep, b * factor, small, large

    return Spread(lambda t, x, *condition: model.raw_and_fraction(x, t, *condition), coefficients)


def _check_eta(eta: float) -> None:
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a finite number >= 0, got {eta}; 1 is the reverse SDE, 0 its flow")
