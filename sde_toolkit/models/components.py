"""Gaussians in their eigenbases, and the flow of their mixtures: the arithmetic of the exact models.

y = x_t / alpha,   n = sigma / alpha,   C_k = U_k diag(l_k) U_k^T,   r_k = U_k^T (y - m_k)
log N(y; m_k, C_k + n^2) = -1/2 sum r_k^2 / (l_k + n^2) - 1/2 sum log(l_k + n^2) - n_features/2 log(2 pi)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import solvers
from sde_toolkit.models.products import full_precision, ordinary, row_product
from sde_toolkit.utils import UNSIGNED, host_tensor
from solvers.terms import expand_like

_BISECTIONS = 200
_FLOW_TOLERANCE = 1e-10


class Components:
    """K Gaussians in their eigenbases: the mathematics of the module's head, on flattened scale-free states.

    Args:
        weights: with shape (K,), summing to 1.
        means: with shape (K, n), n the number of features.
        variances: eigenvalues of the covariances with shape (K, n).
        axes: eigenvectors, in columns, with shape (K, n, n); None when the covariances are diagonal.
    """

    @torch.inference_mode(False)
    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor | None) -> None:
        weights, means, variances = ordinary(weights), ordinary(means), ordinary(variances)
        axes = None if axes is None else ordinary(axes)
        self.weights, self.means, self.variances, self.axes = weights, means, variances, axes
        self._log_weights, self._centres = weights.log(), means
        self._into = self._out = None
        if axes is not None:
            self._into = axes.permute(1, 0, 2).flatten(1).contiguous()
            self._out = axes.mT.flatten(0, 1).contiguous()
            with full_precision(means):
                self._centres = torch.einsum("kij,ki->kj", axes, means)

    @torch.inference_mode(False)
    def to(self, dtype: torch.dtype, device: torch.device) -> Components:
        """The same components in another floating-point type, on another device."""
        weights, means, variances = (c.to(device, dtype) for c in (self.weights, self.means, self.variances))
        axes = None if self.axes is None else self.axes.to(device, dtype)
        return Components(weights, means, variances, axes)

    def project(self, y: Tensor) -> Tensor:
        """U_k^T (y - m_k) with shape (B, K, n), for y with shape (B, n)."""
        if self._into is None:
            return y.unsqueeze(1) - self._centres
        return row_product(y, self._into).unflatten(-1, self.means.shape) - self._centres

    def embed(self, r: Tensor) -> Tensor:
        """Sum over k of U_k r_k with shape (B, n), for r with shape (B, K, n)."""
        return r.sum(1) if self._out is None else row_product(r.flatten(1), self._out)

    def _pull(self, y: Tensor, nsr: Tensor) -> tuple[Tensor, Tensor]:
        """(C_k + n^2)^{-1} (y - m_k) in the eigenbasis; log w_k N(y; m_k, C_k + n^2) up to a constant."""
        r = self.project(y)
        v = self.variances + expand_like(nsr.square(), r)
        pull = r / v
        return pull, (self._log_weights - 0.5 * v.log().sum(-1)) - 0.5 * (r * pull).sum(-1)

    def log_prob(self, y: Tensor, nsr: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p_n(y), in nats, with shape (B,), for y with shape (B, n) and nsr with shape () or (B,).

        With labels (B,) it is log p_n(y | k).
        """
        _, logits = self._pull(y, nsr)
        if labels is None:
            joint = logits.logsumexp(-1)
        else:
            joint = (logits - self._log_weights).gather(-1, labels[:, None])[:, 0]
        return joint - 0.5 * y.shape[1] * math.log(2 * math.pi)

    def score(self, y: Tensor, nsr: Tensor, labels: Tensor | None = None) -> Tensor:
        """grad log p_n(y) with shape (B, n), for y with shape (B, n) and nsr with shape () or (B,).

        With labels (B,) it is grad log p_n(y | k): that of every row's own component; K stands for none.
        """
        pull, logits = self._pull(y, nsr)
        # A softmax written out: the library's is slow along a short dimension.
        share = (logits - logits.amax(-1, keepdim=True).detach()).exp()
        if labels is None:
            return self.embed(share.unsqueeze(-1) * pull) / -share.sum(-1, keepdim=True)
        chosen = torch.nn.functional.one_hot(labels, len(self.weights) + 1)[:, :-1].to(pull)
        none = (labels == len(self.weights)).unsqueeze(-1)
        chosen = torch.where(none, share / share.sum(-1, keepdim=True), chosen)
        return -self.embed(chosen.unsqueeze(-1) * pull)


