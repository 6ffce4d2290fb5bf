"""Linear maps by name: blurs, coarse pixels, mixed colours, Fourier coefficients, random projections.

Blurs whose kernel is a product of one for every side, Gaussian ones among them, coarse pixels and mixed
colours are products of small matrices, one for every dimension; those and Fourier coefficients are made for
images of any size.  Random projections and other blurs are matrices on flattened samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.inverse.maps import (
    EntriesMap,
    FourierMap,
    LinearMap,
    MatrixMap,
    SeparableMap,
    function_map,
)
from sde_toolkit.utils import checked, host_tensor, shown


def _check_shape(event_shape: tuple[int, ...]) -> None:
    """Refuse, with ValueError, what is neither images nor signals."""
    if len(event_shape) not in (1, 3) or any(side < 1 for side in event_shape):
        raise ValueError(f"event_shape must be (C, H, W) or (n,), got {tuple(event_shape)}")


@checked
def blur(event_shape: tuple[int, ...], kernel: Any) -> LinearMap:
    """Every channel convolved with a kernel, with zeros outside the image.

    Args:
        event_shape: (C, H, W), or (n,) for signals.
        kernel: with shape (h, w), or (h,) for signals, of odd sides.

    Raises:
        ValueError: a kernel of other dimensions than the image, of even sides, or that is not finite.
    """
    _check_shape(event_shape)
    k = host_tensor("kernel", kernel)
    dims = 2 if len(event_shape) == 3 else 1
    if k.ndim != dims or any(side % 2 == 0 for side in k.shape):
        raise ValueError(
            f"kernel must have {dims} odd sides for samples with shape {tuple(event_shape)}, got "
            f"{tuple(k.shape)}; images have shape (C, H, W), signals (n,)"
        )
    if not bool(k.isfinite().all()):
        raise ValueError("kernel must be finite, got nan or inf")
    parts = _separated(k)
    if parts is not None:
        sides = event_shape[-dims:]
        matrices = [_toeplitz(part, side) for part, side in zip(parts, sides, strict=True)]
        return SeparableMap([*[None] * (len(event_shape) - dims), *matrices], tuple(event_shape))

    def blurred(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *event_shape[-dims:])
        padding = [side // 2 for side in k.shape]
        out = torch.nn.functional.conv2d(flat, k.flip((0, 1))[None, None], padding=padding)
        return out.reshape(x.shape)

    return function_map(blurred, tuple(event_shape))


def _separated(kernel: Tensor) -> tuple[Tensor, ...] | None:
    """The kernels along every side whose product a kernel is, None where it is no product."""
    if kernel.ndim == 1:
        return (kernel,)
    U, values, V = torch.linalg.svd(kernel)
    if len(values) > 1 and float(values[1]) > 1e-14 * float(values[0]):
        return None
    root = values[0].sqrt()
    return U[:, 0] * root, V[0] * root


def _toeplitz(kernel: Tensor, side: int) -> Tensor:
    """The matrix of the convolution of ``side`` numbers with a kernel, with zeros outside."""
    place = torch.arange(side)[:, None] - torch.arange(side) + len(kernel) // 2
    inside = (place >= 0) & (place < len(kernel))
    return torch.where(inside, kernel[place.clamp(0, len(kernel) - 1)], 0.0)


@checked
def gaussian_blur(event_shape: tuple[int, ...], width: float) -> LinearMap:
    """Blur with a Gaussian kernel of standard deviation ``width`` in pixels, cut at three of it and at the
    largest side.

    Raises:
        ValueError: a width that is not positive.
    """
    _check_shape(event_shape)
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive, got {width}")
    reach = min(max(1, math.ceil(3 * min(width, 1e6))), max(event_shape))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width).square())
    line = line / line.sum()
    return blur(event_shape, line[:, None] * line if len(event_shape) == 3 else line)


@checked
def downsampling(event_shape: tuple[int, ...], factor: int) -> LinearMap:
    """Means over blocks of ``factor`` pixels in every direction: what super-resolution goes back from.

    Raises:
        ValueError: sides that the factor does not divide.
    """
    sides = event_shape[-2:] if len(event_shape) == 3 else event_shape
    _check_shape(event_shape)
    if factor < 1 or any(side % factor for side in sides):
        raise ValueError(
            f"factor must divide the sides of samples with event_shape {tuple(event_shape)}, got {factor}"
        )
    means = [
        torch.eye(side // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor for side in sides
    ]
    return SeparableMap([*[None] * (len(event_shape) - len(sides)), *means], tuple(event_shape))


@checked
def colour_mixing(event_shape: tuple[int, ...], weights: Any = None) -> LinearMap:
    """One channel, a weighted sum of all: what colourisation goes back from.

    Args:
        event_shape: (C, H, W).
        weights: with shape (C,); equal ones that sum to 1 when None.

    Raises:
        ValueError: another event shape, or weights of another shape or that are not finite.
    """
    if len(event_shape) != 3 or any(side < 1 for side in event_shape):
        raise ValueError(f"event_shape must be (C, H, W), got {tuple(event_shape)}")
    channels = event_shape[0]
    w = torch.full((channels,), 1 / channels).double() if weights is None else host_tensor("weights", weights)
    if tuple(w.shape) != (channels,):
        raise ValueError(f"weights must have shape ({channels},), one per channel, got {tuple(w.shape)}")
    if not bool(w.isfinite().all()):
        raise ValueError("weights must be finite, got nan or inf")
    return SeparableMap([w[None], None, None], tuple(event_shape))


@checked
def fourier_mask(event_shape: tuple[int, ...], mask: Any) -> LinearMap:
    """The Fourier coefficients inside a mask, as in magnetic resonance imaging: real parts, then imaginary.

    The transform is orthonormal, over the last two sides of (C, H, W), or the side of (n,).

    Args:
        event_shape: of the samples.
        mask: bool with shape (H, W) or (n,), True where a coefficient is measured; zero frequency first.

    Raises:
        ValueError: a mask of another shape, or without a True.
    """
    _check_shape(event_shape)
    sides = tuple(event_shape[-2:]) if len(event_shape) == 3 else tuple(event_shape)
    try:
        kept = torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError):
        raise TypeError(f"mask must hold True and False, got {shown(mask)}") from None
    if kept.dtype != torch.bool:
        raise TypeError(f"mask must hold True and False, got {kept.dtype}; compare it, as in mask > 0")
    if tuple(kept.shape) != sides or not bool(kept.any()):
        raise ValueError(
            f"mask must have the sides {sides} of event_shape {tuple(event_shape)} and a True somewhere, got "
            f"{tuple(kept.shape)}"
        )
    return FourierMap(tuple(event_shape), kept)


@checked
def projection(event_shape: tuple[int, ...], count: int, seed: int = 0) -> LinearMap:
    """``count`` random projections with entries N(0, 1/n), n the number of features: compressed sensing.

    Raises:
        ValueError: a count below 1.
    """
    from sde_toolkit.utils import Stream
    from solvers import Normals

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    n = math.prod(event_shape)
    if not event_shape or n < 1:
        raise ValueError(f"event_shape must hold a feature or more, got {tuple(event_shape)}")
    rows = Normals(seed, count, (n,)).draw(0, Stream.OBSERVATION)
    return MatrixMap(rows / math.sqrt(n), tuple(event_shape))


@checked
def entries(event_shape: tuple[int, ...]) -> LinearMap:
    """The features that are not nan in every row of the observation: imputation of missing values."""
    if not event_shape or math.prod(event_shape) < 1:
        raise ValueError(f"event_shape must hold a feature or more, got {tuple(event_shape)}")
    return EntriesMap(tuple(event_shape))
