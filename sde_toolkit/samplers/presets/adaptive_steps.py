"""Samplers that choose their own steps by tolerances, on the reverse equations.

The step sizes belong to each sample (``solvers.control``); a rejected step of an SDE asks the same Brownian
path again and never draws anew, which would change the law.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), section 4.3; Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based
Models" (2105.14080), whose rule for rejected steps redraws and is not followed.
"""

from __future__ import annotations

from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import probability_flow, reverse_family
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import checked
from solvers import BOSH3, DOP853, DOPRI5, MAX_STEPS, STOCHASTIC_HEUN, TSIT5, Integrator, Method


@checked
def dopri5(
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Dormand-Prince 5(4), adaptive for every sample on its own, on the probability-flow ODE."""
    return adaptive(DOPRI5, rtol=rtol, atol=atol, max_steps=max_steps, t_min=t_min, denoise=denoise)


@checked
def bosh3(
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Bogacki-Shampine 3(2), adaptive for every sample on its own, on the probability-flow ODE."""
    return adaptive(BOSH3, rtol=rtol, atol=atol, max_steps=max_steps, t_min=t_min, denoise=denoise)


@checked
def tsit5(
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Tsitouras 5(4), adaptive for every sample on its own, on the probability-flow ODE."""
    return adaptive(TSIT5, rtol=rtol, atol=atol, max_steps=max_steps, t_min=t_min, denoise=denoise)


@checked
def dop853(
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Dormand-Prince 8(5,3), adaptive for every sample on its own, on the probability-flow ODE."""
    return adaptive(DOP853, rtol=rtol, atol=atol, max_steps=max_steps, t_min=t_min, denoise=denoise)


@checked
def adaptive(
    method: Method | Integrator,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Any adaptive method on the probability-flow ODE, for instance ``solvers.reference.SciPy("RK45")``.

    Args:
        method: with an error estimate.
        rtol, atol: tolerances.
        max_steps: attempted steps after which a sample has failed.
        t_min: end of the run.
        denoise: whether the last state is replaced by its clean prediction.

    Raises:
        ValueError: a method without an error estimate.
    """
    name = f"scipy_{method.name.lower()}" if isinstance(method, Integrator) else method.name
    _need_error(method)
    return Sampler(
        name, probability_flow, method, None, t_min, denoise=denoise, rtol=rtol, atol=atol,
        max_steps=max_steps,
    )  # fmt: skip


@checked
def adaptive_sde(
    *,
    method: Method = STOCHASTIC_HEUN,
    eta: float = 1.0,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    max_steps: int = MAX_STEPS,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """A stochastic method, adaptive for every sample on its own, on the reverse family; rejected steps keep
    their Brownian path.

    Args:
        method: with an error estimate: ``solvers.STOCHASTIC_HEUN``, ``SRA1``, ``SHARK``, ``SOSRA``.
        eta: stochasticity, positive.

    Raises:
        ValueError: eta not positive, or a method without an error estimate.
    """
    if not eta > 0:
        raise ValueError(f"eta of an adaptive SDE must be positive, got {eta}; for the ODE take adaptive()")
    _need_error(method)
    return Sampler(
        "adaptive_sde", reverse_family(eta), method, None, t_min, denoise=denoise, rtol=rtol, atol=atol,
        max_steps=max_steps, options={"method": method.name, "eta": eta},
    )  # fmt: skip


def _need_error(method: Method | Integrator) -> None:
    if isinstance(method, Method) and not method.has_error:
        raise ValueError(
            f"method {method.name} has no error estimate, which adaptive steps need; take DOPRI5"
        )
