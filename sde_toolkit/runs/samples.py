"""Files of samples, their names, and what is believed of one that is read.

A file <name>.npz holds ``x``, the samples with shape (N, *) in model scale; ``data``, the same on the scale
of the data (integers for grey levels), where the model knows it; and ``note``, JSON with the seed, the cost,
the sampler's settings, the condition, the configuration and the fingerprint of the weights.  It holds no
time, so that equal samples are equal files, byte for byte.  Nothing in a file is pickled, and nothing is
unpickled when one is read.  How much memory its arrays would take is looked at first.

The name says the sampler, its steps or tolerance, every option that is not the default, the classes and the
seed, so that samples of other options have another name.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.config import Config, changed_fields
from sde_toolkit.lab import Candidate, NamedCondition, plain_condition
from sde_toolkit.models import Condition, ScoreModel
from sde_toolkit.runs.parts import KeepingProcesses, Shard, ShardFinishedError, cost_rows, kept_parts
from sde_toolkit.runs.starts import StartStates
from sde_toolkit.samplers import Sampler, Samples
from sde_toolkit.utils import ALONE, Processes, atomic_file

MAX_BYTES = 16 * 2**30
"""The largest arrays that are read from a file of samples."""

MAX_RATIO = 1000
"""The largest compression of an array that is read: more is no file of samples."""

_LONGEST = 80
_PIECE = 1 << 20
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_NOTE = {
    "nfe": (int, float), "seed": (int,), "first_sample": (int,), "settings": (dict,),
    "config": (dict,), "model": (str,),
}  # fmt: skip


class _Drawn(NamedTuple):
    """A batch of samples, and the cost of each."""

    x: Tensor
    nfe: Tensor
    seconds: Tensor


def draw_samples(
    model: ScoreModel,
    fingerprint: str,
    sampler: Sampler,
    path: Path,
    num_samples: int,
    *,
    condition: Condition | None = None,
    seed: int = 0,
    batch_size: int,
    processes: Processes = ALONE,
    shard: Shard | None = None,
    merging: bool = False,
    told: object = None,
    start: StartStates | None = None,
) -> Samples:
    """``Sampler.sample`` of a model, batch by batch; those that earlier calls for the same file finished are
    taken from there.  Call ``forget_parts(path)`` once they are written.

    Args:
        model: what is sampled.
        fingerprint: identifies its weights.
        sampler: which sampler.
        path: of the file that the samples are for.
        num_samples, condition, seed, batch_size: as for ``Sampler.sample``.
        processes: that share the batches; every one receives all samples.
        shard: make the batches of this shard alone, and keep them.
        merging: refuse to make a batch that is missing.
        told: what stands for the condition in files; the condition itself if None.
        start: states that the runs start from, instead of noise.

    Raises:
        ShardFinishedError: the batches of ``shard`` are made, and kept.
        ValueError, TypeError, solvers.SolverError: as for ``Sampler.sample``; a batch that is missing.
    """
    prepared = sampler.prepare(model, t_start=None if start is None else start.t)
    states = None if start is None else start.rows(num_samples)
    settings = dict(sampler.settings) | ({} if start is None else start.told)
    rows = model.conditions(condition, num_samples)
    key = {
        "model": fingerprint, "sampler": settings, "seed": seed, "batch_size": batch_size,
        "condition": plain_condition(condition) if told is None else told,
        "dtype": str(model.dtype), "num_samples": num_samples,
    }  # fmt: skip

    def draw(first: int, part: Tensor) -> _Drawn:
        given = None if rows is None else rows[first : first + batch_size]
        made = prepared.sample(
            len(part), condition=given, seed=seed, first_sample=first,
            x_start=None if states is None else states[first : first + len(part)],
            noised=start is not None and start.noised,
        )  # fmt: skip
        return _Drawn(made.x, *cost_rows(len(part), made.nfe, made.seconds))

    with kept_parts(path, key) as parts:
        keeping = KeepingProcesses(processes.rank, processes.count, parts, shard=shard, merging=merging)
        drawn = keeping.map(draw, torch.empty(num_samples, 0), batch_size)
        if shard is not None:
            raise ShardFinishedError
    nfe, seconds = (float(each.cpu().numpy().mean(dtype=np.float64)) for each in (drawn.nfe, drawn.seconds))
    return Samples(drawn.x, nfe, seconds * num_samples, seed, 0, settings, model.scaling)


def save_samples(
    path: Path,
    samples: Samples,
    config: Config,
    fingerprint: str,
    condition: Condition | NamedCondition | str | Sequence[str] | None = None,
) -> None:
    """Write samples with their seed, cost, settings and condition as npz, atomically."""
    note = {
        "nfe": samples.nfe,
        "seed": samples.seed,
        "first_sample": samples.first_sample,
        "settings": dict(samples.settings),
        "condition": plain_condition(condition),
        "config": config.to_dict(),
        "model": fingerprint,
    }
    arrays: dict[str, Any] = {"x": _numpy(samples.x)}
    if samples.scaling is not None:
        arrays["data"] = _smallest(samples.data)
    arrays["note"] = np.array(json.dumps(note))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():  # as numpy.savez_compressed, without the time of day
            entry = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as member:
                _write_array(member, array if array.flags.c_contiguous else np.ascontiguousarray(array))


def _write_array(member: IO[bytes], array: np.ndarray) -> None:
    """An array in numpy's format, in pieces, so that no copy of it is held."""
    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
    content = array.reshape(-1).view(np.uint8)
    for first in range(0, len(content), _PIECE):
        member.write(content[first : first + _PIECE].tobytes())


