"""Samplers that choose their own steps by tolerances, and foreign solvers, on the reverse equations.

The step sizes belong to each sample (``solvers.control``); a rejected step of an SDE asks the same Brownian
path again and never draws anew, which would change the law.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), section 4.3; Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based
Models" (2105.14080), whose rule for rejected steps redraws and is not followed.
"""

from __future__ import annotations

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.equations import probability_flow, reverse_family, reverse_sde
from sde_toolkit.samplers.sampler import T_MIN, Sampler
from solvers import BOSH3, DOPRI5, STOCHASTIC_HEUN, Integrator, Method


def dopri5(*, rtol: float = 1e-5, atol: float = 1e-5, t_min: float = T_MIN, denoise: bool = True) -> Sampler:
    """Dormand-Prince 5(4) on the probability-flow ODE, the step size chosen for every sample on its own."""
    return adaptive(DOPRI5, rtol=rtol, atol=atol, t_min=t_min, denoise=denoise)


def bosh3(*, rtol: float = 1e-5, atol: float = 1e-5, t_min: float = T_MIN, denoise: bool = True) -> Sampler:
    """Bogacki-Shampine 3(2) on the probability-flow ODE, the step size chosen for every sample on its own."""
    return adaptive(BOSH3, rtol=rtol, atol=atol, t_min=t_min, denoise=denoise)


def adaptive(
    method: Method | Integrator,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """Any adaptive method on the probability-flow ODE, for instance ``solvers.reference.SciPy("RK45")``.

    Raises:
        ValueError: a method without an error estimate.
    """
    name = f"scipy_{method.name.lower()}" if isinstance(method, Integrator) else method.name
    _need_error(method)
    return Sampler(name, probability_flow, method, None, t_min, denoise=denoise, rtol=rtol, atol=atol)


def adaptive_sde(
    *,
    method: Method = STOCHASTIC_HEUN,
    eta: float = 1.0,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    t_min: float = T_MIN,
    denoise: bool = True,
) -> Sampler:
    """A stochastic method on the reverse family with steps controlled per sample on a Brownian tree.

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
        options={"method": method.name, "eta": eta},
    )  # fmt: skip


def foreign_sde(method: Integrator, num_steps: int, *, t_min: float = T_MIN, denoise: bool = True) -> Sampler:
    """A foreign solver on the reverse SDE with equal steps, for instance
    ``solvers.reference.TorchSDE("srk")``.

    It runs on the Brownian tree of the sampler's seed, so that its samples do not depend on the batch size.
    """
    name = f"torchsde_{method.name}"
    return Sampler(name, reverse_sde, method, num_steps, t_min, grids.uniform, denoise)


def _need_error(method: Method | Integrator) -> None:
    if isinstance(method, Method) and not method.has_error:
        raise ValueError(
            f"method {method.name} has no error estimate, which adaptive steps need; take DOPRI5"
        )
