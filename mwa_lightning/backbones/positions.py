"""Position embeddings of images at another resolution, by the official BEiT-3 rule.

Source: microsoft/unilm beit3, utils.py, `load_model_and_may_interpolate`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mwa_lightning.backbones.multiway import FIRST_POSITION
from mwa_lightning.errors import CheckpointError

# The two unused rows and that of the CLS token lie before the grid and are copied.
ROWS_BEFORE_GRID = FIRST_POSITION + 1


def grid_of(table: Tensor) -> int:
    """The side of the square grid that a vision position table (rows, d) holds.

    Raises CheckpointError if the rows after the first three are no square number.
    """
    cells = table.shape[0] - ROWS_BEFORE_GRID
    side = math.isqrt(max(cells, 0))
    if side < 1 or side**2 != cells:
        raise CheckpointError(
            f"a vision position table of {table.shape[0]} rows holds no square grid after its first "
            f"{ROWS_BEFORE_GRID}; take a checkpoint of square images"
        )
    return side


def interpolate_positions(table: Tensor, grid: int) -> Tensor:
    """Resize a vision position table (3 + n^2, d), floating, to (3 + grid^2, d), bicubically and in fp32.

    Rows 0 to 2 are copied. A table that has the size already is returned as it is. Raises CheckpointError if
    the table holds no square grid.
    """
    side = grid_of(table)
    if side == grid:
        return table
    table = table.float()
    cells = table[ROWS_BEFORE_GRID:].unflatten(0, (side, side)).permute(2, 0, 1)  # (d, n, n)
    resized = functional.interpolate(cells[None], size=(grid, grid), mode="bicubic", align_corners=False)[0]
    return torch.cat([table[:ROWS_BEFORE_GRID], resized.permute(1, 2, 0).flatten(0, 1)])
