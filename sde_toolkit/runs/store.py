"""Runs: a directory with a training run and what was made from it, or a checkpoint of the package.

    <workdir>/config.json                      what was trained, for reading
    <workdir>/checkpoints/step-*.safetensors   see ``sde_toolkit.training``
    <workdir>/history.csv                      step, loss, gradient norm, learning rate, seconds
    <workdir>/held_out.csv, best/              held-out losses, and the best average, where they are asked for
    <workdir>/snapshots/, averages/            stored averages, and those of other lengths made from them
    <workdir>/samples/*.npz, *.png             samples with their seed and settings, and a picture of them
    <workdir>/records.json                     the comparison, see ``sde_toolkit.lab``
    <workdir>/likelihood-<split>.json          log-likelihoods of the examples of a split
    <workdir>/figures/*.png, report.html       figures and the page that shows them

Opening a run builds the averaged model from the configuration inside the checkpoint; sections that do not
bear on the weights (sampling, likelihood, comparison) may be overridden, the others may not.  A run that was
trained from Python, without a configuration, is rebuilt from the description of its model
(``sde_toolkit.training``); it is sampled like any other, but its data are known to its maker alone.

A checkpoint is not trusted (``sde_toolkit.runs.trust``): nothing that it names is imported, no path in it is
written to, and no memory is taken for sizes that its tensors do not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.config import (
    Config,
    build_dataset,
    build_model,
    build_network,
    config_names,
    load_config,
    override_config,
    parse_config,
    resolve_device,
    resolve_dtype,
    trained_sections,
)
from sde_toolkit.data import Dataset, scaling_from_tensors
from sde_toolkit.models import ModuleModel, class_moments_from_tensors, moments_from_tensors
from sde_toolkit.runs.trust import need_confirmed, need_few_parts, stored_config
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.training import (
    COMPARED_SECTIONS,
    Checkpoint,
    as_bytes,
    check_ema,
    config_differences,
    described_model,
    export_checkpoint,
    latest_checkpoint,
    load_ema,
    read_checkpoint,
    refuse_checkpoint,
)
from sde_toolkit.utils import check_output_file, checked


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model, ready for use.

    Attributes:
        config: of the training, with the overrides of its use.
        model: with the averaged weights.
        checkpoint: where the weights came from.
        workdir: of the run; None for a checkpoint of the package.
        fingerprint: identifies the weights.
        has_config: whether a configuration says how it was trained; False for a run trained from Python.
        unconfirmed: fields of the configuration that count only when they are given with the call.
    """

    config: Config
    model: ModuleModel
    checkpoint: Checkpoint
    workdir: Path | None
    fingerprint: str
    has_config: bool = True
    unconfirmed: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Number of updates that the weights have seen."""
        return self.checkpoint.step

    def __repr__(self) -> str:
        where = self.checkpoint.path if self.workdir is None else self.workdir
        return f"Run({str(where)!r}, step {self.step:,}, weights {self.fingerprint}, {self.model!r})"

    def dataset(self) -> Dataset:
        """The data that the run was trained on, as its configuration says.

        Raises:
            ValueError: a run without a configuration, or one that asks for very many examples.
        """
        if not self.has_config:
            raise ValueError(
                "the data of a run that was trained from Python are known to its maker alone, got "
                f"{self.workdir}; sample it here, and evaluate it in Python with your data set "
                "(sde_toolkit.log_likelihood, sde_toolkit.lab.compare)"
            )
        need_confirmed(self.config, self.unconfirmed)
        return build_dataset(self.config)


def shipped_path(name: str) -> Path:
    """Path of the package's own checkpoint for the configuration of this name; it may not exist."""
    return Path(__file__).parent.parent / "checkpoints" / f"{name}.safetensors"


@checked
def open_run(
    workdir: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    network: nn.Module | None = None,
    sde: ForwardSDE | None = None,
) -> Run:
    """The newest checkpoint of a training run.

    Args:
        workdir: of the run.
        overrides: of the configuration, where it does not bear on the weights.
        network: of a run trained from Python, where it is a module of yours: one built like the one trained.
            Its weights are replaced, in place.
        sde: of such a run, where it is a process of yours.

    Raises:
        ValueError: there is none (the sentence says how to make one), an override bears on the weights, or
            ``network`` or ``sde`` are missing where they are needed, or do not fit.
    """
    workdir = Path(workdir).expanduser()
    if not workdir.is_dir():
        raise ValueError(f"workdir {workdir} does not exist; {_how_to_train(workdir)}")
    checkpoint = latest_checkpoint(workdir)
    if checkpoint is None:
        raise ValueError(f"workdir {workdir} holds no checkpoint; {_how_to_train(workdir)}")
    changes = dict(overrides or {})
    if not _has_config(checkpoint):
        return _opened_description(checkpoint, changes, workdir, network, sde)
    if network is not None or sde is not None:
        raise ValueError(
            f"network and sde must be left out for a run with a configuration, got {workdir}, whose "
            "configuration says what they are"
        )
    config, unconfirmed = stored_config(checkpoint, changes)
    return _opened(checkpoint, config, workdir, unconfirmed)


