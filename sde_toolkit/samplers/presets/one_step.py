"""The samplers of DDPM, SMLD and the SDE framework.

    reverse family       dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dW      Euler-Maruyama, Heun, SRA
    probability flow     eta = 0                                                  Euler, Heun
    exponential          the same with f x solved exactly and the score held constant over a step

and one-step formulas, from t to s < t, with r = alpha_t / alpha_s and q^2 = sigma_t^2 - r^2 sigma_s^2 (mean
factor and variance of the forward transition from s to t):

    DDIM(eta)            x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) z_hat + v z,  v = eta sigma_s q/sigma_t
    ancestral            DDIM with eta = 1: the mean and the variance of q(x_s | x_t, x0_hat)
    DDPM                 that mean, and the variance of q ("small") or q^2 ("large"), or what the network says
                         between the two, for every feature of every state ("learned")
    reverse diffusion    x_s = (2 - r) x_t + q^2 score + q z

References: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), algorithms 1-5 and appendices D to F; Song, Meng and Ermon, "Denoising Diffusion Implicit
Models" (2010.02502), eq. 12; Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2006.11239),
algorithm 2; Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672); Pierret
and Galerne, "Diffusion Models for Gaussian Distributions" (2405.14250), for the exponential integrator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import (
    ReverseEquation,
    ReverseSteps,
    learned_steps,
    reverse_family,
    reverse_sde,
    scheme,
    semilinear,
)
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.sdes import VARIANCES, Variance, ancestral_coefficients
from sde_toolkit.utils import Partial, checked
from solvers import (
    EULER_MARUYAMA,
    SPREAD,
    SRA1,
    STOCHASTIC_HEUN,
    Adams,
    AdditiveRungeKutta,
    Form,
    Method,
    SchemeMethod,
)

StepVariance = Literal[Variance, "learned"]
"""The variances of DDPM's step, by name."""

ONE_DRAW = SchemeMethod(name="one_step", order=1, strong_order=1.0, weak_order=1.0)
ONE_STEP = SchemeMethod(name="one_step", order=1)
HEUN_STEP = SchemeMethod(name="heun", order=2, nfe_per_step=2)


def _ddim(k: ReverseSteps, eta: float) -> Form:
    t, s, z_hat = k.t, k.s, k.m[0]
    v = eta * s.sigma * (1 - (s.nsr / t.nsr) ** 2).sqrt()
    x0_hat = (k.x - t.sigma * z_hat) / t.alpha
    return s.alpha * x0_hat + (s.sigma**2 - v**2).clamp(min=0).sqrt() * z_hat + v * k.z


def ddim_rule(eta: float) -> Callable[[ReverseSteps], Form]:
    """DDIM (2010.02502, eq. 12 and 16)."""
    return Partial(_ddim, eta)


def _ddpm(k: ReverseSteps, variance: Variance) -> Form:
    a, b, c = ancestral_coefficients(k.t.alpha, k.t.sigma, k.s.alpha, k.s.sigma, variance)
    return a * k.x + b * k.m[0] + c * k.z


def ddpm_rule(variance: Variance) -> Callable[[ReverseSteps], Form]:
    """The posterior's mean at x0_hat with a fixed variance (2006.11239, eq. 7 and section 3.2)."""
    return Partial(_ddpm, variance)


def reverse_diffusion_rule(k: ReverseSteps) -> Form:
    """The reverse-diffusion step (2011.13456, eq. 46)."""
    t, s = k.t, k.s
    r, q = t.alpha / s.alpha, t.sigma * (1 - (s.nsr / t.nsr) ** 2).sqrt()
    return (2 - r) * k.x - q**2 / t.sigma * k.m[0] + q * k.z


def reverse_flow_rule(k: ReverseSteps) -> Form:
    """The same step of the probability flow: half the pull of the score, and no draw."""
    t, s = k.t, k.s
    q_squared = t.sigma**2 * (1 - (s.nsr / t.nsr) ** 2)
    return (2 - t.alpha / s.alpha) * k.x - 0.5 * q_squared / t.sigma * k.m[0]


def euler_rule(k: ReverseSteps) -> Form:
    """Euler's method in t, on the drift."""
    return k.x + (k.s.time - k.t.time) * k.m[0]


def heun_rule(k: ReverseSteps) -> Form:
    """Heun's method in t, on the drift."""
    h, drift = k.s.time - k.t.time, k.m[0]
    return k.x + 0.5 * h * (drift + k.evaluate(k.s, k.x + h * drift))


def _classic(
    name: str, equation: ReverseEquation, method: Method, num_steps: int, t_min: float, grid: Grid,
    denoise: bool, options: dict[str, object] | None = None,
) -> Sampler:  # fmt: skip
    return Sampler(name, equation, method, num_steps, t_min, grid, denoise, options=options or {})


