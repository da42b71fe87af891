"""The benchmark of one training step, at the size of the shipped backbone: what it prints and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step__rows_of_all_methods(precision: str, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    options = f"--backbone beit3_tiny --batch 2 --rounds 1 --precision {precision} --methods full,mwa,mwa_half"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark" / "step.py"), *options.split(), "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    content = json.loads(file.read_text())
    assert (content["backbone"], content["batch"], content["precision"]) == ("beit3_tiny", 2, precision)
    rows = {row["method"]: row for row in content["rows"]}
    assert list(rows) == ["full", "mwa", "mwa_half"]
    assert all(row["step_s"] > 0 and row["peak_bytes"] > 2**20 for row in rows.values())
    assert rows["full"]["trainable"] > rows["mwa"]["trainable"] > rows["mwa_half"]["trainable"] > 0
    assert all(f"{row['trainable']:,}" in shown for row in rows.values())
