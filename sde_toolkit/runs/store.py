"""Runs: a directory with a training run and what was made from it, or a checkpoint of the package.

    <workdir>/config.json                      what was trained, for reading
    <workdir>/checkpoints/step-*.safetensors   see ``sde_toolkit.training``
    <workdir>/history.csv                      step, loss, gradient norm, learning rate, seconds
    <workdir>/samples/*.npz, *.png             samples with their seed and settings, and a picture of them
    <workdir>/records.json                     the comparison, see ``sde_toolkit.lab``
    <workdir>/likelihood-<split>.json          log-likelihoods of the examples of a split
    <workdir>/figures/*.png, report.html       figures and the page that shows them

Opening a run builds the averaged model from the configuration inside the checkpoint; sections that do not
bear on the weights (sampling, likelihood, comparison) may be overridden, the others may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_toolkit.config import (
    Config,
    build_model,
    checkpoint_config,
    config_names,
    load_config,
    override_config,
    resolve_dtype,
    trained_sections,
)
from sde_toolkit.models import NetworkModel, class_moments_from_tensors, moments_from_tensors
from sde_toolkit.training import (
    Checkpoint,
    config_differences,
    export_checkpoint,
    latest_checkpoint,
    load_ema,
    read_checkpoint,
)


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model, ready for use.

    Attributes:
        config: of the training, with the overrides of its use.
        model: with the averaged weights.
        checkpoint: where the weights came from.
        workdir: of the run; None for a checkpoint of the package.
        fingerprint: identifies the weights.
    """

    config: Config
    model: NetworkModel
    checkpoint: Checkpoint
    workdir: Path | None
    fingerprint: str

    @property
    def step(self) -> int:
        """Number of updates that the weights have seen."""
        return self.checkpoint.step


def shipped_path(name: str) -> Path:
    """Path of the package's own checkpoint for the configuration of this name; it may not exist."""
    return Path(__file__).parent.parent / "checkpoints" / f"{name}.safetensors"


def open_run(workdir: Path | str, overrides: Mapping[str, Any] | None = None) -> Run:
    """The newest checkpoint of a training run.

    Raises:
        ValueError: there is none (the sentence says how to make one), or an override bears on the weights.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"workdir {workdir} does not exist; {_how_to_train(workdir)}")
    checkpoint = latest_checkpoint(workdir)
    if checkpoint is None:
        raise ValueError(f"workdir {workdir} holds no checkpoint; {_how_to_train(workdir)}")
    return _opened(
        checkpoint, override_config(checkpoint_config(checkpoint.config), overrides or {}), workdir
    )


def open_shipped(source: str = "digits", overrides: Mapping[str, Any] | None = None) -> Run:
    """The checkpoint of the package for the configuration of this name.

    Raises:
        ValueError: there is none for this name, or an override bears on the weights.
    """
    config = load_config(source, overrides)
    path = shipped_path(source)
    if source not in config_names() or not path.is_file():
        shipped = [name for name in config_names() if shipped_path(name).is_file()]
        known = f"there is one for {', '.join(shipped)}" if shipped else "there is none at all"
        raise ValueError(
            f"no trained checkpoint ships for config {source!r} ({known}); "
            f"run `sde-toolkit train --config={source} --workdir=DIR` and give --workdir=DIR"
        )
    return _opened(read_checkpoint(path), config, None)


def saved_step(workdir: Path) -> int:
    """Step of the newest checkpoint of a run; 0 if there is none."""
    checkpoint = latest_checkpoint(workdir)
    return 0 if checkpoint is None else checkpoint.step


def _how_to_train(workdir: Path) -> str:
    return f"run `sde-toolkit train --config=digits --workdir={workdir}` first"


def _opened(checkpoint: Checkpoint, config: Config, workdir: Path | None) -> Run:
    differences = config_differences(trained_sections(checkpoint.config).to_dict(), config.to_dict())
    if differences:
        raise ValueError(
            f"{checkpoint.path} was trained with another config ({'; '.join(differences)}); "
            "drop these overrides, or train again in another workdir"
        )
    moments = moments_from_tensors(checkpoint.part("data"))
    classes = class_moments_from_tensors(checkpoint.part("data"))
    model = build_model(config, moments.event_shape, moments.diagonal().std, moments, classes)
    weights = checkpoint.part("ema").values()
    model.network.to(next(weight.dtype for weight in weights if weight.is_floating_point()))
    load_ema(model.network, checkpoint)
    model.network.requires_grad_(False).eval().to(resolve_dtype(config))
    return Run(config, model, checkpoint, workdir, _fingerprint(checkpoint))


def _fingerprint(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.part("ema").items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def export_run(run: Run, output: Path) -> int:
    """Write the averaged weights and the configuration of a run to one file; return its size in bytes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    export_checkpoint(run.checkpoint, output)
    return output.stat().st_size