def conditioned(
    c: Components, A: Tensor, y: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The mixture given y = A x + N(0, diag(variance)): its weights with shape (K,), means (K, n),
    covariances (K, n, n), and log p(y) in nats.

    N(m, C) becomes N(m + K (y - A m), (I - K A) C (I - K A)^T + K R K^T), K = C A^T (A C A^T + R)^+, with
    the weight times N(y; A m, A C A^T + R).  Where that law is singular, its density is that on its range,
    and 0 off it.
    """
    means, covariances, logs = [], [], []
    for k in range(len(c.weights)):
        m = c.means[k]
        roots = c.variances[k].sqrt()
        B = roots.diag() if c.axes is None else c.axes[k] * roots
        seen, r = A @ B, y - A @ m
        values, vectors = torch.linalg.eigh(seen @ seen.mT + variance.diag())
        kept = values > 1e-13 * len(y) * values.amax().clamp(min=1e-300)
        turned = vectors.mT @ r
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
        gain = B @ (seen.mT @ vectors) * inverse @ vectors.mT
        left = B - gain @ seen
        covariance = left @ left.mT + (gain * variance) @ gain.mT
        means.append(m + gain @ r)
        covariances.append(0.5 * (covariance + covariance.mT))
        log = -0.5 * (turned.square() * inverse).sum() - 0.5 * values[kept].log().sum()
        log = log - 0.5 * int(kept.sum()) * math.log(2 * math.pi)
        off = turned[~kept].abs().amax() if bool((~kept).any()) else torch.zeros(())
        scale = float(y.abs().amax() + (A @ m).abs().amax())
        logs.append(torch.full_like(log, -math.inf) if float(off) > 1e-7 * (scale + 1e-300) else log)
    joint = c.weights.log() + torch.stack(logs)
    total = joint.logsumexp(0)
    weights = (joint - total).exp()
    return weights, torch.stack(means), torch.stack(covariances), float(total)


def table_of(name: str, value: Any) -> Tensor:
    """Finite numbers in float64; raises ValueError or TypeError for others."""
    table = host_tensor(name, value)
    table = table.clone() if table.is_inference() else table
    if not bool(table.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {table}")
    return table


def components_of(weights: Tensor, means: Tensor, covariances: Tensor, name: str) -> Components:
    """Components from means with shape (K, *D) and covariances in one of the three forms."""
    count, event_shape, shape = len(weights), tuple(means.shape[1:]), tuple(covariances.shape)
    if not event_shape or len(means) != count:
        if name == "covariance":
            raise ValueError(
                f"mean must have shape D of one dimension or more, got {event_shape}; numbers are "
                "data with shape (1,)"
            )
        raise ValueError(
            f"means must have shape (K, *D), with K = {count} weights and D of one dimension or "
            f"more, got {tuple(means.shape)}; numbers are data with shape (1,)"
        )
    n, axes = math.prod(event_shape), None
    if shape == (count, *event_shape):
        variances = covariances.flatten(1)
    elif shape == (count,):
        variances = covariances.unsqueeze(1).expand(count, n).contiguous()
    elif shape == (count, n, n):
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError(f"{name} must be symmetric; use (C + C.mT) / 2")
        variances, axes = torch.linalg.eigh(covariances)
        # What rounding leaves of a null direction is nothing.
        variances = torch.where(variances.abs() < 1e-14 * n * variances[:, -1:].abs(), 0.0, variances)
    else:
        raise ValueError(
            f"{name} must be full ({n}, {n}), diagonal {event_shape} or a number, for each of {count} "
            f"component(s) with a mean of shape {event_shape}, got shape {shape}"
        )
    if not bool((variances >= 0).all()):
        raise ValueError(
            f"{name} must be positive semi-definite, got the variance {float(variances.min()):.6g}"
        )
    return Components(weights, means.flatten(1), variances, axes)


def _log_tails(c: Components, y: Tensor, nsr: Tensor) -> tuple[Tensor, Tensor]:
    """log P(Y < y) and log P(Y > y) at ratio nsr with shape (B,), for one-dimensional y with shape (B,)."""
    q = (y.unsqueeze(1) - c.means[:, 0]) / (c.variances[:, 0] + nsr.square().unsqueeze(1)).sqrt()
    below, above = (c.weights.log() + torch.special.log_ndtr(side) for side in (q, -q))
    return below.logsumexp(1), above.logsumexp(1)


def check_events(event_shape: tuple[int, ...], **arguments: Tensor) -> None:
    """Refuse, with ValueError, a state that is not real with shape (B, *D), and times or ratios by name that
    have neither shape () nor (B,)."""
    (name, y), *rest = arguments.items()
    if tuple(y.shape[1:]) != event_shape or not y.is_floating_point() or y.is_meta:
        raise ValueError(
            f"{name} must hold real numbers with shape (B, {', '.join(map(str, event_shape))}), got "
            f"{y.dtype} on {y.device} with shape {tuple(y.shape)}"
        )
    for other, value in rest:
        if (value.ndim and value.shape != y.shape[:1]) or value.dtype in UNSIGNED or value.is_meta:
            raise ValueError(
                f"{other} must hold numbers with shape () or ({len(y)},), got {value.dtype} on "
                f"{value.device} with shape {tuple(value.shape)}"
            )


def monotone_flow(c: Components, y: Tensor, nsr_t: Tensor, nsr_s: Tensor) -> Tensor:
    """F_s^{-1}(F_t(y)) by bisection, on the logarithm of the smaller tail: no digit is lost far out."""
    means, variances = c.means[:, 0], c.variances[:, 0]
    std_t, std_s = ((variances + nsr.square().unsqueeze(1)).sqrt() for nsr in (nsr_t, nsr_s))
    # F_t(y) lies between Phi(q) for the smallest and the largest q = (y - m_k) / std_k, and a quantile of the
    # mixture lies between the same quantiles of its components.
    q = (y - means) / std_t
    low = (means + std_s * q.amin(1, keepdim=True)).amin(1)
    high = (means + std_s * q.amax(1, keepdim=True)).amax(1)
    below_t, above_t = _log_tails(c, y[:, 0], nsr_t)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below, above = _log_tails(c, middle, nsr_s)
        left = torch.where(below_t < above_t, below < below_t, above > above_t)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (0.5 * (low + high)).unsqueeze(1)


def integrated_flow(
    c: Components, y: Tensor, nsr_t: Tensor, nsr_s: Tensor, mean: Tensor, std: float
) -> Tensor:
    """DOP853 in tau, where every sample has a range of its own, mapped to fractions of it from 0 to 1."""
    from solvers.reference import SciPy  # scipy.integrate and torchsde: heavy

    start, end = (nsr_t / std).asinh().unsqueeze(1), (nsr_s / std).asinh().unsqueeze(1)

    def rate(fraction: Tensor, u: Tensor) -> Tensor:
        n = std * torch.sinh(start + fraction * (end - start))
        norm = (std**2 + n.square()).sqrt()
        return (start - end) * n * (c.score(mean + norm * u, n.squeeze(1)) + u / norm)

    u = (y - mean) / (std**2 + nsr_t.square()).sqrt().unsqueeze(1)
    control = solvers.Adaptive(0.0, 1.0, rtol=_FLOW_TOLERANCE, atol=_FLOW_TOLERANCE)
    u = solvers.solve(solvers.ODE(rate), u, SciPy("DOP853"), control).y
    return mean + (std**2 + nsr_s.square()).sqrt().unsqueeze(1) * u
