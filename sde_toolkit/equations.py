"""Reverse-time equations of a model, as terms of ``solvers``: what a sampler integrates from noise to data.

The reverse family, eta >= 0, and its members 0 and 1, the probability-flow ODE and Anderson's reverse SDE:

    dx = [ f x - (1 + eta^2)/2 g^2 score(x, t) ] dt + eta g dW

One-step recursions, for a step from t to s < t, with r = alpha_t / alpha_s and q^2 = sigma_t^2 - r^2
sigma_s^2 (mean factor and variance of the forward transition from s to t):

    DDIM(eta)            x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) z_hat + v z,     v = eta sigma_s q /
    sigma_t
    reverse diffusion    x_s = (2 - r) x_t + q^2 score + q z

An ``Equation`` may be written in coordinates of its own, y instead of x, and may begin later than T where the
first part of the way is known in closed form.

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), section 4 and appendix E; Song, Meng and Ermon, "Denoising Diffusion Implicit Models"
(2010.02502), eq. 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.score import ScoreModel
from solvers import Recursion, Term


def _itself(x: Tensor) -> Tensor:
    return x


def _as_it_is(y: Tensor, t: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Equation:
    """A term, its coordinates, and the time at which it takes over.

    Args:
        term: the equation of y, in the process' time t.
        start: time of the first step; T unless the way from T to there is part of ``enter``.
        enter: x_T with shape (B, *) -> the state y at ``start``.
        leave: (y, t) -> x with shape (B, *).
    """

    term: Term
    start: float
    enter: Callable[[Tensor], Tensor] = _itself
    leave: Callable[[Tensor, Tensor], Tensor] = _as_it_is


def reverse_sde(model: ScoreModel) -> Equation:
    """Anderson's reverse SDE, eta = 1."""
    return Equation(model.sde.reverse(model), model.sde.T)


def probability_flow(model: ScoreModel) -> Equation:
    """The probability-flow ODE, eta = 0."""
    return Equation(model.sde.probability_flow(model), model.sde.T)


def ddim_step(model: ScoreModel, eta: float) -> Equation:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) z_hat + v z with v = eta sigma_s q / sigma_t."""
    sde = model.sde

    def coefficients(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma_t, sigma_s = sde.sigma(t), sde.sigma(s)
        shrink = (sde.nsr(s) / sde.nsr(t)).square()
        v = eta * sigma_s * (1 - shrink).sqrt()
        a = (sde.log_alpha(s) - sde.log_alpha(t)).exp()
        return a, (sigma_s.square() - v.square()).clamp(min=0).sqrt() - a * sigma_t, v

    return Equation(Recursion(lambda t, x: model.noise(x, t), coefficients, noisy=eta > 0), sde.T)


def reverse_diffusion_step(model: ScoreModel) -> Equation:
    """x_s = (2 - r) x_t + q^2 score + q z, with score = -z_hat / sigma_t."""
    sde = model.sde

    def coefficients(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = (sde.log_alpha(t) - sde.log_alpha(s)).exp()
        sigma_t = sde.sigma(t)
        q = sigma_t * (1 - (sde.nsr(s) / sde.nsr(t)).square()).sqrt()
        return 2 - r, -q.square() / sigma_t, q

    return Equation(Recursion(lambda t, x: model.noise(x, t), coefficients), sde.T)
