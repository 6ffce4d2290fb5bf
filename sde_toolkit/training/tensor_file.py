"""One file of tensors with a JSON document about them, written whole and read with distrust.

The file is safetensors: tensors by name, and a header of strings, one of which, "sde_toolkit", holds the
document.  The document has the format version, the versions of the libraries that wrote it, and

    digest = SHA-256 over all tensors in the order of their names: name, type, shape, bytes

so that bits that changed on a disk or on the way are found.  Nothing is ever unpickled, nothing in a file is
imported or run, and what a file is, its format, its fields and their types, is checked before it is used.

Not promised: that a file is from whom it seems to be.  The digest is no signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sde_toolkit.utils import atomic_write

FORMAT_VERSION = 1

MAX_DEPTH = 64
"""The deepest nesting of a document that is read."""

_HEADER = "sde_toolkit"
_LIBRARIES = ("sde-toolkit", "torch", "numpy", "safetensors", "diffusers")


def write_tensors(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a document to one file, atomically.

    Raises:
        OSError: the disk is full or not writable; an earlier file is untouched.
        TypeError: the document holds something that JSON has no word for.
    """
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    document = {"format_version": FORMAT_VERSION, **about, "libraries": _versions(), "digest": digest(whole)}
    atomic_write(path, safetensors.torch.save(whole, {_HEADER: json.dumps(document)}))


def read_tensors(path: Path | str, what: str = "checkpoint") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a file, on the CPU.

    Args:
        path: of the file.
        what: the file is called in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ordinary file, pickled, truncated, damaged, or of a format that this version does
            not read.
    """
    path = Path(path)
    _need_ordinary(path, what)
    try:
        with open(path, "rb") as binary:
            start = binary.read(9)
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, RuntimeError, MemoryError, UnicodeError) as error:
        # torch.save's archive, or a bare pickle; a safetensors file has a brace at byte 8
        if isinstance(error, safetensors.SafetensorError) and (
            start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{")
        ):
            raise ValueError(
                f"{what} must be a safetensors file, got a pickled one, {path}; it was not loaded, "
                f"because unpickling runs code: save a {what} with this library instead"
            ) from error
        raise ValueError(
            f"{what} must be a whole safetensors file, got a truncated or foreign one, {path} ({error}); "
            "remove it, or copy it again"
        ) from error
    document = _parse(path, header, what)
    if document.pop("digest") != digest(tensors):
        raise ValueError(
            f"{what} must hold the tensors that were written, got others in {path}, whose digest differs; it "
            "was damaged: remove it, or copy it again"
        )
    return document, tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(as_bytes(tensor))
    return found.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in order, as they lie in memory, for any type."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def part_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, "name.*", under the rest of their names."""
    start = name + "."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def file_kind(path: Path) -> str | None:
    """What a file of this library says that it is; None for any other file, or none."""
    try:
        _need_ordinary(path, "file")
        with safetensors.safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        return str(document["kind"])
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError):
        return None


def copy_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], where: Path) -> None:
    """Copy the tensors of these names in place, after a check of them all; ``where`` they were read.

    Raises:
        ValueError: one is missing or of another shape or type; nothing has changed then.
    """
    check_tensors(targets, sources, where)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(_sharded_like(target, sources[name]))


def _sharded_like(target: Tensor, source: Tensor) -> Tensor:
    """The source, or this process's part of it where the target is a part of a tensor."""
    mesh, placements = getattr(target, "device_mesh", None), getattr(target, "placements", None)
    if mesh is None:
        return source
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(source.to(target.device), mesh, placements, src_data_rank=None)


def check_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors that do not fit these, which may be on the meta device and so take no memory.

    Raises:
        ValueError: one is missing or of another shape or type.
    """
    for name, target in targets.items():
        source = sources.get(name)
        if source is None:
            raise ValueError(
                f"checkpoint must hold the tensor {name!r}, got {where} without it; build the "
                "network with the checkpoint's config"
            )
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(
                f"tensor {name!r} must have shape {tuple(target.shape)} and type {target.dtype}, got "
                f"{tuple(source.shape)} and {source.dtype} in {where}; build the network with the "
                "checkpoint's config"
            )


def need_fields(path: Path, document: Mapping[str, Any], kinds: Mapping[str, type], what: str) -> None:
    """Refuse a document without one of these fields, or with one of another type, with a ValueError."""
    for name, kind in kinds.items():
        value = document.get(name)
        if type(value) is not kind:
            got = "none" if name not in document else type(value).__name__
            raise ValueError(
                f"{what} must have the field {name!r}, a {kind.__name__}, got {got} in {path}; it is of "
                "another kind, or damaged"
            )


def _need_ordinary(path: Path, what: str) -> None:
    """Raise FileNotFoundError without a file, ValueError for a directory, a pipe, a device or a loop."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ValueError(f"{what} must be a file that can be read, got {path} ({reason})") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{what} must be an ordinary file, got {path}, a directory, pipe or device")


def _parse(path: Path, header: str | None, what: str) -> dict[str, Any]:
    try:
        document = json.loads(header or "")
        found, writer = document.pop("format_version"), document["libraries"]
        if _depth(document) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        complete = found != FORMAT_VERSION or isinstance(document["digest"], str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{what} must be written by this library, got a safetensors file of another kind, {path}"
        ) from error
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{what} must have format version {FORMAT_VERSION}, got {found!r} in {path}, written by "
            f"{writer}; read it with that version of sde-toolkit"
        )
    if not complete:
        raise ValueError(f"{what} must have a digest, got none in {path}; it is damaged")
    return document


def _depth(document: object) -> int:
    """How deep mappings and lists are nested."""
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [
            part
            for value in level
            if isinstance(value, (dict, list))
            for part in (value.values() if isinstance(value, dict) else value)
        ]
    return depth


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
