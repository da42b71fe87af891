"""Runs a test file as the processes of a job, which write what they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_ranks(file: str, count: int, folder: Path, *, seconds: float = 250) -> list[Any]:
    """Start `python FILE RANK COUNT FOLDER` for each rank; returns what each has left in `FOLDER/RANK.json`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, file, str(rank), str(count), str(folder)] for rank in range(count)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [each.communicate(timeout=seconds)[1] for each in running]
    finally:
        for each in running:
            each.kill()
    assert [each.returncode for each in running] == [0] * count, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
