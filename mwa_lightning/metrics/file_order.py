"""What comes from many processes, in any order and perhaps twice, put into file order."""

from __future__ import annotations

import torch
from torch import Tensor


def first_of_each(numbers: Tensor, values: Tensor) -> Tensor:
    """Values sorted by their number; of those with the same number the first."""
    if bool((numbers[1:] > numbers[:-1]).all()):
        return values
    order = torch.argsort(numbers, stable=True)
    ordered = numbers[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return values[order[first]]


def broken_rows(rows: Tensor) -> Tensor:
    """Which rows (n, d) hold something that is not finite: bool (n,)."""
    smallest, largest = torch.aminmax(rows, dim=1)
    return ~(smallest.isfinite() & largest.isfinite())
