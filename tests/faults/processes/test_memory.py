"""Memory that does not suffice, by a limit set in earnest: one line, no hang, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# All that is imported fits, and 200 MB more.
PROGRAM = """
import re, resource, sys
from pathlib import Path
import mwa_lightning.training.fit, sentencepiece, torch._dynamo
from mwa_lightning.cli.train import main
limit = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) + 200_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the size of a process is read from /proc")
@pytest.mark.parametrize(
    "words",
    [
        ["backbone.image_size=1024", "backbone.patch_size=64"],
        ["backbone.image_size=4096", "backbone.patch_size=256", "data.num_workers=1"],  # in the loading process
    ],
)
def test_train__one_line(words: list[str], tiny_command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *tiny_command, *words, "data.batch_size=24", f"run_dir={run}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mwa-train: error: memory does not suffice")
    assert lines[0].endswith("start the same command again; a training run resumes from its last checkpoint")
    assert done.returncode == 2
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left <= {"config.yaml", "provenance.json", "train.log", "metrics.csv"}