def load_samples(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Samples with shape (N, *) in model scale and the note that ``save_samples`` wrote next to them.

    Raises:
        ValueError: the file is damaged, of another kind, or claims more memory than samples take.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no ordinary file of this name")
        with open(path, "rb") as file:
            _check_sizes(file)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                note = json.loads(str(arrays["note"]))
                _check_note(note)
                x = arrays["x"]
        if x.ndim < 2 or x.dtype.kind != "f" or len(x) == 0 or not np.isfinite(x).all():
            raise ValueError(f"x must hold finite numbers with shape (N, *), got {x.dtype} {x.shape}")
        return torch.from_numpy(x.astype(x.dtype.newbyteorder("="))), note
    except Exception as error:  # archives break in many ways: zlib, zipfile, JSON, numpy's own
        raise ValueError(f"{path} is not a file of samples ({error}); remove it and sample again") from None


def samples_stem(candidate: Candidate, config: Config, condition: str, seed: int) -> str:
    """The name of a file of samples without its ending, as in "ddim-20-eta1.0-class3-seed0".

    Args:
        candidate: the sampler.
        config: of the run, with its overrides.
        condition: what the name says of the classes, see ``condition_suffix``.
        seed: of the noise.
    """
    label = candidate.label.replace("/", "_")  # of a path
    return f"{label}{options_suffix(config, candidate.name)}{condition}-seed{seed}"


def options_suffix(config: Config, entry: str) -> str:
    """What a name says of the options that are not at their defaults; nothing if all are."""
    changed = changed_fields(entry, config.sampling)
    if config.dtype != "float32":
        changed["dtype"] = config.dtype
    text = "".join(f"-{name}{value}" for name, value in sorted(changed.items()))
    plain = re.fullmatch(r"[\w.+-]*", text) is not None
    return text if plain and len(text) <= _LONGEST else f"-options{digest_of(text)}"


def digest_of(text: str) -> str:
    """Eight letters that stand for a text in a file's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _numpy(x: Tensor) -> np.ndarray:
    """A float array; types that numpy lacks become float32."""
    return (x if x.dtype in (torch.float16, torch.float32, torch.float64) else x.float()).cpu().numpy()


def _smallest(data: Tensor) -> np.ndarray:
    """Grey levels in the smallest type that holds them, other data as they are."""
    if data.is_floating_point():
        return _numpy(data)
    top = int(data.max())
    kind = np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.int64
    return data.cpu().numpy().astype(kind)


def _check_sizes(file: Any) -> None:
    """Refuse an archive whose arrays would take too much memory, before one is read."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            large = member.file_size > MAX_RATIO * max(member.compress_size, 2**10)
            if large or member.file_size > MAX_BYTES:
                raise ValueError(f"{member.filename[:100]!r} claims {member.file_size:,} bytes")
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(array)
            claimed = dtype.itemsize
            for size in shape:
                claimed *= int(size)
            if min(shape, default=0) < 0 or claimed > member.file_size:
                raise ValueError(f"{member.filename[:100]!r} claims the shape {shape} and has fewer bytes")


def _check_note(note: object) -> None:
    if not isinstance(note, dict):
        raise ValueError(f"note must be a JSON object, got {type(note).__name__}")
    for name, kinds in _NOTE.items():
        value = note.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"note must have {name!r}, a {kinds[-1].__name__}, got {type(value).__name__}")
