"""A network that knows the law of a vector's missing entries given the others.

It is the network of a score model of the whole vector, called with a condition: the row of the entries that
are known, 1 where they are and 0 elsewhere.  Without a condition it is the score model.  With one it sees the
known entries, standardised, and in the place of the others

    u = cos(a) r + sin(a) z,      r whitened given the known entries (``GivenEntries``),   z ~ N(0, I)

at the time whose noise-to-signal ratio is tan(a), and puts out the "turn"

    F(u, a; x_O) = E[ sin(a) r - cos(a) z | u, x_O ],          du/da = -F

which is 0 where the data are Gaussian: an untrained network, whose output is 0, draws what is missing from
the Gaussian with the data's moments, given what is known.  The flow du/da = -F carries z at the last time to
r, and with it the density

    log q(x_M | x_O) = log N(u_end) - int div F da - log |dx_M / dr|

References: Tashiro et al., "CSDI: Conditional Score-based Diffusion Models for Probabilistic Time Series
Imputation" (2107.03502), for the condition; Salimans and Ho (2202.00512) for the angle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.models.entries.gaussian import GivenEntries
from sde_toolkit.models.network import ModuleModel, NetworkModel
from sde_toolkit.models.score import TIME_SCALE, check_states, known_moments
from sde_toolkit.utils import checked, integer

DRAW_STEPS = 10
"""Evaluations for one draw of missing entries, by default."""

_DENSITY_STEPS = 24
_T_MIN = 1e-5
_LOG_2PI = math.log(2 * math.pi)


def check_entries(model: ModuleModel) -> None:
    """Refuse a model whose network cannot be told which entries are known.

    Raises:
        ValueError: examples that are no vectors, or a network whose condition is not one number per entry.
    """
    shape = tuple(model.event_shape)
    if len(shape) != 1 or model.condition_shape != shape or not isinstance(model, NetworkModel):
        raise ValueError(
            f"model must be one of vectors whose network has condition_shape {shape}, which tells it the "
            f"entries that are known, got condition_shape {model.condition_shape or '()'} for event_shape "
            f"{shape}; build it as NetworkModel(MLP({shape}, condition_shape={shape}), ...)"
        )


def turn_angles(model: ModuleModel, t_min: float = _T_MIN) -> tuple[float, float]:
    """The angles a of the first and of the last time."""
    ends = model.sde.nsr(torch.tensor([max(t_min, 1e-12), model.sde.T], dtype=torch.float64))
    low, high = ends.atan().tolist()
    return low, high


def predict_turn(model: ModuleModel, u: Tensor, angle: Tensor, known: GivenEntries) -> Tensor:
    """F with shape (B, D), 0 where entries are known.

    Args:
        model: see ``check_entries``.
        u: noised whitened coordinates with shape (B, D), float64.
        angle: a with shape () or (B,), float64.
        known: the rows.
    """
    law = known_moments(model)
    mean, scale = (part.to(u) for part in (law.mean, law.diagonal().covariance))
    standard = (known.mean - mean) / scale.clamp(min=1e-12 * law.std**2).sqrt()
    state = torch.where(known.given, standard, u).to(model.dtype)
    t = model.sde.inverse_nsr(angle.tan())
    feature = (TIME_SCALE / model.sde.T * t).to(state).expand(len(u))
    F = model.network(state, feature, known.given.to(state))
    return torch.where(known.given, 0.0, F.to(u))


def _check_rows(model: ModuleModel, x: Tensor, z: Tensor, num_steps: int) -> None:
    check_entries(model)
    check_states(model, x, finite=False)
    integer("num_steps", num_steps, 1)
    if z.shape != x.shape or not z.is_floating_point():
        raise ValueError(
            f"z must be numbers with the shape of x, {tuple(x.shape)}, got {z.dtype} with shape "
            f"{tuple(z.shape)}"
        )
    if bool(x.isinf().any()) or bool(x.isnan().all(1).any()) or not bool(z.isfinite().all()):
        raise ValueError(
            "x must have a known entry in every row, and finite ones or nan, and z must be finite; leave "
            "rows without known entries to a sampler"
        )


@checked
@torch.no_grad()
def draw_missing(model: ModuleModel, x: Tensor, z: Tensor, num_steps: int = DRAW_STEPS) -> Tensor:
    """Rows x with shape (B, D), their missing entries (nan) drawn from the model's law given the others.

    The flow of the module's head is solved by the two-step method of Adams and Bashforth, at equal steps of
    the angle.

    Args:
        model: see ``check_entries``.
        x: in model scale.
        z: standard normals with shape (B, D).
        num_steps: evaluations of the network.

    Raises:
        ValueError: another network, rows or normals of another shape, or a row without any known entry.
    """
    _check_rows(model, x, z, num_steps)
    known = GivenEntries.of(known_moments(model), x)
    _, a = turn_angles(model)
    step, u, before = a / num_steps, torch.where(known.given, 0.0, z.double()), None
    for k in range(num_steps):
        F = predict_turn(model, u, u.new_tensor(a - k * step), known)
        u = u + step * (F if before is None else 1.5 * F - 0.5 * before)
        before = F
    return torch.where(known.given, x, known.unwhiten(u).to(x))


@checked
def missing_log_density(
    model: ModuleModel, x: Tensor, z: Tensor, num_steps: int = _DENSITY_STEPS
) -> tuple[Tensor, Tensor]:
    """A draw as by ``draw_missing``, and log q(x_M | x_O) of it with shape (B,), float64.

    The flow and its divergence, which is exact, are solved by the classical Runge-Kutta method of order 4.
    Arguments are those of ``draw_missing``; ``num_steps`` takes four evaluations each.

    Raises:
        ValueError: as for ``draw_missing``.
    """
    _check_rows(model, x, z, num_steps)
    known = GivenEntries.of(known_moments(model), x)
    low, high = turn_angles(model)
    step, u = (high - low) / num_steps, torch.where(known.given, 0.0, z.double())
    log_q = -0.5 * torch.where(known.given, 0.0, u.square() + _LOG_2PI).sum(1)
    for k in range(num_steps):
        a = high - k * step
        k1, d1 = _with_divergence(model, u, a, known)
        k2, d2 = _with_divergence(model, u + 0.5 * step * k1, a - 0.5 * step, known)
        k3, d3 = _with_divergence(model, u + 0.5 * step * k2, a - 0.5 * step, known)
        k4, d4 = _with_divergence(model, u + step * k3, a - step, known)
        u = u + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        log_q = log_q - step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return torch.where(known.given, x, known.unwhiten(u).to(x)), log_q - known.log_scale


def _with_divergence(
    model: ModuleModel, u: Tensor, angle: float, known: GivenEntries
) -> tuple[Tensor, Tensor]:
    """F with shape (B, D) and its divergence with shape (B,)."""
    with torch.inference_mode(False), torch.enable_grad():
        u = u.clone().requires_grad_()
        F = predict_turn(model, u, u.new_tensor(angle), known)
        divergence = torch.zeros(len(u), dtype=u.dtype, device=u.device)
        for i in range(u.shape[1]):
            (row,) = torch.autograd.grad(F[:, i].sum(), u, retain_graph=True)
            divergence = divergence + row[:, i]
    return F.detach(), divergence.detach()
