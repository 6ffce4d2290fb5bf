"""Samples that are images as one small picture, for notebooks."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

MOST = 64
"""Images in the picture."""

_WIDTH = 640


def picture(x: Tensor) -> bytes | None:
    """A PNG of the first images of x with shape (B, C, H, W), C = 1 or 3, lowest value black, highest white;
    None for samples of another shape."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        return None
    from PIL import Image

    images = x[:MOST].detach().cpu().double()
    low, high = images.amin(), images.amax()
    levels = ((images - low) / (high - low).clamp(min=1e-300) * 255).round().to(torch.uint8)
    side = math.ceil(math.sqrt(len(levels)))
    blank = levels.new_zeros(side**2 - len(levels), *levels.shape[1:])
    framed = torch.nn.functional.pad(torch.cat([levels, blank]), (0, 1, 0, 1))
    rows = framed.unflatten(0, (side, side)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = rows.squeeze(2).numpy()
    made = Image.fromarray(pixels)
    zoom = max(1, _WIDTH // made.width)
    stream = io.BytesIO()
    made.resize((zoom * made.width, zoom * made.height), Image.Resampling.NEAREST).save(stream, format="PNG")
    return stream.getvalue()
