"""SIGKILL at more than twenty random moments: runs end as one that was never killed, and that read files all along.

The run's own log tells in which phase each kill came: its last line was written by the process that died.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source
from tests.faults.fork_server import Server

EPOCH, SAVE, VALIDATION = "epoch", "save", "validation"
# Where a phase begins.
MARKS = {EPOCH: r"epoch \d+: training", SAVE: r"writing last\.ckpt", VALIDATION: r"epoch \d+: validation$"}
KILLS, LEAST = 20, 3

OPTIONS = (
    "adapter.mid_dim=4",
    "adapter.enhancer_dim=4",
    "adapter.dropout=0.1",
    "data.batch_size=2",  # twelve steps an epoch
    "data.eval_batch_size=1",
    "data.randaugment=true",
    "trainer.max_epochs=3",
    "training.checkpoint_every_n_steps=3",
    "training.ema_decay=0.9",
    "callbacks.progress_bar=false",
)


def lines_of(log: Path, begin: int = 0) -> list[str]:
    """The lines of a log from a byte on, the last one only if it is complete."""
    content = log.read_bytes()[begin:].decode() if log.is_file() else ""
    return content.split("\n")[:-1]


def phase_of(lines: list[str]) -> str:
    """Where the run was when it wrote the last of these lines."""
    where = before = "start"
    for line in lines:
        if re.search(MARKS[EPOCH], line):
            where = EPOCH
        elif re.search(MARKS[VALIDATION], line):
            where = VALIDATION
        elif re.search(r"epoch \d+: validated", line):
            where = "end of an epoch"
        elif re.search(MARKS[SAVE], line):
            where, before = SAVE, where
        elif "wrote last.ckpt" in line:
            where = before
    return where


def durations(lines: list[str]) -> dict[str, float]:
    """The median seconds from the beginning of each phase to the next line, and the seconds of all together."""
    times = [(datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f"), line) for line in lines if line[:2] == "20"]
    found: dict[str, list[float]] = {name: [] for name in MARKS}
    for (begin, line), (end, _) in itertools.pairwise(times):
        for name, mark in MARKS.items():
            if re.search(mark, line):
                found[name].append((end - begin).total_seconds())
    medians = {name: sorted(seconds)[len(seconds) // 2] for name, seconds in found.items()}
    return medians | {"any": (times[-1][0] - times[0][0]).total_seconds()}


def wait_for(mark: str, log: Path, begin: int, server: Server) -> bool:
    """Wait until this start has logged the mark; False if it ended before."""
    while not any(re.search(mark, line) for line in lines_of(log, begin)):
        if server.ended():
            return False
        time.sleep(0.0005)
    return True


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments__same_bytes_and_figures(
    server: Server, tiny_run: list[str], data_root: Path, tmp_path: Path, left_by: Callable[[Path], Any]
) -> None:
    """From start to start, the workers that read data and where it is read from may change."""
    arguments = [*tiny_run, *OPTIONS]
    folder = tmp_path / "shards"
    write_shards(find_source(layout="karpathy", root=data_root), folder, shard_bytes=12_000)
    files, shards = f"data.root={data_root}", f"data.shards={folder}"
    whole = tmp_path / "whole"
    output = tmp_path / "output.txt"
    server.start("train", [*arguments, f"run_dir={whole}"], output)
    assert server.wait() == 0, output.read_text()
    seconds = durations(lines_of(whole / "train.log"))

    draw = random.Random(20)
    plan = [EPOCH] * 7 + [SAVE] * 7 + [VALIDATION] * 6 + ["any"] * 4
    draw.shuffle(plan)
    landed: Counter[str] = Counter()
    reading: Counter[str] = Counter()
    runs: list[Path] = [tmp_path / "run_1"]
    finished: list[Path] = []
    for attempt in range(120):
        if landed.total() >= KILLS and min(landed[name] for name in MARKS) >= LEAST and attempt >= len(plan):
            break
        lacking = [name for name in MARKS if landed[name] < LEAST]
        target = plan[attempt] if attempt < len(plan) else draw.choice(lacking or list(MARKS))
        run = runs[-1]
        log = run / "train.log"
        begin = log.stat().st_size if log.is_file() else 0
        source = draw.choice((files, shards, shards))
        start = [*arguments, source, f"run_dir={run}", f"data.num_workers={draw.choice((0, 0, 0, 2))}"]
        server.start("train", start, output)
        reached = target == "any" or wait_for(MARKS[target], log, begin, server)
        if reached:
            time.sleep(draw.uniform(0, seconds[target]))
        if not server.ended():
            with contextlib.suppress(ProcessLookupError):  # it ended at this very moment
                os.kill(server.process, signal.SIGKILL)
        status = server.wait()
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            landed[phase_of(lines_of(log, begin))] += 1
            reading[source] += 1
        else:
            assert os.WEXITSTATUS(status) == 0, output.read_text()
            finished.append(run)
            runs.append(tmp_path / f"run_{len(runs) + 1}")
    print(dict(landed), f"in {len(runs)} runs,", dict(reading))
    assert landed.total() >= KILLS
    assert reading[shards] > reading[files] > 0
    assert min(landed[name] for name in MARKS) >= LEAST, landed

    if runs[-1].exists():  # ends as users would end it, in a process that imports everything itself
        command = [Path(sys.executable).with_name("mwa-train"), *arguments, f"run_dir={runs[-1]}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        finished.append(runs[-1])
    expected = left_by(whole)
    for run in finished:
        assert left_by(run) == expected, run
        assert not [path for path in run.rglob(".*") if path.is_file()], run
