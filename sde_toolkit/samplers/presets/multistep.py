"""Deterministic multistep samplers: polynomials through past predictions.

In the scale-free forms of the probability flow, with n = sigma / alpha and lam = -log n,

    noise      x_s / alpha_s = x_t / alpha_t + int z_hat dn                        from n_t to n_s
    data       x_s / sigma_s = x_t / sigma_t + int x0_hat e^lam dlam               from lam_t to lam_s

the predictions m_0 (at t), m_1, ... of this and earlier steps are joined by a polynomial, in t (DEIS tAB), in
n (LMS) or in lam (DPM-Solver++, UniPC), or their Adams-Bashforth weights for equal steps are taken as they
are (iPNDM, PNDM).  One evaluation per step.  The first steps use the predictions there are.  From pure noise
that start is harmless, since predictions hardly change there; started at mid noise it limits the order to 2,
for UniPC to 3.

References: Lu et al., "DPM-Solver++" (2211.01095); Zhang and Chen, "Fast Sampling of Diffusion Models with
Exponential Integrator" (DEIS, 2204.13902); Liu et al., "Pseudo Numerical Methods for Diffusion Models on
Manifolds" (PNDM, 2202.09778); Zhao et al., "UniPC" (2302.04867); Karras et al. (2206.00364) for sigma as the
clock of linear multistep methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import Clock, ReverseSteps, in_lam, in_nsr, in_time, scheme
from sde_toolkit.samplers.grids import Grid, label
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import Partial, checked
from solvers import Form, SchemeMethod
from solvers.weights import kernel_weights


def adams_rule(predicts: str, clock: Clock) -> Callable[[ReverseSteps], Form]:
    """Exact integrals of the interpolating polynomial in any clock."""
    return Partial(ReverseSteps.adams, predicts, clock)


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights for equal steps, by number of nodes."""


def transfer(k: ReverseSteps, e: Form) -> Form:
    """DDIM's step with the noise e (2202.09778, the transfer part)."""
    return _transfer(k.x, e, k.t.alpha, k.t.sigma, k.s.alpha, k.s.sigma)


