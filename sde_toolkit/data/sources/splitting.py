"""Which examples train, and which are held out: a share of all by a seed, or a source of its own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.rows import Rows
from sde_toolkit.data.sources.raw import Raw, label_numbers
from sde_toolkit.data.sources.reading import Reading, absolute_source, read_source
from sde_toolkit.utils import Stream, permutation

Examples = np.ndarray | Rows


class Parts(NamedTuple):
    """Examples, labels and conditions, those of training and those held out."""

    train: Tensor | Rows
    test: Tensor | Rows
    labels: tuple[Tensor | None, Tensor | None]
    conditions: tuple[Tensor | None, Tensor | None]


def divided(x: Examples, raw: Raw, share: float, seed: int, name: str) -> Parts:
    """A share of the examples is held out."""
    train, test = _chosen(len(x), share, seed, name)

    def both(array: np.ndarray | None) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if array is None else (_tensor(array[train]), _tensor(array[test]))

    return Parts(_part(x, train), _part(x, test), both(raw.labels), both(raw.conditions))


def beside(x: Examples, raw: Raw, held: Examples, other: Raw) -> Parts:
    """All examples train; those of another source are held out."""
    labels = _tensor(raw.labels), _tensor(_same_classes(raw, other))
    return Parts(_part(x), _part(held), labels, (_tensor(raw.conditions), _tensor(other.conditions)))


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def joint_digest(raw: Raw, other: Raw, held_out: float | str | Path, name: str) -> str:
    """The digest of both sources, which must differ."""
    digests = raw.digest(), other.digest()
    _check_others(digests, held_out, name)
    return digests[0][:32] + digests[1][:32]


def is_share(text: str) -> bool:
    """Whether the held-out examples are told by a share of all."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def share_of(held_out: float | str | Path) -> float | None:
    """The fraction that is meant, None for a source."""
    try:
        share = float(held_out)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if not 0 < share < 1:
        raise ValueError(f"data.held_out must be a fraction in (0, 1) or a path, got {held_out}")
    return share


def _chosen(count: int, share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    if count < 2:
        raise ValueError(
            f"{name} must hold at least 2 examples, one to train on and one held out, got {count}"
        )
    num_test = min(max(round(share * count), 1), count - 1)
    order = permutation(count, seed, 0, Stream.SPLIT).numpy()
    return order[num_test:], order[:num_test]


def _part(x: np.ndarray | Rows, indices: np.ndarray | None = None) -> Tensor | Rows:
    """The examples of these indices, all without: in memory, or in their store."""
    if isinstance(x, Rows):
        return x if indices is None else x.take(indices)
    return torch.from_numpy(np.array(x if indices is None else x[indices]))


def read_held_out(source: str, how: Reading) -> Raw:
    """The held-out source; raises ValueError, which names the field."""
    if how.conditions.lower().endswith(".npy"):
        raise ValueError(
            "data.held_out must be a share where data.conditions is a file with a row for each example, got "
            f"{source!r} and {how.conditions!r}; keep the conditions inside .npz files or tables"
        )
    try:
        return read_source(absolute_source(source), how)
    except ValueError as error:
        raise ValueError(f"data.held_out: {error}") from None


def _check_others(digests: tuple[str, str], held_out: float | str | Path, name: str) -> None:
    if digests[0] == digests[1]:
        raise ValueError(
            f"data.held_out must hold other examples than those of training, got the same in {held_out} "
            f"and {name}; give a share such as 0.1, or another source"
        )


def _same_classes(raw: Raw, other: Raw) -> np.ndarray | None:
    """The held-out labels in the numbers of the training classes."""
    if raw.labels is None or other.labels is None or raw.classes == other.classes:
        return other.labels if raw.labels is not None else None
    names = np.array(other.classes)[other.labels] if other.classes else other.labels.astype(str)
    unknown = sorted(set(names.tolist()) - set(raw.classes))
    if unknown:
        raise ValueError(f"the held-out data have labels that training has not: {', '.join(unknown[:5])}")
    return label_numbers(np.array([raw.classes.index(name) for name in names]), "labels")[0]
