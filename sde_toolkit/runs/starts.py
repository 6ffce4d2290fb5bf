"""Examples in files as states of a model: where runs start, and what is interpolated.

A file holds raw data: an array (.npy, .npz), a table, a picture or a folder of pictures.  They are brought to
model scale by the model's own scaling, grey levels at the centres of their bins.  Files of states that are in
model scale already, such as x_t, are read as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data import open_rows
from sde_toolkit.models import ScoreModel
from sde_toolkit.utils import has_method


def open_states(path: str, model: ScoreModel, raw: bool = True) -> Tensor:
    """The examples in a file as states of a model, with shape (n, *D) and its type.

    Args:
        path: of the file or folder.
        model: gives shape, type and scaling.
        raw: whether they are raw data; else they are in model scale.

    Raises:
        ValueError: no such file, one that is damaged, or examples of another shape, nan, inf, or grey levels
            that the model does not know.
    """
    rows, _ = open_rows(path)
    added = getattr(model.scaling, "num_added", 0) if raw else 0
    wanted = tuple(model.event_shape) if not added else (model.event_shape[0] - added,)
    if tuple(rows.shape[1:]) != wanted or not len(rows):
        raise ValueError(
            f"{path} must hold examples with shape (n, {', '.join(map(str, wanted))}), the model's, got "
            f"{tuple(rows.shape)}"
        )
    rows = rows.double()
    scaling: Any = model.scaling if raw else None
    if scaling is not None:
        if not has_method(scaling, "to_model"):
            raise ValueError(f"{path} holds raw data, but the model's {scaling!r} has no to_model for them")
        levels = getattr(scaling, "levels", None)
        if levels is not None and not (float(rows.min()) >= 0 and float(rows.max()) <= levels - 1):
            raise ValueError(
                f"{path} must hold grey levels 0 .. {levels - 1}, as the model's data do, got "
                f"{float(rows.min()):g} .. {float(rows.max()):g}"
            )
        rows = scaling.to_model(rows + (0.0 if levels is None else 0.5), torch.float64)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{path} must hold finite numbers, got nan or inf")
    return rows.to(model.device, model.dtype)


@dataclass(frozen=True, eq=False)
class StartStates:
    """States that the samples start from, in turn.

    Attributes:
        x: clean data or noised states in model scale, with shape (n, *D).
        t: the time of the start.
        noised: whether they are x_t already.
    """

    x: Tensor
    t: float
    noised: bool = False

    def rows(self, num_samples: int) -> Tensor:
        """The state of every sample with shape (num_samples, *D): sample i has that of example i mod n."""
        return self.x[torch.arange(num_samples, device=self.x.device) % len(self.x)]

    @property
    def told(self) -> dict[str, Any]:
        """What files say of it."""
        digest = hashlib.sha256(self.x.double().cpu().numpy().tobytes()).hexdigest()[:8]
        return {"x_start": f"{'noised' if self.noised else 'clean'} {digest}", "t_start": self.t}

    @property
    def suffix(self) -> str:
        """What the names of files say of it."""
        return f"-from-{self.told['x_start'].replace(' ', '-')}-t{self.t:g}"
