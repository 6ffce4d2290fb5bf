"""Samples as pictures: one grid of all, or a folder with one file for each.

The folder is what tools that compare sets of images read: <index>.png, the index global and padded with
zeros, so that sample 17 of a seed is the same file whatever else was drawn, 8 bits a channel, and nothing
else in it.  Grey level v of L is written as round(255 v / (L - 1)).
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data import Scaling
from sde_toolkit.lab import figures
from sde_toolkit.models import DataScale
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import atomic_folder

DIGITS = 6
"""Digits of an index in a file's name, at least."""

_OURS = re.compile(r"\d{6,}\.png")
_CHANNELS = (1, 3)


def displayable(x: Tensor, scaling: DataScale | None) -> np.ndarray:
    """Samples as numpy arrays to draw: images in [0, 1] with shape (N, C, H, W), vectors as raw data.

    Grey levels have 0 and the highest level at the ends of [0, 1]; other images their lowest and highest
    value.  Without a scaling the samples are drawn as they are.
    """
    x = x.cpu()
    raw = x if scaling is None else scaling.to_data(x)
    if x.ndim != 4:
        return raw.numpy() if scaling is None or raw.is_floating_point() else x.numpy()
    if isinstance(scaling, Scaling) and scaling.levels is not None:
        return (raw.float() / (scaling.levels - 1)).numpy()
    low, high = raw.amin(), raw.amax()
    return ((raw - low) / (high - low).clamp(min=1e-12)).float().numpy()


def picture_of_samples(samples: Samples, label: str) -> bytes:
    """A PNG of all samples in one grid, or as a scatter plot."""
    title = f"{label}, seed {samples.seed}: {len(samples.x)} samples, {samples.nfe:.4g} evaluations each"
    return figures.render(figures.grid_figure(displayable(samples.x, samples.scaling), title))


def check_picture_shape(event_shape: tuple[int, ...], scaling: DataScale | None) -> None:
    """Refuse, with a ValueError, samples that are no images of at most 256 grey levels."""
    levels = scaling.levels if isinstance(scaling, Scaling) else None
    if len(event_shape) != 3 or event_shape[0] not in _CHANNELS:
        raise ValueError(
            "a folder of PNGs needs images (C, H, W) with 1 or 3 channels, got samples of shape "
            f"{tuple(event_shape)}; use --format=npz or grid"
        )
    if levels is None or levels > 256:
        got = "continuous data, or a model whose scaling is not known" if levels is None else levels
        raise ValueError(
            f"a folder of PNGs needs images of at most 256 grey levels, got {got}; use --format=npz or grid"
        )


def check_picture_folder(folder: Path) -> None:
    """Refuse, with a ValueError, a folder that holds anything else than such pictures: it is replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(
            f"output must be a new folder or one of such pictures, got {folder}, which is neither"
        )
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (_OURS.fullmatch(path.name) and path.is_file()):
            raise ValueError(
                f"output must be a new folder or one of numbered pictures alone, got {folder} with "
                f"{path.name!r}; name another, or move that file"
            )


def write_pictures(samples: Samples, folder: Path) -> None:
    """Write every sample as <global index>.png into ``folder``, which appears whole; an earlier one goes.

    Raises:
        ValueError: the samples are no images of at most 256 grey levels, or the folder holds other files.
        OSError: the disk is full or not writable; an earlier folder is untouched.
    """
    check_picture_shape(tuple(samples.x.shape[1:]), samples.scaling)
    check_picture_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    digits = max(DIGITS, len(str(samples.first_sample + len(samples.x) - 1)))
    with atomic_folder(folder) as new:
        for i, picture in enumerate(_eight_bits(samples), samples.first_sample):
            (new / f"{i:0{digits}d}.png").write_bytes(_png(picture))


def _eight_bits(samples: Samples) -> np.ndarray:
    """uint8 with shape (N, H, W) or (N, H, W, 3)."""
    scaling = samples.scaling
    assert isinstance(scaling, Scaling)
    assert scaling.levels is not None
    v = (samples.data.double() * (255 / (scaling.levels - 1))).round().to(torch.uint8).cpu()
    return (v[:, 0] if v.shape[1] == 1 else v.permute(0, 2, 3, 1)).contiguous().numpy()


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()