def _transfer(x: Form, e: Form, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Form:
    return alpha_s / alpha_t * (x - sigma_t * e) + sigma_s * e


def ipndm_rule(k: ReverseSteps) -> Form:
    """The noise of Adams-Bashforth for equal steps, in DDIM's step (DEIS, 2204.13902, appendix)."""
    e = 0.0 * k.m[0]
    for b, m in zip(ADAMS_BASHFORTH[k.order - 1], k.m, strict=True):
        e = e + b * m
    return transfer(k, e)


def spndm_rule(k: ReverseSteps) -> Form:
    """A pseudo Heun step, then pseudo linear multistep ones through two nodes (2202.09778, S-PNDM)."""
    if k.order == 2:
        return ipndm_rule(k)
    e1 = k.m[0]
    e2 = k.evaluate(k.s, transfer(k, e1))
    return transfer(k, 0.5 * (e1 + e2))


def pndm_rule(k: ReverseSteps) -> Form:
    """Three pseudo Runge-Kutta steps (2202.09778), then pseudo linear multistep ones."""
    if k.order == 4:
        return ipndm_rule(k)
    t, s, e1 = k.t, k.s, k.m[0]
    half = k.level((t.time + s.time) / 2)

    def phi(e: Form, to_alpha: Tensor, to_sigma: Tensor) -> Form:
        return _transfer(k.x, e, t.alpha, t.sigma, to_alpha, to_sigma)

    e2 = k.evaluate(half, phi(e1, half.alpha, half.sigma))
    e3 = k.evaluate(half, phi(e2, half.alpha, half.sigma))
    e4 = k.evaluate(s, phi(e3, s.alpha, s.sigma))
    return phi((e1 + 2 * e2 + 2 * e3 + e4) / 6, s.alpha, s.sigma)


BOfH = Callable[[Tensor], Tensor]


def b1(h: Tensor) -> Tensor:
    """B_1(h) = h, with the shape of h."""
    return h


def b2(h: Tensor) -> Tensor:
    """B_2(h) = e^h - 1, with the shape of h."""
    return torch.expm1(h)


def _unipc(k: ReverseSteps, predicts: str, B: BOfH, corrector: bool) -> Form:
    m, t, s = k.m, k.t, k.s
    if predicts == "data":
        hh, scale, x = -k.h, s.alpha, s.sigma / t.sigma * k.x
    else:
        hh, scale, x = k.h, s.sigma, s.alpha / t.alpha * k.x
    x = x - scale * torch.expm1(hh) * m[0]
    r = [(level.lam - t.lam) / k.h for level in k.past]
    D = [(m[i] - m[0]) / r_i for i, r_i in enumerate(r, 1)]
    predicted = x
    if D:
        a = [0.5 * torch.ones_like(hh)] if len(D) == 1 else _unipc_weights(hh, r, B)
        for a_i, D_i in zip(a, D, strict=True):
            predicted = predicted - scale * B(hh) * a_i * D_i
    if not corrector or k.last:
        return predicted
    r, D = [*r, torch.ones_like(hh)], [*D, k.evaluate_end(predicted) - m[0]]
    a = [0.5 * torch.ones_like(hh)] if len(D) == 1 else _unipc_weights(hh, r, B)
    for a_i, D_i in zip(a, D, strict=True):
        x = x - scale * B(hh) * a_i * D_i
    return x


def unipc_rule(predicts: str, B: BOfH, corrector: bool) -> Callable[[ReverseSteps], Form]:
    """UniP-p and UniC-p (2302.04867, algorithms 1 and 2), in noise or data predictions."""
    return Partial(_unipc, predicts, B, corrector)


def _unipc_weights(hh: Tensor, r: list[Tensor], B: BOfH) -> list[Tensor]:
    """The solution a of sum_m r_m^(j-1) a_m = j! phi_(j+1)(hh) hh / B(hh), j = 1 .. p (theorem 3.1)."""
    powers = torch.stack([torch.stack(r, 1) ** j for j in range(len(r))], 1)
    right = torch.stack([math.factorial(j) * _phi(j + 1, hh) * hh / B(hh) for j in range(1, len(r) + 1)], 1)
    return list(torch.linalg.solve_ex(powers, right).result.unbind(1))


def _phi(j: int, x: Tensor) -> Tensor:
    """phi_j(x) = int_0^1 e^((1 - u) x) u^(j-1) / (j-1)! du, with the shape of x: as it stands, because the
    recursion from phi_1 cancels."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return kernel_weights(
        lambda u: ((1 - u) * x[:, None]).exp() * u ** (j - 1) / math.factorial(j - 1), (zero,), zero, one
    )[0]


def _multistep(
    name: str,
    num_steps: int,
    order: int,
    rule: Callable[[ReverseSteps], Form],
    predicts: str,
    options: dict[str, object],
    *,
    nodes: int,
    end: tuple[float, Grid, bool],
    lower_final: bool = False,
    evaluates_end: bool = False,
) -> Sampler:
    method = SchemeMethod(
        name=name, order=order, nodes=nodes, evaluates_end=evaluates_end, lower_final=lower_final
    )
    options = {**options, "lower_final": lower_final}
    return Sampler(name, scheme(rule, predicts), method, num_steps, *end, options=options)


def _check_order(order: int, most: int) -> None:
    if order not in range(1, most + 1):
        raise ValueError(f"order must be an integer from 1 to {most}, got {order}")


@checked
def deis(
    num_steps: int,
    *,
    degree: int = 3,
    clock: Clock = in_time,
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.quadratic,
    denoise: bool = True,
) -> Sampler:
    """DEIS tAB-1, 2, 3 (2204.13902, section 3), order degree + 1; one evaluation per step.

    Args:
        degree: of the polynomial in the clock, 0 to 3.
        clock: ``in_time`` for tAB, ``in_nsr`` for rhoAB, ``in_lam`` for polynomials in log rho.

    Raises:
        ValueError: another degree.
    """
    if degree not in range(4):
        raise ValueError(f"degree must be an integer from 0 to 3, got {degree}")
    return _multistep(
        "deis", num_steps, degree + 1, adams_rule("noise", clock), "noise",
        {"degree": degree, "clock": label(clock)},
        nodes=degree + 1, end=(t_min, grid, denoise), lower_final=lower_final,
    )  # fmt: skip


@checked
def lms(
    num_steps: int,
    *,
    order: int = 4,
    t_min: float = T_MIN,
    grid: Grid = grids.karras,
    denoise: bool = True,
) -> Sampler:
    """Adams-Bashforth in nsr on any grid, order 1 to 4: EDM's ODE (2206.00364, eq. 1) by linear multistep;
    one evaluation per step.

    Args:
        order: 1 to 4, the number of nodes.

    Raises:
        ValueError: another order.
    """
    _check_order(order, 4)
    return _multistep(
        "lms", num_steps, order, adams_rule("noise", in_nsr), "noise", {"order": order},
        nodes=order, end=(t_min, grid, denoise),
    )  # fmt: skip


@checked
def exponential_adams(
    num_steps: int,
    *,
    order: int = 3,
    predicts: Literal["noise", "data", "velocity", "score"] = "data",
    clock: Clock = in_lam,
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """Exponential Adams methods of order 1 to 4: any prediction, joined in any clock, integrated exactly; one
    evaluation per step.

    Args:
        order: 1 to 4, the number of nodes.
        predicts: the prediction that is interpolated: noise, data, velocity or score.
        clock: the variable of its polynomial: ``in_time``, ``in_nsr``, ``in_lam`` or ``in_angle``.

    Raises:
        ValueError: another order or prediction.
    """
    _check_order(order, 4)
    if predicts not in ("noise", "data", "velocity", "score"):
        raise ValueError(f"predicts must be noise, data, velocity or score, got {predicts!r}")
    return _multistep(
        "exponential_adams", num_steps, order, adams_rule(predicts, clock), predicts,
        {"order": order, "predicts": predicts, "clock": label(clock)},
        nodes=order, end=(t_min, grid, denoise), lower_final=lower_final,
    )  # fmt: skip


@checked
def ipndm(
    num_steps: int,
    *,
    order: int = 4,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """iPNDM (2204.13902, appendix): Adams-Bashforth weights for equal steps with 1 to ``order`` nodes in
    DDIM's step.

    The weights fit grids that are uniform in nsr; on all others the order is 2 at most.  One evaluation per
    step.

    Args:
        order: 1 to 4, the number of nodes.

    Raises:
        ValueError: order outside 1 to 4.
    """
    _check_order(order, 4)
    return _multistep(
        "ipndm", num_steps, min(order, 2), ipndm_rule, "noise", {"order": order},
        nodes=order, end=(t_min, grid, denoise),
    )  # fmt: skip


@checked
def pndm(
    num_steps: int,
    *,
    order: int = 4,
    t_min: float = T_MIN,
    grid: Grid = grids.uniform,
    denoise: bool = True,
) -> Sampler:
    """PNDM (2202.09778): F-PNDM, the fourth-order formulas of algorithm 2, or S-PNDM, the second-order ones.

    On grids that are not uniform in nsr the order is 2 for both.  One evaluation per step; nine more at the
    start for F-PNDM, one for S-PNDM.

    Args:
        order: of the formulas, 4 or 2.

    Raises:
        ValueError: another order.
    """
    if order not in (2, 4):
        raise ValueError(f"order must be 4 for F-PNDM or 2 for S-PNDM, got {order}")
    extra = 1 if order == 2 else 3 * min(num_steps, 3)
    method = SchemeMethod(name="pndm", order=2, nodes=order, nfe_extra=extra)
    rule = pndm_rule if order == 4 else spndm_rule
    options = {"order": order}
    return Sampler("pndm", scheme(rule, "noise"), method, num_steps, t_min, grid, denoise, options=options)


@checked
def unip(
    num_steps: int,
    *,
    order: int = 3,
    b: BOfH = b2,
    predicts: Literal["noise", "data"] = "data",
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """UniP-1, 2, 3, the predictor of UniPC alone (2302.04867, algorithm 2); order as named, one evaluation
    per step.

    Args:
        order: 1, 2 or 3, the number of nodes.
        b: ``b1`` for B(h) = h, ``b2`` for B(h) = e^h - 1.
        predicts: the prediction that is interpolated: noise or data.

    Raises:
        ValueError: another order or prediction.
    """
    _check_order(order, 3)
    _check_unipc(predicts)
    return _multistep(
        "unip", num_steps, order, unipc_rule(predicts, b, corrector=False), predicts,
        {"order": order, "b": label(b), "predicts": predicts},
        nodes=order, end=(t_min, grid, denoise), lower_final=lower_final,
    )  # fmt: skip


@checked
def unipc(
    num_steps: int,
    *,
    order: int = 3,
    b: BOfH = b2,
    predicts: Literal["noise", "data"] = "data",
    lower_final: bool = False,
    t_min: float = T_MIN,
    grid: Grid = grids.log_snr,
    denoise: bool = True,
) -> Sampler:
    """UniPC-1, 2, 3 (2302.04867), order p + 1; one evaluation per step, the last step is not
    corrected.

    Args:
        order: 1, 2 or 3, the number of nodes of the predictor.
        b: ``b1`` for B(h) = h, ``b2`` for B(h) = e^h - 1.
        predicts: the prediction that is interpolated: noise or data.

    Raises:
        ValueError: another order or prediction.
    """
    _check_order(order, 3)
    _check_unipc(predicts)
    return _multistep(
        "unipc", num_steps, order + 1, unipc_rule(predicts, b, corrector=True), predicts,
        {"order": order, "b": label(b), "predicts": predicts},
        nodes=order, end=(t_min, grid, denoise), lower_final=lower_final, evaluates_end=True,
    )  # fmt: skip


def _check_unipc(predicts: str) -> None:
    if predicts not in ("noise", "data"):
        raise ValueError(f"predicts: UniPC takes noise or data predictions, got {predicts!r}")
