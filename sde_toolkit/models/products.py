"""Products of rows with a matrix, in which the bits of a row do not depend on the other rows.

Linear algebra libraries work through the rows of a product in blocks and treat what is left over by other
code, which rounds differently: on Intel's processors for fewer than 4 rows, on AMD's for every number of rows
that is no multiple of 4.  Rows of zeros up to a multiple of ``ROW_BLOCK`` leave nothing over.

Not promised: equal bits on different processors, or for a factor that is not contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW_BLOCK = 8
"""Numbers of rows that every kernel takes whole."""


def padded_rows(count: int) -> int:
    """The least multiple of ``ROW_BLOCK`` that is at least ``count``."""
    return -(-count // ROW_BLOCK) * ROW_BLOCK


def row_product(x: Tensor, factor: Tensor | None, shift: Tensor | None = None) -> Tensor:
    """x @ factor + shift with shape (B, m).

    Args:
        x: with shape (B, n).
        factor: contiguous, with shape (n, m); the identity when None.
        shift: with shape (m,); 0 when None.
    """
    if factor is None:
        return x if shift is None else x + shift
    count = x.shape[0]
    missing = -count % ROW_BLOCK
    if missing:
        x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
    found = torch.mm(x, factor) if shift is None else torch.addmm(shift, x, factor)
    return found[:count] if missing else found
