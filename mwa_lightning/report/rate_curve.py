"""A picture of a learning-rate range test: the loss at each rate, and what it suggests."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The losses of divergence would press the rest into a line: the axis ends so many times the fall above the start.
HEADROOM = 0.6


def rate_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], *, suggestion: float | None
) -> bytes:
    """A PNG with the rates on a logarithmic axis, the losses as points, and the suggestion as a line.

    Equal numbers give equal bytes.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(rates, losses, ".", markersize=4, color="tab:gray", label="loss of a step")
    axis.plot(rates, smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        axis.axvline(suggestion, color="tab:red", linestyle="--", label=f"optim.lr={suggestion:.1e}")
    start, lowest = float(smoothed[0]), float(min(smoothed))
    shown = np.array([loss for loss in losses if np.isfinite(loss)])
    room = max(HEADROOM * (start - lowest), 3 * float(shown[:10].std()), 1e-6)
    axis.set_ylim(min(lowest, float(shown.min())) - room / 6, start + room)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate (optim.lr)")
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
