"""The data's mean and covariance, in the eigenbasis of the covariance.

With mean m and covariance S = U diag(l) U^T the Gaussian N(m, S) stays Gaussian under x_t = alpha x0 + sigma
z.  In the scale-free state y = x_t / alpha, with the noise-to-signal ratio n, whitened coordinates are

    u = (l + n^2)^{-1/2} U^T (y - m),              y = m + U (l + n^2)^{1/2} u

and the Gaussian's probability flow leaves u at rest.  At one time it is the law

    x_t ~ N(alpha m, alpha^2 S + sigma^2 I),       x_t = alpha m + (alpha^2 S + sigma^2 I)^{1/2} z

with z ~ N(0, I) and the mean and the covariance that x_t has whatever the data's law.

S may be full (n, n), of low rank beside a multiple of the identity (``sde_toolkit.models.low_rank``),
diagonal (a variance for each feature, U = I) or a number times the identity; what is coarser than full is
still a Gaussian, only one that knows less of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models.components import check_events
from sde_toolkit.models.low_rank import Factors, LowRank, leading
from sde_toolkit.models.products import row_product, row_update
from sde_toolkit.utils import checked, host_tensor, same_values

MAX_FULL = 1024
"""Largest number of features of which the full covariance is stored: 8 MiB."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """A rotation of states, (B, *D) -> (B, n) or back.

    Args:
        factor: what rows are multiplied by, contiguous, with shape (n, n); the identity when None.
        event_shape: D where the result is a state again, (n,) where it is not.
        flatten: whether the argument has another shape than (B, n).
        update: with shape (r, n), for a factor with shape (n, r): rows become x + x factor update.
    """

    factor: Tensor | None
    event_shape: tuple[int, ...]
    flatten: bool = False
    update: Tensor | None = None

    def __call__(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x rotated, plus ``shift`` with shape (n,)."""
        rows = x.flatten(1) if self.flatten else x
        if self.update is None or self.factor is None:
            found = row_product(rows, self.factor, shift)
        else:
            found = row_update(rows, self.factor, self.update, shift)
        return found if len(self.event_shape) == 1 else found.unflatten(-1, self.event_shape)


