"""Two processes with a logger beside the table: each metric is in its files, however the run ends and is started."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.conftest import COMMON, TWO

Rows = list[tuple[int, str, float]]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "start.py"]
COMMAND = [sys.executable, "-m", "mwa_lightning.cli.train"]


def untimed(rows: Rows) -> Rows:
    """Without times, and without the epoch, which is a column of the table."""
    return sorted((step, name, pytest.approx(value, rel=1e-6)) for step, name, value in rows if is_untimed(name))


def is_untimed(name: str) -> bool:
    return not name.startswith("time/") and name != "epoch"


def of_table(run: Path) -> Rows:
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def of_tensorboard(run: Path) -> Rows:
    """The curves; what a run came to is there once besides, under other names."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("logger", "ending", "start"),
    [
        ("tensorboard", "success", COMMAND),
        ("wandb", "success", TORCHRUN),
        ("wandb", "SIGTERM", COMMAND),
    ],
)
def test_train__all_metrics_are_in_the_logger_s_files_and_no_process_is_left(
    logger: str,
    ending: str,
    start: list[str],
    scenes: Path,
    elsewhere: Path,
    wandb_figures: Callable[[Path], Rows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    run = elsewhere / "run"
    (elsewhere / "start.py").write_text("import sys\nfrom mwa_lightning.cli.train import main\nsys.exit(main())\n")
    words = [*TWO, *COMMON, f"data.root={scenes}", "training.checkpoint_every_n_steps=1", f"run_dir={run}"]
    words += [f"logger={logger}", *(["logger.mode=offline"] if logger == "wandb" else [])]
    words += ["trainer.max_steps=8", "data.num_workers=1"]
    if ending == "SIGTERM":
        words.append("trainer.max_steps=1000")
    output = (elsewhere / "output").open("w")
    with subprocess.Popen([*start, *words], stdout=output, stderr=output, start_new_session=True) as process:
        table = run / "metrics.csv"
        while ending == "SIGTERM" and not (table.is_file() and "\n8," in table.read_text()):
            assert process.poll() is None, (elsewhere / "output").read_text()
            time.sleep(0.05)
        if ending == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        code = process.wait(400)
    said = (elsewhere / "output").read_text()
    assert code == {"success": 0, "SIGTERM": 75}[ending], said
    end = time.monotonic() + 20
    while left := subprocess.run(["pgrep", "-a", "-s", str(process.pid)], capture_output=True, check=False).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    rows = of_table(run)
    steps = [step for step, name, _ in rows if name == "train/loss"]
    assert steps == list(range(len(steps)))
    assert len(steps) >= {"success": 8, "SIGTERM": 9}[ending]
    assert any(name.startswith("val/") for _, name, _ in rows)
    if logger == "wandb":
        theirs = wandb_figures(run)
    else:
        closing = set(json.loads((run / "metrics.json").read_text())) if ending == "success" else set()
        names = {name for _, name, _ in rows}
        theirs = [row for row in of_tensorboard(run) if row[1] in names or row[1] not in closing]
    kept = [row for row in theirs if is_untimed(row[1])]
    assert sorted(kept) == untimed(rows)
