"""Multistep DPM-Solvers: the flow or the reverse SDE in lam = log(alpha / sigma), by the papers' formulas.

    preset                 prediction    equation
    multistep_dpm_solver   noise         probability flow        x_s / alpha_s = x_t / alpha_t - ...
    dpm_solver_pp          data          probability flow        x_s / sigma_s = x_t / sigma_t + ...
    sde_dpm_solver         noise         reverse SDE
    sde_dpm_solver_pp      data          reverse SDE

With h = lam_s - lam_t, kappa = 1 for the flow and 2 for the SDE, predictions m_0 (at t), m_1, m_2 and their
scaled differences D1 (first) and D2 (second), a step is, with a draw z for the SDE,

    data     x_s = sigma_s / sigma_t e^(-(kappa - 1) h) x_t + alpha_s [G m_0 + G1 D1 + G2 D2]
                   + sigma_s (1 - e^(-2 h))^(1/2) z
             G = 1 - e^(-kappa h),  G2 = (G - kappa h) / (kappa h)^2 + 1/2
    noise    x_s = alpha_s / alpha_t x_t - kappa sigma_s [G m_0 + G1 D1 + G2 D2]
                   + sigma_s (e^(2 h) - 1)^(1/2) z
             G = e^h - 1,           G2 = (G - h) / h^2 - 1/2

and G1 of two nodes is G / 2 ("midpoint") or the exact integral ("heun"), 1 - G / (kappa h) or G / h - 1,
which three nodes always have.  G2 is half of the exact integral's weight in all published code: three nodes
have order 2, with a small constant.

References: Lu et al., "DPM-Solver" (2206.00927) and "DPM-Solver++" (2211.01095, algorithm 2 and its solvers
for diffusion SDEs); three nodes are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import ReverseSteps, scheme
from sde_toolkit.samplers.grids import Grid
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import Partial, checked
from solvers import Form, SchemeMethod

SolverForm = Literal["midpoint", "heun"]
"""The weight of the first difference through two nodes: half of the first one's, or the exact integral."""

LowerFinal = bool | tuple[int, ...]
"""Whether the order falls to 1 towards the last step; or the most nodes of the last steps, as in (2, 1)."""


def _rule(k: ReverseSteps, predicts: str, kappa: int, form: SolverForm) -> Form:
    h, t, s = k.h, k.t, k.s
    if predicts == "data":
        gain = -torch.expm1(-kappa * h)
        exact, second = 1 - gain / (kappa * h), (gain - kappa * h) / (kappa * h) ** 2 + 0.5
        keep = s.sigma / t.sigma * (torch.exp(-h) if kappa == 2 else 1)
        scale, whole, noise = s.alpha, s.alpha * gain, s.sigma * (-torch.expm1(-2 * h)).sqrt()
    else:
        gain, silent = torch.expm1(h), s.sigma == 0  # where sigma_s (e^h - 1) is alpha_s nsr_t
        exact, second = gain / h - 1, (gain - h) / h**2 - 0.5
        keep, scale = s.alpha / t.alpha, -kappa * s.sigma
        whole = torch.where(silent, -kappa * s.alpha * t.nsr, scale * gain)
        noise = torch.where(silent, s.alpha * t.nsr, s.sigma * torch.expm1(2 * h).sqrt())
    x = keep * k.x + whole * k.m[0]
    if kappa == 2:
        x = x + noise * k.z
    if k.order == 1:
        return x
    r0 = (t.lam - k.past[0].lam) / h
    D1 = (k.m[0] - k.m[1]) / r0
    if k.order == 2:
        return x + scale * (0.5 * gain if form == "midpoint" else exact) * D1
    r1 = (k.past[0].lam - k.past[1].lam) / h
    before = (k.m[1] - k.m[2]) / r1
    D2 = (D1 - before) / (r0 + r1)
    return x + scale * exact * (D1 + r0 * D2) + scale * second * D2


def dpm_rule(predicts: str, kappa: int, form: SolverForm) -> Callable[[ReverseSteps], Form]:
    """A step of the module's table, for noise or data predictions and kappa = 1 or 2."""
    return Partial(_rule, predicts, kappa, form)


