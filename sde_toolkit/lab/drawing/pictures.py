"""Small pictures of samples as PNGs: images as tiles, points as a scatter, numbers as a histogram.

They are drawn without a plotting library, so that a page may hold one for every candidate.
"""

from __future__ import annotations

import io

import numpy as np

CELL_SIDE = 5
"""Images on a side of one picture."""

PIXELS = 144
"""Side of a picture of points, and about the side to which small tiles are enlarged."""

_OPACITY = 0.45
_DOT = np.array([0.0, 0.447, 0.698])  # #0072B2


def tile(x: np.ndarray, side: int) -> np.ndarray:
    """The first side^2 images of x with shape (N, C, H, W) as one picture in [0, 1], 0 where N is smaller.

    One channel gives shape (side (H + 1) + 1, side (W + 1) + 1), three channels a last axis of 3.
    """
    count, channels, height, width = x.shape
    picture = np.zeros((side * (height + 1) + 1, side * (width + 1) + 1, channels), dtype=np.float32)
    for i in range(min(count, side * side)):
        top, left = 1 + (i // side) * (height + 1), 1 + (i % side) * (width + 1)
        picture[top : top + height, left : left + width] = np.clip(x[i], 0, 1).transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def extent_of(real: np.ndarray) -> float:
    """Half the side of the square that points are drawn in, from the real data with shape (N, D)."""
    return 1.25 * float(np.abs(real.reshape(len(real), -1)[:, :2]).max()) or 1.0


def sample_picture(x: np.ndarray, bound: float | None = None) -> bytes:
    """A PNG of samples.

    Args:
        x: with shape (N, C, H, W) in [0, 1], or (N, D): a scatter of the first two coordinates, or a
            histogram for D = 1.
        bound: half the side of the square that points are drawn in; from x if not given.
    """
    if x.ndim == 4:
        channels = 3 if x.shape[1] >= 3 else 1
        picture = tile(x[:, :channels], CELL_SIDE)
        picture = 1 - picture if channels == 1 else picture
        scale = max(1, PIXELS // max(picture.shape[:2]))
        return _png(picture.repeat(scale, 0).repeat(scale, 1))
    points = x.reshape(len(x), -1).astype(np.float64)
    bound = extent_of(points) if bound is None else bound
    return _png(_histogram(points[:, 0], bound) if points.shape[1] == 1 else _scatter(points[:, :2], bound))


def _scatter(points: np.ndarray, bound: float) -> np.ndarray:
    """Dots of two by two pixels, darker where they overlap."""
    places = np.floor((points / bound + 1) / 2 * (PIXELS - 1)).astype(int)
    inside = places[((places >= 0) & (places < PIXELS - 1)).all(axis=1)]
    count = np.zeros((PIXELS, PIXELS))
    for right in (0, 1):
        for up in (0, 1):
            np.add.at(count, (PIXELS - 1 - inside[:, 1] - up, inside[:, 0] + right), 1)
    ink = (1 - (1 - _OPACITY) ** count)[..., None]
    return 1 - ink * (1 - _DOT)


def _histogram(values: np.ndarray, bound: float) -> np.ndarray:
    count, _ = np.histogram(values, bins=PIXELS // 3, range=(-bound, bound))
    heights = np.round(0.95 * PIXELS * count / max(count.max(), 1)).astype(int).repeat(3)
    ink = (np.arange(PIXELS)[::-1, None] < heights[None, :PIXELS])[..., None]
    return 1 - ink * (1 - _DOT)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.clip(np.round(255 * np.nan_to_num(picture)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header; (0, 0) for other bytes."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        return 0, 0
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
