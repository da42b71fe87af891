"""Position embeddings of images at another resolution.

The rule is that of BEiT-3 (microsoft/unilm beit3, utils.py, `load_model_and_may_interpolate`), BLIP and ALBEF
(models/vit.py, `interpolate_pos_embed`) and transformers' CLIP and SigLIP (`interpolate_pos_encoding`): bicubic over
the grid, corners not aligned, the rows before the grid copied.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mwa_lightning.errors import CheckpointError


def grid_of(table: Tensor, *, rows_before: int) -> int:
    """The side of the square grid that a vision position table (rows, d) holds after its first rows.

    Raises CheckpointError if the rows after the first `rows_before` are no square number.
    """
    cells = table.shape[0] - rows_before
    side = math.isqrt(max(cells, 0))
    if side < 1 or side**2 != cells:
        raise CheckpointError(
            f"the vision position table has {max(cells, 0)} rows for patches, which make no square grid; take a "
            "checkpoint of square images"
        )
    return side


def interpolate_positions(table: Tensor, grid: int, *, rows_before: int) -> Tensor:
    """Resize a vision position table (r + n^2, d), floating, to (r + grid^2, d), bicubically and in fp32.

    The first r rows (`rows_before`: of the CLS token, or unused) are copied. A table that has the size already is
    returned as it is. Raises CheckpointError if the table holds no square grid.
    """
    side = grid_of(table, rows_before=rows_before)
    if side == grid:
        return table
    table = table.float()
    cells = table[rows_before:].unflatten(0, (side, side)).permute(2, 0, 1)  # (d, n, n)
    resized = functional.interpolate(cells[None], size=(grid, grid), mode="bicubic", align_corners=False)[0]
    return torch.cat([table[:rows_before], resized.permute(1, 2, 0).flatten(0, 1)])