def _made(
    name: str, num_steps: int, order: int, form: SolverForm, lower_final: LowerFinal,
    end: tuple[float, Grid, bool], *, most: int = 3,
) -> Sampler:  # fmt: skip
    if order not in range(1, most + 1):
        raise ValueError(f"order must be an integer from 1 to {most}, got {order}")
    if form not in ("midpoint", "heun"):
        raise ValueError(f"form must be midpoint or heun, got {form!r}")
    caps = lower_final if isinstance(lower_final, tuple) else ()
    if any(cap < 1 for cap in caps):
        raise ValueError(f"lower_final must be True, False or numbers of nodes from 1, got {lower_final}")
    noisy, predicts = name.startswith("sde"), "data" if name.endswith("pp") else "noise"
    weak = float(min(order, 2))
    method = SchemeMethod(
        name=f"{name}_{order}" if noisy else name, order=min(order, 2), nodes=order,
        strong_order=1.0 if noisy else None, weak_order=weak if noisy else None, lower_final=lower_final,
    )  # fmt: skip
    equation = scheme(dpm_rule(predicts, 2 if noisy else 1, form), predicts, noisy=noisy)
    options: dict[str, object] = {"order": order, "form": form, "lower_final": lower_final}
    return Sampler(name, equation, method, num_steps, *end, options=options)


@checked
def dpm_solver_pp(
    num_steps: int,
    *,
    order: int = 2,
    form: SolverForm = "midpoint",
    lower_final: LowerFinal = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """DPM-Solver++(1M, 2M, 3M) (2211.01095, algorithm 2); one evaluation per step.

    The published 3M gives the second difference half of its weight in the exact integral, so that its order
    is 2, with a small constant; ``unip`` and ``exponential_adams`` with order 3 have the whole weight.

    Args:
        order: 1, 2 or 3, the number of nodes.
        form: of the steps with two nodes: "midpoint", the paper's, or "heun", the exact integral.

    Raises:
        ValueError: another order or form.
    """
    return _made("dpm_solver_pp", num_steps, order, form, lower_final, (t_min, grid, denoise))


@checked
def multistep_dpm_solver(
    num_steps: int,
    *,
    order: int = 2,
    form: SolverForm = "midpoint",
    lower_final: LowerFinal = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """DPM-Solver(1M, 2M, 3M), the multistep form of 2206.00927 in noise predictions (the authors' code); one
    evaluation per step.

    Args:
        order: 1, 2 or 3, the number of nodes.
        form: of the steps with two nodes: "midpoint", or "heun", the exact integral.

    Raises:
        ValueError: another order or form.
    """
    return _made("multistep_dpm_solver", num_steps, order, form, lower_final, (t_min, grid, denoise))


@checked
def sde_dpm_solver_pp(
    num_steps: int,
    *,
    order: int = 2,
    form: SolverForm = "midpoint",
    lower_final: LowerFinal = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """SDE-DPM-Solver++(1), (2M) (2211.01095, its solvers for diffusion SDEs) and (3M) (the authors' code);
    weak order 1, 2 and 2, strong order 1; one evaluation per step.

    Args:
        order: 1, 2 or 3, the number of nodes.
        form: of the steps with two nodes: "midpoint", or "heun", the exact integral.

    Raises:
        ValueError: another order or form.
    """
    return _made("sde_dpm_solver_pp", num_steps, order, form, lower_final, (t_min, grid, denoise))


@checked
def sde_dpm_solver(
    num_steps: int,
    *,
    order: int = 2,
    form: SolverForm = "midpoint",
    lower_final: LowerFinal = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """SDE-DPM-Solver(1) and (2M), the reverse SDE in noise predictions (2211.01095, its solvers for diffusion
    SDEs); weak order 1 and 2, strong order 1; one evaluation per step.

    Args:
        order: 1 or 2, the number of nodes.
        form: of the steps with two nodes: "midpoint", or "heun", the exact integral.

    Raises:
        ValueError: another order or form.
    """
    return _made("sde_dpm_solver", num_steps, order, form, lower_final, (t_min, grid, denoise), most=2)