@checked
def open_shipped(source: str = "digits", overrides: Mapping[str, Any] | None = None) -> Run:
    """The checkpoint of the package for the configuration of this name.

    Raises:
        ValueError: there is none for this name, or an override bears on the weights.
    """
    if source not in config_names():
        raise ValueError(f"source must be one of {', '.join(config_names())}, got {source!r}")
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


def _has_config(checkpoint: Checkpoint) -> bool:
    """Whether a run was trained from a configuration; a caller of ``TrainState`` may store any mapping."""
    return {"data", "sde", "model"} <= set(checkpoint.config)


def _opened(
    checkpoint: Checkpoint, config: Config, workdir: Path | None, unconfirmed: tuple[str, ...] = ()
) -> Run:
    differences = config_differences(trained_sections(checkpoint.config).to_dict(), config.to_dict())
    if differences:
        raise ValueError(
            f"{checkpoint.path} was trained with another config ({'; '.join(differences)}); "
            "drop these overrides, or train again in another workdir"
        )
    try:
        moments = moments_from_tensors(checkpoint.part("data"))
        classes = class_moments_from_tensors(checkpoint.part("data"))
        scaling = scaling_from_tensors(checkpoint.part("data"))
        shape, std = moments.event_shape, (checkpoint.model or {}).get("data_std", moments.diagonal().std)
        dtype = _weights_type(checkpoint)
        need_same_shapes(checkpoint, config)
        model = build_model(config, shape, std, moments, classes)
        model.network.to(dtype)
        load_ema(model.network, checkpoint)
    except (RuntimeError, TypeError, OverflowError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{checkpoint.path} cannot be opened: {error}") from error
    except ValueError as error:
        known = str(checkpoint.path) in str(error)
        raise ValueError(str(error) if known else f"{checkpoint.path} cannot be opened: {error}") from error
    model.scaling = scaling
    model.network.requires_grad_(False).eval().to(resolve_dtype(config))
    return Run(config, model, checkpoint, workdir, _fingerprint(checkpoint), True, unconfirmed)


def _opened_description(
    checkpoint: Checkpoint,
    overrides: Mapping[str, Any],
    workdir: Path,
    network: nn.Module | None,
    sde: ForwardSDE | None,
) -> Run:
    """A run without a configuration, from the description of its model."""
    trained = [path for path in overrides if path.partition(".")[0] in COMPARED_SECTIONS]
    if trained:
        raise ValueError(
            f"config.{trained[0]} must be left out for a run that was trained from Python, got "
            f"{overrides[trained[0]]!r}; only the sections sampling, likelihood and comparison may be set"
        )
    config = override_config(parse_config({}), overrides)
    tables, weights, data = (checkpoint.part(name) for name in ("sde", "ema", "data"))
    try:
        model = described_model(checkpoint.model, tables, weights, checkpoint.path, network, sde)
        if data:
            model.set_moments(moments_from_tensors(data), class_moments_from_tensors(data))
            model.scaling = scaling_from_tensors(data)
    except ValueError as error:
        raise ValueError(
            f"the run in {workdir}, which was trained from Python, cannot be opened: {error} "
            "(an argument of open_run)"
        ) from error
    model.network.requires_grad_(False)
    model.eval().to(resolve_device(config))
    if "dtype" in overrides:
        model.to(resolve_dtype(config))
    return Run(config, model, checkpoint, workdir, _fingerprint(checkpoint), has_config=False)


def need_same_shapes(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse, before memory is taken, a configuration whose network has other shapes than the checkpoint.

    Raises:
        ValueError: tensors that are missing or of another shape.
    """
    moments = moments_from_tensors(checkpoint.part("data"))
    need_few_parts(config, len(checkpoint.part("ema")))
    with torch.device("meta"):
        network = build_network(config, moments.event_shape, moments.diagonal().std)
        check_ema(network.to(_weights_type(checkpoint)), checkpoint)


def _weights_type(checkpoint: Checkpoint) -> torch.dtype:
    weights = checkpoint.part("ema").values()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def _fingerprint(checkpoint: Checkpoint) -> str:
    return fingerprint_of(checkpoint.part("ema"))


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen digits that identify weights by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()[:16]


def export_run(run: Run, output: Path) -> int:
    """Write the averaged weights and the configuration of a run to one file; return its size in bytes.

    Raises:
        ValueError: ``output`` is a directory, a link, a device or a training checkpoint.
        OSError: the disk is full; an earlier file is untouched.
    """
    output = check_output_file(output)
    refuse_checkpoint(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    export_checkpoint(run.checkpoint, output)
    return output.stat().st_size