@dataclass(frozen=True)
class CovarianceFilter:
    """Functions of a covariance S = U diag(l) U^T, applied to states: f(S) x = U diag(f(l)) U^T x.

    Args:
        variances: the l with shape (k,) which f is to be evaluated at: along all axes, or, for a covariance
            of low rank, ``LowRank.distinct``.
        down, up: U and U^T, None for the identity; the basis of low rank and its transpose.
        low_rank: whether the covariance is of low rank.
    """

    variances: Tensor
    down: Tensor | None
    up: Tensor | None
    low_rank: bool = False

    def __call__(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """The sum of f(S) x over ``terms``, with shape (B, *D).

        Args:
            terms: pairs of x with shape (B, *D) and f(l) with shape (k,) or (B, k).
        """
        shape = terms[0][0].shape
        along, whole = None, None
        for x, gain in terms:
            rows = x.flatten(1)
            part = row_product(rows, self.down)
            if self.low_rank:
                rest = gain[..., -1:]
                part, rows = (gain[..., :-1] - rest) * part, rest * rows
                whole = rows if whole is None else whole + rows
            else:
                part = gain * part
            along = part if along is None else along + part
        assert along is not None
        return row_product(along, self.up, whole).reshape(shape)


def _lasting(name: str, value: Any) -> Tensor:
    """In float64 on the host, and no tensor of inference mode, which would break later gradients."""
    tensor = host_tensor(name, value)
    return tensor.clone() if tensor.is_inference() else tensor


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


class Moments:
    """Mean and covariance of data with event shape D, in float64 on the host.

    Args:
        mean: with shape D, at least one dimension.
        covariance: with shape (n, n), n the number of features; or a ``LowRank`` or ``Factors`` of n
            features; or shape D for a diagonal one; or a number.

    Attributes:
        kind: "full", "low_rank", "diagonal" or "scalar".
        factors: those that the full covariance was multiplied out of, in the place of which a file holds
            them; None without.

    Raises:
        ValueError: values that are not finite, shapes that do not fit, or a covariance that is not symmetric
            positive semi-definite with a positive trace.
    """

    @checked
    @torch.inference_mode(False)
    def __init__(self, mean: Any, covariance: Any) -> None:
        self.mean = _lasting("mean", mean)
        self.factors: Factors | None = covariance if isinstance(covariance, Factors) else None
        if self.factors is not None:
            covariance = self.factors.matrix()
        given = isinstance(covariance, LowRank)
        self.covariance: Any = covariance if given else _lasting("covariance", covariance)
        n, event = self.mean.numel(), tuple(self.mean.shape)
        shape = covariance.shape if given else tuple(self.covariance.shape)
        kinds = {(n, n): "low_rank"} if given else {(): "scalar", event: "diagonal", (n, n): "full"}
        if self.mean.ndim < 1 or shape not in kinds:
            raise ValueError(
                f"covariance must be full ({n}, {n}), diagonal {event} or a number, for a "
                f"mean of at least one dimension, got shape {shape}"
            )
        self.kind = kinds[shape]
        if not (_finite(self.mean) and (given or _finite(self.covariance))):
            raise ValueError("mean and covariance must be finite, got nan or inf; clean the data")
        if self.kind == "full" and not torch.allclose(self.covariance, self.covariance.mT):
            raise ValueError("covariance must be symmetric, got one that is not; use (C + C.mT) / 2")
        lowest = -1e-12 * float(self._spectrum[0].amax())
        if float(self._spectrum[0].amin()) < lowest or self.std == 0:
            raise ValueError(
                "covariance must be positive semi-definite and not zero, got variances from "
                f"{float(self._spectrum[0].amin()):.6g} to {float(self._spectrum[0].amax()):.6g}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return same_values((self.mean, self.covariance), (other.mean, other.covariance))

    def __hash__(self) -> int:
        return hash((self.kind, self.event_shape))

    def __repr__(self) -> str:
        return f"Moments({self.kind}, {tuple(self.mean.shape)}, std={self.std:.4g})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape D of one sample."""
        return tuple(self.mean.shape)

    @cached_property
    @torch.inference_mode(False)
    def _spectrum(self) -> tuple[Tensor, Tensor | None]:
        if self.kind == "full":
            variances, axes = torch.linalg.eigh(self.covariance)
            return variances, axes.contiguous()
        n = self.mean.numel()
        if self.kind == "low_rank":
            return self.covariance.spectrum, None
        return (self.covariance.flatten() if self.kind == "diagonal" else self.covariance.expand(n)), None

    @cached_property
    @torch.inference_mode(False)
    def _factors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the rotations: the factors of ``project`` and of ``embed``, and the update of both."""
        if self.kind == "low_rank":
            return self.covariance.reflector
        return self.axes, None if self.axes is None else self.axes.mT.contiguous(), None

    @cached_property
    @torch.inference_mode(False)
    def _filter_factors(self) -> tuple[Tensor | None, Tensor | None]:
        """What a ``CovarianceFilter`` multiplies by, before and after its gain."""
        if self.kind != "low_rank":
            return self._factors[:2]
        return self.covariance.basis, self.covariance.basis.mT.contiguous()

    @cached_property
    @torch.inference_mode(False)
    def distinct(self) -> Tensor:
        """The variances that functions of the covariance are evaluated at: ``LowRank.distinct`` for low rank,
        those along all axes otherwise."""
        return self.covariance.distinct if self.kind == "low_rank" else self.variances

    @cached_property
    @torch.inference_mode(False)
    def variances(self) -> Tensor:
        """Variances along the axes, with shape (n,): the eigenvalues of the covariance."""
        return self._spectrum[0].clamp(min=0)

    @cached_property
    @torch.inference_mode(False)
    def axes(self) -> Tensor | None:
        """The eigenvectors, in columns, with shape (n, n); None where they are the coordinate axes."""
        if self.kind == "low_rank":
            return self.embed(torch.eye(self.mean.numel(), dtype=torch.float64)).flatten(1).mT.contiguous()
        return self._spectrum[1]

    @cached_property
    @torch.inference_mode(False)
    def std(self) -> float:
        """Root-mean-square standard deviation over the features."""
        return math.sqrt(float(self.variances.mean()))

    @cached_property
    @torch.inference_mode(False)
    def scale(self) -> float:
        """One length for the data, s = (sum l^2 / sum l)^{1/2}: the standard deviation along the axes,
        weighted by their variance."""
        return math.sqrt(float(self.variances.square().sum() / self.variances.sum()))

    @property
    def largest_std(self) -> float:
        """Standard deviation along the axis where it is largest."""
        return math.sqrt(float(self.variances.amax()))

    @checked
    def project(self, y: Tensor) -> Tensor:
        """U^T y with shape (B, n), for y with shape (B, *D), in the type and on the device of y."""
        check_events(self.event_shape, y=y)
        return self.rotations(y)[0](y)

    @checked
    def embed(self, r: Tensor) -> Tensor:
        """U r with shape (B, *D), for r with shape (B, n), in the type and on the device of r."""
        check_events((self.mean.numel(),), r=r)
        return self.rotations(r)[1](r)

    def rotations(self, like: Tensor) -> tuple[Rotation, Rotation]:
        """``project`` and ``embed`` for the type and the device of ``like``: keep them for repeated use."""
        into, out, update = (None if x is None else x.to(like) for x in self._factors)
        n = (self.mean.numel(),)
        return Rotation(into, n, self.mean.ndim > 1, update), Rotation(out, self.event_shape, update=update)

    def marginal_variances(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Variances of x_t along the axes, alpha^2 l + sigma^2, with shape (n,), or (B, n) for levels with
        shape (B,)."""
        alpha_t, sigma_t = alpha_t[..., None], sigma_t[..., None]
        return alpha_t.square() * self.variances.to(alpha_t.device) + sigma_t.square()

    @checked
    def marginal_sample(self, z: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Turn standard normals z with shape (B, *D) into draws of N(alpha m, alpha^2 S + sigma^2 I).

        Args:
            z: of any type; the draws are made in float32 at least, and have it.
            alpha_t, sigma_t: with shape ().

        Raises:
            ValueError: another event shape, or more than one number for alpha or sigma.
        """
        check_events(self.event_shape, z=z)
        for name, value in (("alpha_t", alpha_t), ("sigma_t", sigma_t)):
            if value.shape != ():
                raise ValueError(f"{name} must be one number, with shape (), got shape {tuple(value.shape)}")
        work = z.to(torch.promote_types(z.dtype, torch.float32))
        alpha, sigma = alpha_t.double(), sigma_t.double()
        # the root less sigma, so that no rotation rounds what noise alone makes
        known = alpha.square() * self.distinct
        gain = known / ((known + sigma.square()).sqrt() + sigma)
        signal = (alpha * self.mean).to(work) + self.filter(work)((work, gain.to(work)))
        return (signal + sigma.to(work) * work).to(z.dtype)

    @checked
    def low_rank(self, rank: int | None = None) -> Moments:
        """The same mean, the axes of the ``rank`` largest variances, and the mean variance along the others.

        Args:
            rank: 1 to n - 1; when None, as many as hold 99 % of the variance, at most ``MAX_RANK``.
        """
        variances = self.variances
        order = variances.argsort(descending=True)
        r = leading(variances[order], float(variances.sum()), len(variances)) if rank is None else rank
        if not 1 <= r < len(variances):
            raise ValueError(f"rank must be 1 to {len(variances) - 1}, got {rank}")
        unit = torch.zeros(r, len(variances), dtype=torch.float64)
        unit[torch.arange(r), order[:r]] = 1
        axes = self.embed(unit).flatten(1).mT
        return Moments(self.mean, LowRank(axes, variances[order[:r]], float(variances[order[r:]].mean())))

    @torch.inference_mode(False)
    def filter(self, like: Tensor) -> CovarianceFilter:
        """Functions of the covariance, for the type and the device of ``like``: keep it for repeated use."""
        down, up = (None if x is None else x.to(like) for x in self._filter_factors)
        return CovarianceFilter(self.distinct.to(like), down, up, self.kind == "low_rank")

    def diagonal(self) -> Moments:
        """The same mean, and the variances of the features alone."""
        if self.kind in ("full", "low_rank"):
            return Moments(self.mean, self.covariance.diagonal().reshape(self.event_shape))
        return Moments(self.mean, self.covariance.expand(self.event_shape))

    def scalar(self) -> Moments:
        """The same mean, and the mean variance of the features alone."""
        return Moments(self.mean, self.std**2)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: "mean" and "std" with shape D; "covariance" of full ones, "loadings" and
        "specific" where it has factors; "axes", "variances" and "rest" of those of low rank."""
        found = {"mean": self.mean, "std": self.diagonal().covariance.sqrt()}
        if self.factors is not None:
            return found | self.factors.tensors()
        if self.kind == "low_rank":
            found |= self.covariance.tensors()
        return found | ({"covariance": self.covariance} if self.kind == "full" else {})


def moments_from_tensors(tensors: Mapping[str, Tensor]) -> Moments:
    """The moments that ``Moments.tensors`` gave; without "covariance" and "axes" they are diagonal.

    Raises:
        ValueError: a tensor is missing, or of a shape or values that moments have not.
    """
    covariance = tensors.get("covariance")
    known = {"covariance", "axes", "loadings", "std"} & tensors.keys()
    if "mean" not in tensors or not known:
        raise ValueError(
            'the moments of the data must have "mean" and "std" or "covariance", got '
            f"{', '.join(sorted(tensors)) or 'none'}"
        )
    for name in ("mean", "std", "covariance", *LowRank.NAMES, *Factors.NAMES):
        if name in tensors and not tensors[name].is_floating_point():
            raise ValueError(f"the moments' {name} must hold real numbers, got {tensors[name].dtype}")
    if "axes" in tensors:
        return Moments(tensors["mean"], LowRank.from_tensors(tensors))
    if "loadings" in tensors:
        return Moments(tensors["mean"], Factors.from_tensors(tensors))
    if covariance is None:
        covariance = tensors["std"].double().square()
    return Moments(tensors["mean"], covariance)


def class_tensors(moments: Sequence[Moments]) -> dict[str, Tensor]:
    """For a checkpoint: ``Moments.tensors`` of every class, stacked, under names that begin with "class_"."""
    parts = [law.covariance if law.kind == "low_rank" else law.factors for law in moments]
    ranks = [0 if part is None else part.rank for part in parts]
    each = [
        law.tensors() | ({} if part is None else part.tensors(max(ranks)))
        for law, part in zip(moments, parts, strict=True)
    ]
    shared = set(each[0]).intersection(*each)
    return {f"class_{name}": torch.stack([part[name] for part in each]) for name in sorted(shared)}


def class_moments_from_tensors(tensors: Mapping[str, Tensor]) -> list[Moments] | None:
    """The moments that ``class_tensors`` gave; None if there are none.

    Raises:
        ValueError: a tensor is missing, or of a shape or values that moments have not.
    """
    parts = {name.removeprefix("class_"): part for name, part in tensors.items() if name.startswith("class_")}
    if not parts:
        return None
    counts = {len(part) if part.ndim else 0 for part in parts.values()}
    if "mean" not in parts or len(counts) > 1 or 0 in counts:
        raise ValueError(
            "the moments of the classes must have one row for every class, got "
            + ", ".join(f"{name} {tuple(part.shape)}" for name, part in sorted(parts.items()))
        )
    count = counts.pop()
    return [moments_from_tensors({name: part[k] for name, part in parts.items()}) for k in range(count)]


def isotropic(event_shape: tuple[int, ...], std: float = 1.0) -> Moments:
    """Mean 0 and covariance std^2 I: all that is known of data without further moments."""
    return Moments(torch.zeros(event_shape, dtype=torch.float64), std**2)
