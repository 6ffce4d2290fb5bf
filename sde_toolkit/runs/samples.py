"""Files of samples, and samples as pictures.

A file <name>.npz holds two arrays: ``x``, the samples with shape (N, *), and ``note``, JSON with the seed,
the cost, the sampler's settings, the condition, the configuration and the fingerprint of the weights.
Nothing in a file is pickled, and nothing is unpickled when one is read.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_toolkit.config import Config
from sde_toolkit.data import Dataset
from sde_toolkit.lab import figures, plain_condition
from sde_toolkit.models import Condition
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import atomic_write


def save_samples(
    path: Path, samples: Samples, config: Config, fingerprint: str, condition: Condition | None = None
) -> None:
    """Write samples with their seed, cost, settings and condition as npz, atomically."""
    note = {
        "nfe": samples.nfe,
        "seconds": samples.seconds,
        "seed": samples.seed,
        "first_sample": samples.first_sample,
        "settings": dict(samples.settings),
        "condition": plain_condition(condition),
        "config": config.to_dict(),
        "model": fingerprint,
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, x=samples.x.cpu().numpy(), note=np.array(json.dumps(note)))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, stream.getvalue())


def load_samples(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Samples with shape (N, *) and the note that ``save_samples`` wrote next to them.

    Raises:
        ValueError: the file is damaged or of another kind.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["x"]), json.loads(str(arrays["note"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of samples ({error}); remove it and sample again") from None


def displayable(x: torch.Tensor, dataset: Dataset) -> np.ndarray:
    """Samples as numpy arrays to draw: images in [0, 1] with shape (N, C, H, W), vectors as they are."""
    x = x.cpu()
    if x.ndim == 4 and dataset.levels is not None:
        return (dataset.scaling.to_levels(x).float() / (dataset.levels - 1)).numpy()
    return x.numpy()


def picture_of_samples(samples: Samples, dataset: Dataset, label: str) -> bytes:
    """A PNG of all samples in one grid, or as a scatter plot."""
    title = f"{label}, seed {samples.seed}: {len(samples.x)} samples, {samples.nfe:.4g} evaluations each"
    return figures.render(figures.grid_figure(displayable(samples.x, dataset), title))
