"""Products of rows with a matrix, in which the bits of a row do not depend on the other rows.

Linear algebra libraries work through the rows of a product in blocks and treat what is left over by other
code, which rounds differently: on Intel's processors for fewer than 4 rows, on AMD's for every number of rows
that is no multiple of 4.  Rows of zeros up to a multiple of ``ROW_BLOCK`` leave nothing over.

Autocast is for networks: the library's own products keep the type of their arguments under it.

Not promised: equal bits on different processors, or for a factor that is not contiguous.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

ROW_BLOCK = 8
"""Numbers of rows that every kernel takes whole."""


def padded_rows(count: int) -> int:
    """The least multiple of ``ROW_BLOCK`` that is at least ``count``."""
    return -(-count // ROW_BLOCK) * ROW_BLOCK


def is_autocast(x: Tensor) -> bool:
    """Whether torch.autocast is on for the device of x."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside, products on the device of x keep the type of their factors, under autocast too."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()


def ordinary(x: Tensor) -> Tensor:
    """x, or its copy where x was made inside inference mode and so could be in no gradient."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False), torch.no_grad():
        return x.clone()


def row_product(x: Tensor, factor: Tensor | None, shift: Tensor | None = None) -> Tensor:
    """x @ factor + shift with shape (B, m).

    Args:
        x: with shape (B, n).
        factor: contiguous, with shape (n, m); the identity when None.
        shift: with shape (m,) or (B, m); 0 when None.
    """
    if factor is None:
        return x if shift is None else x + shift
    count = x.shape[0]
    missing = -count % ROW_BLOCK
    if missing:
        x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
        if shift is not None and shift.ndim == 2:
            shift = torch.cat([shift, shift.new_zeros(missing, shift.shape[1])])
    with full_precision(x):
        found = torch.mm(x, factor) if shift is None else torch.addmm(shift, x, factor)
    return found[:count] if missing else found


def row_update(x: Tensor, down: Tensor, up: Tensor, shift: Tensor | None = None) -> Tensor:
    """x + x @ down @ up + shift with shape (B, n).

    Args:
        x: with shape (B, n).
        down, up: contiguous, with shapes (n, r) and (r, n).
        shift: with shape (n,); 0 when None.
    """
    count = x.shape[0]
    missing = -count % ROW_BLOCK
    if missing:
        x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
    with full_precision(x):
        found = torch.addmm(x if shift is None else x + shift, torch.mm(x, down), up)
    return found[:count] if missing else found
