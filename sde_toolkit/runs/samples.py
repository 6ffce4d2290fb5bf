"""Runs: a directory with a training run and what was made from it, or a checkpoint of the package.

    <workdir>/config.json                      what was trained, for reading
    <workdir>/checkpoints/step-*.safetensors   see ``sde_toolkit.state``
    <workdir>/history.csv                      step, loss, gradient norm, learning rate, seconds
    <workdir>/samples/*.npz, *.png             samples with their seed and settings, and a picture of them
    <workdir>/records.json                     the comparison, see ``sde_toolkit.compare``
    <workdir>/likelihood-<split>.json          held-out log-likelihoods
    <workdir>/figures/*.png, report.html       see ``sde_toolkit.figures`` and ``sde_toolkit.report``

Opening a run builds the averaged model from the configuration inside the checkpoint; sections that do not
bear on the weights (sampling, likelihood, comparison) may be overridden, the others may not.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_toolkit.config import (
    Config,
)
from sde_toolkit.data import Dataset
from sde_toolkit.samplers import Samples
from sde_toolkit.utils import atomic_write


def save_samples(path: Path, samples: Samples, config: Config, fingerprint: str) -> None:
    """Write samples with their seed, cost and settings as npz, atomically; nothing in it is pickled."""
    note = {
        "nfe": samples.nfe,
        "seconds": samples.seconds,
        "seed": samples.seed,
        "first_sample": samples.first_sample,
        "settings": dict(samples.settings),
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
    """Samples as something to draw: images in [0, 1] with shape (N, C, H, W), vectors as they are."""
    if x.ndim == 4 and dataset.levels is not None:
        return (dataset.scaling.to_levels(x).float() / (dataset.levels - 1)).numpy()
    return x.numpy()
