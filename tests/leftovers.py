"""What two runs are compared by."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import torch


class Left(NamedTuple):
    """Bytes of the best epoch, figures, rows of the table, and bytes of the last checkpoint; no times."""

    adapter: bytes
    figures: dict[str, float]
    rows: list[dict[str, str]]
    last: dict[str, bytes]


def left_by(run: Path) -> Left:
    """What a run has left that another one like it leaves too."""
    figures = json.loads((run / "metrics.json").read_text())
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["name"].startswith("time/")]
    kept = {name: value for name, value in figures.items() if not name.startswith("time/")}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    last = {name: tensor.numpy().tobytes() for name, tensor in state["state_dict"].items()}
    for key, moments in state["optimizer_states"][0]["state"].items():
        last |= {f"{key}.{name}": tensor.numpy().tobytes() for name, tensor in moments.items()}
    for callback in state["callbacks"].values():
        last |= {f"average.{name}": tensor.numpy().tobytes() for name, tensor in callback.get("average", {}).items()}
    return Left((run / "adapter.safetensors").read_bytes(), kept, rows, last)
