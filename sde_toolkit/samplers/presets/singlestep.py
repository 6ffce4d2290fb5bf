"""Deterministic singlestep samplers: Runge-Kutta in the clocks of diffusion, without memory.

    DPM-Solver-k       noise predictions, exponential Runge-Kutta in lam, k evaluations per step
    DPM-Solver++(2S)   the same in data predictions, 2 evaluations
    DEIS rho-RK        classical Runge-Kutta on dy/dn = z_hat, y = x / alpha, n = sigma / alpha
    EDM                Heun on that equation, where wanted from a state with noise added ("churn")

With h = lam_s - lam_t.  The last step of EDM to sigma = 0 is Euler's.

References: Lu et al., "DPM-Solver" (2206.00927), algorithms 1 and 2; Lu et al., "DPM-Solver++" (2211.01095),
algorithm 1; Zhang and Chen, DEIS (2204.13902), section 3.3; Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models" (2206.00364), algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_toolkit.models import ScoreModel
from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import ReverseSteps, scheme
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import Partial, checked
from solvers import HEUN, MIDPOINT, RK4, Form, RungeKutta, SchemeMethod, Term

KUTTA3 = RungeKutta("kutta3", 3, a=((1 / 2,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), c=(1 / 2, 1.0))
"""Kutta's third-order method, the tableau of DEIS rho-3Kutta."""


def dpm_solver_1_rule(k: ReverseSteps) -> Form:
    """DPM-Solver-1, which is DDIM (2206.00927, eq. 3.7)."""
    return k.s.alpha / k.t.alpha * k.x - k.s.sigma * torch.expm1(k.h) * k.m[0]


def dpm_solver_2_rule(k: ReverseSteps) -> Form:
    """DPM-Solver-2 with r_1 = 1/2 (2206.00927, algorithm 1)."""
    t, s, h, e, r1 = k.t, k.s, k.h, k.m[0], 0.5
    s1 = k.at_lam(t.lam + r1 * h)
    u1 = s1.alpha / t.alpha * k.x - s1.sigma * torch.expm1(r1 * h) * e
    D1 = k.evaluate(s1, u1) - e
    phi = torch.expm1(h)
    return s.alpha / t.alpha * k.x - s.sigma * phi * e - s.sigma / (2 * r1) * phi * D1


def dpm_solver_3_rule(k: ReverseSteps) -> Form:
    """DPM-Solver-3 with r_1 = 1/3, r_2 = 2/3 (2206.00927, algorithm 2)."""
    t, s, h, e, r1, r2 = k.t, k.s, k.h, k.m[0], 1 / 3, 2 / 3
    s1, s2 = k.at_lam(t.lam + r1 * h), k.at_lam(t.lam + r2 * h)
    u1 = s1.alpha / t.alpha * k.x - s1.sigma * torch.expm1(r1 * h) * e
    D1 = k.evaluate(s1, u1) - e
    u2 = s2.alpha / t.alpha * k.x - s2.sigma * torch.expm1(r2 * h) * e
    u2 = u2 - s2.sigma * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * D1
    D2 = k.evaluate(s2, u2) - e
    phi = torch.expm1(h)
    return s.alpha / t.alpha * k.x - s.sigma * phi * e - s.sigma / r2 * (phi / h - 1) * D2


def dpm_solver_pp_2s_rule(k: ReverseSteps) -> Form:
    """DPM-Solver++(2S) with r = 1/2, data predictions (2211.01095, algorithm 1)."""
    t, s, h, m, r = k.t, k.s, k.h, k.m[0], 0.5
    s1 = k.at_lam(t.lam + r * h)
    u = s1.sigma / t.sigma * k.x - s1.alpha * torch.expm1(-r * h) * m
    D = (1 - 1 / (2 * r)) * m + 1 / (2 * r) * k.evaluate(s1, u)
    return s.sigma / t.sigma * k.x - s.alpha * torch.expm1(-h) * D


def _rho_rk(k: ReverseSteps, tableau: RungeKutta) -> Form:
    t, s = k.t, k.s
    y, length, slopes = k.x / t.alpha, s.nsr - t.nsr, [k.m[0]]
    for row, c in zip(tableau.a, tableau.c, strict=True):
        u = s if c == 1 else k.at_nsr(t.nsr + c * length)
        slopes.append(k.evaluate(u, u.alpha * (y + length * _sum(row, slopes))))
    return s.alpha * (y + length * _sum(tableau.b, slopes))


def rho_rk_rule(tableau: RungeKutta) -> Callable[[ReverseSteps], Form]:
    """An explicit Runge-Kutta method on dy/dn = z_hat, y = x / alpha, n = sigma / alpha."""
    return Partial(_rho_rk, tableau)


def _sum(row: tuple[float, ...], slopes: list[Form]) -> Form:
    total = row[0] * slopes[0]
    for b, d in zip(row[1:], slopes[1:], strict=True):
        total = total + b * d
    return total


def edm_rule(k: ReverseSteps) -> Form:
    """Heun without churn (2206.00364, algorithm 1)."""
    return _heun(k, k.x / k.t.alpha, k.t.nsr, k.m[0])


