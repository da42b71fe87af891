"""A picture of how a coordinator divides its weights among the experts, layer by layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INCHES_A_COLUMN, INCHES_A_ROW = 0.75, 0.32
# Above this share of the largest value the numbers are drawn dark on light, below light on dark.
LIGHT = 0.6


def heat_map(panels: Mapping[str, Mapping[str, Sequence[float]]], *, columns: Sequence[str]) -> bytes:
    """A PNG with a panel a group; in it a row a name, the first at the bottom, with one weight from 0 to 1 a column.

    Equal numbers give equal bytes.
    """
    tallest = max(len(rows) for rows in panels.values())
    size = (1.6 + len(panels) * (len(columns) * INCHES_A_COLUMN + 0.9), 1.2 + tallest * INCHES_A_ROW)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    most = max(value for rows in panels.values() for values in rows.values() for value in values)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(list(rows.values()), vmin=0.0, vmax=most, cmap="viridis", aspect="auto", origin="lower")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(columns)), columns, fontsize=8)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        for row, values in enumerate(rows.values()):
            for column, value in enumerate(values):
                colour = "black" if value > LIGHT * most else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=list(axes), label="mean weight over tokens", shrink=0.8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