@checked
def euler_maruyama(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Euler-Maruyama on the reverse SDE (2011.13456, appendix D); one evaluation per step."""
    return _classic("euler_maruyama", reverse_sde, EULER_MARUYAMA, num_steps, t_min, grid, denoise)


@checked
def reverse_diffusion(
    num_steps: int,
    *,
    probability_flow: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """The reverse-diffusion sampler (2011.13456, eq. 46), for any process; one evaluation per step.

    Args:
        probability_flow: take the same step of the probability flow: half the score, and no draw.
    """
    rule = reverse_flow_rule if probability_flow else reverse_diffusion_rule
    equation = scheme(rule, "noise", noisy=not probability_flow)
    method = ONE_STEP if probability_flow else ONE_DRAW
    options: dict[str, object] = {"probability_flow": True} if probability_flow else {}
    return _classic("reverse_diffusion", equation, method, num_steps, t_min, grid, denoise, options)


@checked
def ancestral(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Ancestral sampling: DDPM's under VP, SMLD's under VE (2011.13456, appendix F); one evaluation per
    step.

    The variance of a step is that of q(x_s | x_t, x0), as in DDPM.  Code of 2011.13456 takes that of
    q(x_t | x_s) under VP, beta of the step: ``ddpm(variance="large")``.
    """
    equation = scheme(ddim_rule(1.0), "noise", noisy=True)
    return _classic("ancestral", equation, ONE_DRAW, num_steps, t_min, grid, denoise)


@checked
def ddpm(
    num_steps: int,
    *,
    variance: StepVariance = "small",
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """DDPM with a fixed variance (2006.11239, algorithm 2), for any process; one evaluation per step.

    Args:
        variance: "small", that of q(x_s | x_t, x0), or "large", that of q(x_t | x_s), see
            ``sde_toolkit.sdes.ancestral_coefficients``; or "learned" (2102.09672), for a model that has it.

    Raises:
        ValueError: another variance; when sampling: "learned" for a model without.
    """
    if variance == "learned":
        return _classic(
            "ddpm", learned_steps, SPREAD, num_steps, t_min, grid, denoise, {"variance": variance}
        )
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, learned, got {variance!r}")
    equation = scheme(ddpm_rule(variance), "data", noisy=True)
    return _classic("ddpm", equation, ONE_DRAW, num_steps, t_min, grid, denoise, {"variance": variance})


@checked
def ddim(
    num_steps: int,
    *,
    eta: float = 0.0,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """DDIM (2010.02502, eq. 12); eta = 0 is deterministic, eta = 1 ancestral; one evaluation per step.

    Args:
        eta: stochasticity from 0 to 1.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}; 0 is deterministic, 1 is ancestral sampling")
    method = ONE_DRAW if eta else ONE_STEP
    equation = scheme(ddim_rule(eta), "noise", noisy=eta > 0)
    return _classic("ddim", equation, method, num_steps, t_min, grid, denoise, {"eta": eta})


@checked
def euler(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Euler's method on the probability-flow ODE in t; one evaluation per step."""
    return _classic("euler", scheme(euler_rule, "drift"), ONE_STEP, num_steps, t_min, grid, denoise)


@checked
def heun(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Heun's method on the probability-flow ODE in t; two evaluations per step."""
    return _classic("heun", scheme(heun_rule, "drift"), HEUN_STEP, num_steps, t_min, grid, denoise)


@checked
def eta_family(
    num_steps: int,
    *,
    eta: float = 1.0,
    method: Method = EULER_MARUYAMA,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """Any method for SDEs on the reverse family, between probability flow and reverse SDE.

    Args:
        eta: stochasticity, 0 for the probability flow, 1 for the reverse SDE.
        method: of ``solvers``, for SDEs with additive noise.

    Raises:
        ValueError: eta negative or not finite.
    """
    equation = reverse_family(eta)
    return _classic(
        "eta_family", equation, method, num_steps, t_min, grid, denoise, {"eta": eta, "method": method.name}
    )


@checked
def exponential_integrator(
    num_steps: int,
    *,
    eta: float = 1.0,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """The exponential integrator of the reverse family, the score held constant over a step (2405.14250); one
    evaluation per step.

    Args:
        eta: stochasticity, 0 for the probability flow, 1 for the reverse SDE.

    Raises:
        ValueError: eta negative or not finite.
    """
    equation = semilinear("score", eta)
    return _classic(
        "exponential_integrator", equation, Adams(1), num_steps, t_min, grid, denoise, {"eta": eta}
    )


@checked
def stochastic_heun(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.uniform, denoise: bool = True
) -> Sampler:
    """Heun's method on the reverse SDE with the noise inside the predictor: weak order 2; two evaluations per
    step."""
    return _classic("stochastic_heun", reverse_sde, STOCHASTIC_HEUN, num_steps, t_min, grid, denoise)


@checked
def sra(
    num_steps: int,
    *,
    method: AdditiveRungeKutta = SRA1,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """Stochastic Runge-Kutta for additive noise on the reverse SDE: strong order 1.5, weak order 2.

    Args:
        method: ``solvers.SRA1`` (two evaluations per step), ``SHARK`` (two) or ``SOSRA`` (three).
    """
    return _classic(method.name, reverse_sde, method, num_steps, t_min, grid, denoise)
