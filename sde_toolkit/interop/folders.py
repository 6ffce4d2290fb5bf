"""Directories of other libraries: JSON documents beside weights in safetensors, read with distrust.

    DIRECTORY/config.json          or  model_index.json, which names the parts
    DIRECTORY/*.safetensors        the weights; nothing else is opened

Weights that are pickled (.bin, .pt, .ckpt) run code of whoever wrote them, so they are not read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sde_toolkit.utils import reading

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that hold pickles."""


def existing_folder(path: Path | str, what: str) -> Path:
    """The directory, with ``~`` replaced.

    Args:
        path: of the directory.
        what: it should be, for the sentence.

    Raises:
        ValueError: there is none; names on a hub are not looked up.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "nothing"
        raise ValueError(
            f"{what} must be a directory on this machine, got {str(path)!r}, where there is {found}; "
            "download it first, as in `hf download OWNER/NAME --local-dir DIRECTORY`"
        )
    return folder


def json_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{what} must have a file {path.name}, got {path.parent} without")
    with reading(path, "a JSON document"):
        found = json.loads(path.read_text(encoding="utf-8"))  # infinities are among the options
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def need_safetensors(folder: Path, remedy: str) -> None:
    """Refuse a directory without weights in safetensors.

    Args:
        folder: of the weights.
        remedy: how to turn pickled weights into safetensors, for the sentence.

    Raises:
        ValueError: there are none, or pickled ones alone.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise ValueError(
            f"weights must be a .safetensors file, got {folder / pickled[0]}, a pickle, which can run code "
            f"of whoever wrote it; if you trust it, convert it once: {remedy}"
        )
    raise ValueError(f"weights must be a .safetensors file in {folder}, got a directory without")
