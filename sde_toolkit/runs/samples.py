"""Files of samples, their names, and what is believed of one that is read.

A file <name>.npz holds ``x``, the samples with shape (N, *) in model scale; ``data``, the same on the scale
of the data (integers for grey levels), where the model knows it; and ``note``, JSON with the seed, the cost,
the sampler's settings, the condition, the configuration and the fingerprint of the weights.  Nothing in a
file is pickled, and nothing is unpickled when one is read.  How much memory its arrays would take is looked
at first.

The name says the sampler, its steps or tolerance, every option that is not the default, the classes and the
seed, so that samples of other options have another name.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.config import Config, changed_fields
from sde_toolkit.lab import Candidate, plain_condition
from sde_toolkit.models import Condition
from sde_toolkit.runs.parts import kept_parts
from sde_toolkit.runs.store import Run
from sde_toolkit.samplers import Sampler, Samples
from sde_toolkit.utils import atomic_write

MAX_BYTES = 16 * 2**30
"""The largest arrays that are read from a file of samples."""

MAX_RATIO = 1000
"""The largest compression of an array that is read: more is no file of samples."""

_LONGEST = 80
_NOTE = {
    "nfe": (int, float), "seconds": (int, float), "seed": (int,), "first_sample": (int,), "settings": (dict,),
    "config": (dict,), "model": (str,),
}  # fmt: skip


def draw_samples(
    run: Run,
    sampler: Sampler,
    path: Path,
    num_samples: int,
    *,
    condition: Condition | None = None,
    seed: int = 0,
    batch_size: int,
) -> Samples:
    """``Sampler.sample`` of the run's model, batch by batch; those that an interrupted call for the same file
    finished are taken from there.  Call ``forget_parts(path)`` once they are written.

    Args:
        run: the trained model.
        sampler: which sampler.
        path: of the file that the samples are for.
        num_samples, condition, seed, batch_size: as for ``Sampler.sample``.

    Raises:
        ValueError, TypeError, solvers.SolverError: as for ``Sampler.sample``.
    """
    prepared = sampler.prepare(run.model)
    rows = run.model.conditions(condition, num_samples)
    key = {
        "model": run.fingerprint, "sampler": dict(sampler.settings), "seed": seed, "batch_size": batch_size,
        "condition": plain_condition(condition), "dtype": str(run.model.dtype),
    }  # fmt: skip
    made: list[Samples] = []
    with kept_parts(path, key) as parts:
        for first in range(0, num_samples, batch_size):
            count = min(batch_size, num_samples - first)
            given = None if rows is None else rows[first : first + count]
            known = parts.find(0, first)
            if made and known is not None and len(known[0]) == count:
                x, cost = known
                made.append(replace(made[0], x=x.to(made[0].x), nfe=float(cost[0]), seconds=float(cost[1])))
                continue
            part = prepared.sample(count, condition=given, seed=seed, first_sample=first)
            parts.add(0, first, (part.x, torch.tensor([part.nfe, part.seconds], dtype=torch.float64)))
            made.append(part)
    nfe = sum(part.nfe * len(part.x) for part in made) / num_samples
    return replace(
        made[0], x=torch.cat([part.x for part in made]), nfe=nfe, seconds=sum(part.seconds for part in made)
    )


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
    arrays: dict[str, Any] = {"x": _numpy(samples.x)}
    if samples.scaling is not None:
        arrays["data"] = _smallest(samples.data)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays, note=np.array(json.dumps(note)))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, stream.getvalue())


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
        condition: what the name says of the classes, see ``class_suffix``.
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
