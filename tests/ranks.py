"""Runs a test file as the processes of a job, which write what they find; as a module, it is one of them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_ranks(file: str, count: int, folder: Path, *, seconds: float = 250) -> list[Any]:
    """Start `FILE RANK COUNT FOLDER` for each rank; returns what each has left in `FOLDER/RANK.json`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "tests.ranks", file]
    commands = [[*start, str(rank), str(count), str(folder)] for rank in range(count)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [each.communicate(timeout=seconds)[1] for each in running]
    finally:
        for each in running:
            each.kill()
    assert [each.returncode for each in running] == [0] * count, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stderr.flush()
    # A thread of gloo that still lets go of a tensor's Python part when Python ends would abort the process.
    os._exit(0)
