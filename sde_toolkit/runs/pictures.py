"""Samples as pictures: one grid of all, or a folder with one file for each.

The folder is what tools that compare sets of images read: <index>.png, the index global and padded with
zeros, so that sample 17 of a seed is the same file whatever else was drawn, 8 bits a channel, and nothing
else in it.  Grey level v of L is written as round(255 v / (L - 1)).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.config import Config
from sde_toolkit.data import Scaling
from sde_toolkit.lab import (
    Candidate,
    Group,
    Picture,
    Problem,
    Record,
    Recorder,
    candidate_captions,
    condition_rows,
    figures,
    forward_trajectory,
    plain_condition,
    short_name,
)
from sde_toolkit.models import Condition, DataScale
from sde_toolkit.runs.comparison import Comparison, condition_of, samples_path
from sde_toolkit.runs.problems import problem_folder, real_examples
from sde_toolkit.runs.samples import load_samples
from sde_toolkit.samplers import Sampler, Samples
from sde_toolkit.utils import atomic_folder

CELL_SAMPLES = figures.CELL_SIDE**2
"""Images of one candidate that are drawn, at most."""

SCATTER_SAMPLES = 1000
"""Points of one candidate that are drawn, at most."""

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


Cells = list[tuple[Record, np.ndarray]]
"""A record of each candidate, and its first samples as ``displayable`` gives them."""


def compared_samples(config: Config, directory: Path, found: Comparison) -> list[tuple[list[Record], Cells]]:
    """The records of every group of a comparison, and the first samples of its candidates: from their files,
    or drawn again where a file does not fit.

    Args:
        config: says the seeds and the number of samples.
        directory: where the samples lie.
        found: the comparison.
    """
    everything = []
    for group in found.groups:
        problem, cells = group.problem, []
        given = plain_condition(condition_of(group))
        rows = [
            r for r in found.records if r.problem == problem.name and r.settings.get("condition") == given
        ]
        known = {_candidate_key(record.settings): record for record in reversed(rows)}
        count = CELL_SAMPLES if len(problem.model.event_shape) == 3 else SCATTER_SAMPLES
        for candidate in group.candidates:
            settings = {**candidate.settings, "model": problem.fingerprint}
            settings |= {} if given is None else {"condition": given}
            record = known.get(_candidate_key(settings))
            if record is not None:
                x = _first_samples(config, directory, group, candidate, count)
                cells.append((record, displayable(x, problem.scaling)))
        everything.append((rows, cells))
    return everything


def _first_samples(config: Config, directory: Path, group: Group, candidate: Candidate, count: int) -> Tensor:
    problem, seed = group.problem, config.comparison.seeds[0]
    path = samples_path(directory, config, candidate, seed, condition_of(group), problem.folder)
    count = min(count, config.comparison.num_samples)
    if path.exists():
        x, note = load_samples(path)
        same = note["model"] == problem.fingerprint and note["settings"] == dict(candidate.settings)
        if same and note["first_sample"] == 0 and len(x) >= count:
            return x[:count]
    condition = condition_rows(group.condition, count)
    return candidate.sampler.sample(problem.model, count, condition=condition, seed=seed).x


def stored_samples(directory: Path, records: Sequence[Record]) -> Cells:
    """The first samples of each candidate that there are files of, with a record of it; nothing is drawn.

    Images are in [0, 1], on one scale for all of a problem: grey levels from 0 to the highest that any file
    holds.  Files of other weights, settings or seeds than those of the records are left out, and so are
    damaged ones.

    Args:
        directory: of the comparison.
        records: one for each candidate and metric.
    """
    wanted: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        same = wanted.setdefault((_candidate_key(record.settings), min(record.seeds)), [])
        same += [] if record.problem in [other.problem for other in same] else [record]
    found: list[tuple[Record, np.ndarray]] = []
    highest: dict[str, float] = {}
    for path in sorted((directory / "samples").rglob("*.npz")):
        try:
            x, note = load_samples(path)
        except ValueError:
            continue
        settings = {**note["settings"], "model": note["model"]}
        if note.get("condition") is not None:
            settings["condition"] = note["condition"]
        folders = ("", path.parent.name) if path.parent.name == "samples" else (path.parent.name,)
        for record in wanted.get((_candidate_key(settings), note["seed"]), []):
            if note["first_sample"] == 0 and (folders[0] == "" or problem_folder(record.problem) in folders):
                data, top = _stored_data(path, x)
                found.append((record, data[: CELL_SAMPLES if data.ndim == 4 else SCATTER_SAMPLES]))
                highest[record.problem] = max(highest.get(record.problem, 0.0), top)
    order = {id(record): place for place, record in enumerate(records)}
    found.sort(key=lambda pair: order[id(pair[0])])
    return [(record, x / highest[record.problem] if x.ndim == 4 and highest[record.problem] > 0 else x)
            for record, x in found]  # fmt: skip


def paper_cells(cells: Cells) -> dict[tuple[str, str], np.ndarray]:
    """(Sampler, caption) -> samples, no two alike."""
    captions = candidate_captions([record for record, _ in cells])
    named: dict[tuple[str, str], np.ndarray] = {}
    for (record, x), caption in zip(cells, captions, strict=True):
        name, number = short_name(record.sampler), 2
        told = caption
        while (name, told) in named:
            told, number = f"{caption}, no. {number}", number + 1
        named[name, told] = x
    return named


def _candidate_key(settings: Mapping[str, Any]) -> str:
    """What samples are of: the settings of the sampler, the weights and the condition."""
    own = {key: value for key, value in settings.items() if not key.startswith("metric.")}
    return json.dumps(own, sort_keys=True, default=dict)


def _stored_data(path: Path, x: Tensor) -> tuple[np.ndarray, float]:
    """Samples on the scale of the data, images from 0 on, and the highest value of an image."""
    with np.load(path, allow_pickle=False) as arrays:
        data = np.asarray(arrays["data"] if "data" in arrays else x.numpy(), dtype=np.float32)
    if data.ndim != 4:
        return data, 0.0
    grey = "data" in arrays and data.min() >= 0
    shifted = data if grey else data - data.min()
    return shifted, float(shifted.max())


def animation_frames(
    problem: Problem,
    sampler: Sampler,
    config: Config,
    num_samples: int,
    num_frames: int,
    label: int | None = None,
    condition: Condition | None = None,
) -> tuple[dict[str, tuple[tuple[float, ...], np.ndarray]], Samples]:
    """Samples on their way to data, beside data under the forward process at the same times; and the samples.

    Args:
        problem: what is sampled, with its real examples.
        sampler: with a fixed grid.
        config: says the seed and the size of batches.
        num_samples: drawn, and as many examples at most.
        num_frames: at most.
        label: the class of all samples and examples; None for no class.
        condition: of the samples, beside examples of all kinds; that of ``label`` if None.

    Raises:
        ValueError: a sampler without a fixed grid; a label for a model without classes; a problem without
            real examples.
    """
    data = real_examples(problem, label)
    if data is None:
        raise ValueError(
            f"problem {problem.name!r} must have real examples, which the forward process starts from, got "
            "none; give it Problem(..., real=x) with x of shape (M, *)"
        )
    model, recorder = problem.model, Recorder(num_frames, num_samples)
    seed, batch_size = config.sampling.seed, config.sampling.batch_size
    condition = label if condition is None else condition
    samples = sampler.sample(
        model, num_samples, condition=condition, seed=seed, batch_size=batch_size, callback=recorder
    )
    reverse = recorder.trajectory()
    forward = forward_trajectory(model.sde, data[:num_samples], reverse.times[::-1], seed)
    name = str(sampler.settings.get("sampler", "reverse")).replace("_", " ")
    frames = {"forward process": forward, name: reverse}
    return {
        title: (trajectory.times, _displayed(trajectory.x, problem.scaling))
        for title, trajectory in frames.items()
    }, samples


def _displayed(x: Tensor, scaling: DataScale | None) -> np.ndarray:
    """States with shape (F, n, *) on one scale for all frames."""
    shown = displayable(x.flatten(0, 1), scaling)
    return shown.reshape(*x.shape[:2], *shown.shape[1:])


def trajectory_pictures(directory: Path) -> list[Picture]:
    """The strips of frames that ``sde-toolkit animate`` left in a directory."""
    pictures = []
    for path in sorted((directory / "animations").glob("*.png")):
        told = f"{path.stem}: data under the forward process, and samples on their way from noise to data"
        pictures.append(Picture(path.read_bytes(), told, told))
    return pictures
