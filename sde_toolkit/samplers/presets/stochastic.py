"""Stochastic exponential samplers: the linear part and the noise of a reverse SDE are exact.

    SA-Solver          the family with eta = tau, exact weights through any number of nodes up to 4, predict
                       and correct with one draw and one evaluation per step
    ER-SDE             the family whose noise follows a scale function phi(n), n = sigma / alpha

Data predictions m_0 (at t), m_1, ... of this and earlier steps; h = lam_s - lam_t; one draw z per step.

References: Xue et al., "SA-Solver: Stochastic Adams
Solver for Fast Sampling of Diffusion Models" (2305.14267); Cui et al., "Elucidating the Solution Space of
Extended Reverse-Time SDE for Diffusion Models" (2309.06169).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import NoiseLevels, ReverseSteps, scheme
from sde_toolkit.samplers.grids import Grid, label
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import Partial, checked
from solvers import Form, SchemeMethod
from solvers.weights import kernel_weights

Scale = Callable[[Tensor], Tensor]


def _sa_solver(
    k: ReverseSteps, tau: Scale, predictor_steps: int, corrector_steps: int, released: bool
) -> Form:
    t, s, tau_t = k.t, k.s, tau(k.t.nsr)
    kappa = (1 + tau_t**2)[:, None]

    def kernel(lam: Tensor) -> Tensor:
        return kappa * torch.exp(-kappa * (s.lam[:, None] - lam))

    def step(nodes: list[NoiseLevels], m: list[Form]) -> Form:
        x = s.sigma / t.sigma * torch.exp(-(tau_t**2) * k.h) * k.x
        weights = kernel_weights(kernel, [u.lam for u in nodes], t.lam, s.lam)
        if released and len(nodes) == 2:
            exact = (torch.expm1(-(a := kappa[:, 0]) * k.h) + a * k.h) / a
            shift = (a * k.h**2 / 2 - exact) / (nodes[0].lam - nodes[1].lam)
            weights = [weights[0] + shift, weights[1] - shift]
        for b, m_j in zip(weights, m, strict=True):
            x = x + s.alpha * b * m_j
        return x + s.sigma * (-torch.expm1(-2 * tau_t**2 * k.h)).sqrt() * k.z

    if k.last and min(k.order, predictor_steps) == 1 and not bool(s.sigma.all()):
        return s.alpha * k.m[0]
    nodes, m = [t, *k.past], list(k.m)
    x = step(nodes[:predictor_steps], m[:predictor_steps])
    if corrector_steps == 0 or k.last:
        return x
    return step([s, *nodes[:corrector_steps]], [k.evaluate_end(x), *m[:corrector_steps]])


def sa_solver_rule(
    tau: Scale, predictor_steps: int, corrector_steps: int, released: bool
) -> Callable[[ReverseSteps], Form]:
    """SA-Predictor and SA-Corrector (2305.14267, algorithm 1), tau constant over a step."""
    return Partial(_sa_solver, tau, predictor_steps, corrector_steps, released)


def constant_tau(tau: float) -> Scale:
    """The same stochasticity at every noise level."""
    return Partial(torch.full_like, tau)


def er_scale(n: Tensor) -> Tensor:
    """phi(n) = n (exp(n^0.3) + 10), the choice that the paper recommends (2309.06169), with the shape of
    n."""
    return n * (torch.exp(n**0.3) + 10)


def _er_sde(k: ReverseSteps, phi: Scale) -> Form:
    m, t, s, n_t, n_s = k.m, k.t, k.s, k.t.nsr, k.s.nsr
    r = phi(n_s) / phi(n_t)
    noise = (n_s**2 - (n_t * r) ** 2).clamp(min=0).sqrt()
    x = s.alpha * (r / t.alpha * k.x + (1 - r) * m[0] + noise * k.z)
    if k.order == 1:
        return x

    def integral(function: Scale) -> Tensor:  # from n_s to n_t, of function / phi
        log_n = (-t.lam,)
        return kernel_weights(lambda u: u.exp() * function(u.exp()) / phi(u.exp()), log_n, -s.lam, -t.lam)[0]

    D1 = (m[0] - m[1]) / (n_t - k.past[0].nsr)
    x = x + s.alpha * (n_s - n_t + phi(n_s) * integral(torch.ones_like)) * D1
    if k.order == 2:
        return x
    D1_before = (m[1] - m[2]) / (k.past[0].nsr - k.past[1].nsr)
    D2 = (D1 - D1_before) / ((n_t - k.past[1].nsr) / 2)
    second = integral(lambda n: n - n_t[:, None])
    return x + s.alpha * ((n_s - n_t) ** 2 / 2 + phi(n_s) * second) * D2


def er_sde_rule(phi: Scale) -> Callable[[ReverseSteps], Form]:
    """ER-SDE-Solver-1, 2, 3 (2309.06169); its integrals of 1 / phi by quadrature in log n."""
    return Partial(_er_sde, phi)


@checked
def sa_solver(
    num_steps: int,
    *,
    predictor_steps: int = 2,
    corrector_steps: int = 1,
    tau: float | Scale = 1.0,
    released: bool = False,
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """SA-Solver, a stochastic Adams predictor with corrector (2305.14267); one evaluation per step, the last
    step is not corrected.

    Args:
        predictor_steps: past evaluations in the predictor, 1 to 4.
        corrector_steps: past evaluations in the corrector beside the new one, 0 (none) to 3.
        tau: stochasticity, a number or a function of nsr with tensors (N,); 0 is deterministic.
        released: formulas of two nodes as in the authors' code, which puts h^2/2 in the place of an exact
            integral, a change of third order in h.

    Raises:
        ValueError: options out of range.
    """
    if predictor_steps not in range(1, 5) or corrector_steps not in range(4):
        raise ValueError(
            "predictor_steps must lie in 1 to 4 and corrector_steps in 0 to 3, got "
            f"{predictor_steps} and {corrector_steps}"
        )
    if not callable(tau) and not 0 <= tau < math.inf:
        raise ValueError(f"tau must be a finite number >= 0 or a function of nsr, got {tau}")
    noisy = callable(tau) or tau > 0
    order = max(predictor_steps, corrector_steps + 1 if corrector_steps else 0)
    weak = float(min(order, 2))
    method = SchemeMethod(
        name="sa_solver", order=order, nodes=max(predictor_steps, corrector_steps),
        evaluates_end=corrector_steps > 0, strong_order=1.0 if noisy else None,
        weak_order=weak if noisy else None, lower_final=lower_final,
    )  # fmt: skip
    scale = tau if callable(tau) else constant_tau(tau)
    rule = sa_solver_rule(scale, predictor_steps, corrector_steps, released)
    options = {
        "predictor_steps": predictor_steps,
        "corrector_steps": corrector_steps,
        "tau": label(tau) if callable(tau) else tau,
        "released": released,
        "lower_final": lower_final,
    }
    equation = scheme(rule, "data", noisy=noisy)
    return Sampler("sa_solver", equation, method, num_steps, t_min, grid, denoise, options=options)


@checked
def er_sde(
    num_steps: int,
    *,
    order: int = 3,
    phi: Scale = er_scale,
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.karras,
    denoise: bool = True,
) -> Sampler:
    """ER-SDE-Solver-1, 2, 3 (2309.06169); weak order 1, 2, 2; one evaluation per step.

    Args:
        order: 1, 2 or 3, the number of nodes.
        phi: the noise scale function of nsr; phi(n) = n is deterministic, phi(n) = n^2 the reverse SDE.

    Raises:
        ValueError: another order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    method = SchemeMethod(
        name=f"er_sde_{order}", order=order, nodes=order,
        weak_order=float(min(order, 2)), lower_final=lower_final,
    )  # fmt: skip
    options = {"order": order, "phi": label(phi), "lower_final": lower_final}
    equation = scheme(er_sde_rule(phi), "data", noisy=True)
    return Sampler("er_sde", equation, method, num_steps, t_min, grid, denoise, options=options)