def _churned(k: ReverseSteps, gamma: Callable[[Tensor], Tensor], s_noise: float, most: float) -> Form:
    n = k.t.nsr
    n_hat = torch.maximum(n, torch.minimum(n * (1 + gamma(n)), k.level(torch.full_like(n, most)).nsr))
    hat = k.at_nsr(n_hat)
    y_hat = k.x / k.t.alpha + s_noise * (n_hat**2 - n**2).clamp(min=0).sqrt() * k.z
    return _heun(k, y_hat, n_hat, k.evaluate(hat, hat.alpha * y_hat))


def churned_rule(gamma: Callable[[Tensor], Tensor], s_noise: float, most: float) -> Callable[..., Form]:
    """Noise up to n_hat = (1 + gamma) n, then Heun (2206.00364, algorithm 2); n_hat is at most that of T."""
    return Partial(_churned, gamma, s_noise, most)


def _churn(n: Tensor, amount: float, low: float, high: float) -> Tensor:
    """gamma at the ratios n with shape (N,): ``amount`` from low to high, 0 elsewhere."""
    return ((n >= low) & (n <= high)).to(n.dtype) * amount


def _churned_term(model: ScoreModel, gamma: Callable[[Tensor], Tensor], s_noise: float) -> Term:
    return scheme(churned_rule(gamma, s_noise, model.sde.T), "noise", noisy=True)(model)


def _heun(k: ReverseSteps, y_hat: Form, n_hat: Tensor, d: Form) -> Form:
    s = k.s
    y = y_hat + (s.nsr - n_hat) * d
    if k.last and not bool(s.sigma.all()):
        return s.alpha * y
    d_next = k.evaluate(s, s.alpha * y)
    return s.alpha * (y_hat + (s.nsr - n_hat) * (d + d_next) / 2)


@checked
def dpm_solver(
    num_steps: int,
    *,
    order: int = 3,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """DPM-Solver-1, 2, 3, singlestep (2206.00927); ``order`` evaluations per step.

    Args:
        order: 1, 2 or 3.

    Raises:
        ValueError: another order.
    """
    rules = {1: dpm_solver_1_rule, 2: dpm_solver_2_rule, 3: dpm_solver_3_rule}
    if order not in rules:
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    method = SchemeMethod(name=f"dpm_solver_{order}", order=order, nfe_per_step=order)
    equation = scheme(rules[order], "noise")
    return Sampler("dpm_solver", equation, method, num_steps, t_min, grid, denoise, options={"order": order})


@checked
def dpm_solver_pp_2s(
    num_steps: int, *, t_min: float = T_MIN, grid: Grid = grids.log_snr, denoise: bool = True
) -> Sampler:
    """DPM-Solver++(2S) (2211.01095, algorithm 1), singlestep; two evaluations per step."""
    method = SchemeMethod(name="dpm_solver_pp_2s", order=2, nfe_per_step=2)
    equation = scheme(dpm_solver_pp_2s_rule, "data")
    return Sampler("dpm_solver_pp_2s", equation, method, num_steps, t_min, grid, denoise)


@checked
def deis_rho_rk(
    num_steps: int,
    *,
    tableau: RungeKutta = KUTTA3,
    t_min: float = T_MIN,
    grid: Grid = grids.karras,
    denoise: bool = True,
) -> Sampler:
    """DEIS rho-RK (2204.13902, section 3.3): a Runge-Kutta method in nsr; order and evaluations of the
    tableau.

    Args:
        tableau: ``solvers.HEUN``, ``MIDPOINT``, ``KUTTA3``, ``solvers.RK4``, ...
    """
    name = f"deis_rho_{tableau.name}"
    method = SchemeMethod(name=name, order=tableau.order, nfe_per_step=len(tableau.b))
    equation = scheme(rho_rk_rule(tableau), "noise")
    return Sampler("deis_rho_rk", equation, method, num_steps, t_min, grid, denoise,
                   options={"tableau": tableau.name})  # fmt: skip


@checked
def edm(
    num_steps: int,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    t_min: float = T_MIN,
    grid: Grid = grids.karras,
    denoise: bool = True,
) -> Sampler:
    """EDM's Heun sampler (2206.00364, algorithms 1 and 2); two evaluations per step.

    Args:
        s_churn: amount of noise added over the run; 0 is deterministic.  Noise never exceeds the level of T.
        s_tmin, s_tmax: the range of nsr in which it is added.
        s_noise: its scale; 1 keeps the law.

    Raises:
        ValueError: options out of range.
    """
    if not (0 <= s_churn < math.inf and 0 < s_noise < math.inf and 0 <= s_tmin <= s_tmax):
        raise ValueError(
            "churn needs s_churn >= 0, s_noise > 0 and 0 <= s_tmin <= s_tmax, got "
            f"{s_churn}, {s_noise}, {s_tmin}, {s_tmax}"
        )
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    if s_churn == 0:
        method = SchemeMethod(name="edm", order=2, nfe_per_step=2)
        equation = scheme(edm_rule, "noise")
        return Sampler("edm", equation, method, num_steps, t_min, grid, denoise, options=options)
    gamma = Partial(_churn, min(s_churn / num_steps, math.sqrt(2) - 1), s_tmin, s_tmax)
    method = SchemeMethod(name="edm_churn", order=2, nodes=0, weak_order=2.0, nfe_per_step=2)
    equation = Partial(_churned_term, gamma, s_noise)
    return Sampler("edm", equation, method, num_steps, t_min, grid, denoise, options=options)


__all__ = ["HEUN", "KUTTA3", "MIDPOINT", "RK4", "deis_rho_rk", "dpm_solver", "dpm_solver_pp_2s", "edm"]
