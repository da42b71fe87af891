"""Position embeddings at other resolutions: invariants, and a bicubic interpolation written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mwa_lightning.backbones.positions import grid_of, interpolate_positions
from mwa_lightning.errors import CheckpointError

SIDES = st.integers(min_value=1, max_value=12)


def table(side: int, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(3 + side**2, width, generator=torch.Generator().manual_seed(seed))


def by_hand(cells: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resize of (n, n, d) by Keys' kernel with a = -0.75, pixel centres aligned, edges repeated."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    side = cells.shape[0]
    weights = np.zeros((size, side))
    for row in range(size):
        center = (row + 0.5) * side / size - 0.5
        for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            weights[row, min(max(tap, 0), side - 1)] += kernel(center - tap)
    return np.einsum("ia,jb,abd->ijd", weights, weights, cells)


@settings(max_examples=40, deadline=None)
@given(before=SIDES, after=SIDES)
def test_interpolate_positions__equals_the_formula_written_out(before: int, after: int) -> None:
    source = table(before)
    result = interpolate_positions(source, after, rows_before=3)
    assert torch.equal(result[:3], source[:3])
    expected = by_hand(source[3:].double().numpy().reshape(before, before, -1), after)
    np.testing.assert_allclose(result[3:].numpy(), expected.reshape(after**2, -1), atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(14, 24), (24, 14), (6, 4)])
def test_interpolate_positions__official_sizes(before: int, after: int) -> None:
    result = interpolate_positions(table(before), after, rows_before=3)
    assert result.shape == (3 + after**2, 5)
    assert grid_of(result, rows_before=3) == after


@settings(max_examples=20, deadline=None)
@given(before=SIDES, after=SIDES)
def test_interpolate_positions__constant_grid_stays_constant(before: int, after: int) -> None:
    source = torch.cat([table(1)[:3], torch.full((before**2, 5), 0.7)])
    result = interpolate_positions(source, after, rows_before=3)
    torch.testing.assert_close(result[3:], torch.full((after**2, 5), 0.7))


def test_interpolate_positions__same_size_keeps_the_bytes() -> None:
    source = table(14).half()
    assert interpolate_positions(source, 14, rows_before=3) is source


def test_interpolate_positions__half_precision_is_interpolated_in_fp32() -> None:
    source = table(14).half()
    result = interpolate_positions(source, 7, rows_before=3)
    assert result.dtype == torch.float32
    assert torch.equal(result, interpolate_positions(source.float(), 7, rows_before=3))


@pytest.mark.parametrize("rows", [0, 2, 3, 3 + 15, 199 + 1])
def test_grid_of__refuses_what_is_no_square(rows: int) -> None:
    with pytest.raises(
        CheckpointError, match=f"table has {max(rows - 3, 0)} rows for patches, which make no square grid; "
    ):
        grid_of(torch.zeros(rows, 4), rows_before=3)
