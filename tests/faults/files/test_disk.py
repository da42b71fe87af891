"""Disks that fill up: a real one of 4 MB where we may mount one, and everywhere a limit on the size of a file."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from mwa_lightning.cli import compare, evaluate, prepare, tune
from mwa_lightning.cli import train as training
from mwa_lightning.errors import StorageError
from mwa_lightning.training.loggers.making import TableLogger
from mwa_lightning.training.runs.checkpointing import LAST, is_whole
from tests.faults.files.test_foreign_files import RECORDS, state
from tests.faults.files.test_foreign_files import fill as fill_folder

Train = Callable[..., int]


def fill(file: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("moment", ["writing last.ckpt of step 6", "epoch 2: training", "epoch 3: validated"])
def test_full_disk__one_line_and_nothing_lost(
    moment: str,
    small_disk: Path,
    whole: Path,
    train: Train,
    happening: Callable[..., Any],
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    with happening(moment, lambda: fill(ballast)):
        assert train(f"run_dir={run}") == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    # Which file it is depends on what room the last pages of the others have.
    files = (
        ["checkpoints/last.ckpt"] if "step 6" in moment else ["checkpoints/last.ckpt", "metrics.csv", "adapter.safe"]
    )
    assert line.startswith(tuple(f"mwa-train: error: {run / file}" for file in files))
    assert "cannot be written (No space left on device). What was saved before is whole" in line
    assert warnings in ([], [f"warning: {run / 'train.log'} cannot be written ([Errno 28] No space left on device)"])
    assert is_whole(run / "checkpoints" / LAST)
    rows = (run / "metrics.csv").read_text()
    assert rows.endswith("\n")
    assert {row.count(",") for row in rows.splitlines()} == {3}
    assert not [path for path in run.rglob(".*") if path.is_file()]

    ballast.unlink()
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a limit set in earnest, which stands for a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_limit__rows_of_the_table_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = TableLogger(path=path)
    table.log_metrics({"a": 0.1}, step=0)
    content = path.read_text()
    with file_limit(len(content) + 9), pytest.raises(StorageError, match=r"metrics\.csv cannot be written"):
        table.log_metrics({"a": 0.1, "b": 0.2}, step=1)
    assert path.read_text() == content


def test_file_limit__a_checkpoint_that_is_not_taken(
    whole: Path,
    tmp_path: Path,
    train: Train,
    happening: Callable[..., Any],
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit is half a checkpoint."""
    run = tmp_path / "run"
    limit = file_limit((whole / "checkpoints" / LAST).stat().st_size // 2)
    with ExitStack() as stack, happening("writing last.ckpt of step 4", lambda: stack.enter_context(limit)):
        assert train(f"run_dir={run}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'checkpoints' / LAST} cannot be written (File too large)." in line
    assert is_whole(run / "checkpoints" / LAST)
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)


def leave(room: int, disk: Path) -> Path:
    """Fill a disk but for so many blocks of it; returns the file that fills it."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(free.f_frsize * max(0, free.f_bavail - room)))
    return disk / "ballast"


def assert_whole(folder: Path) -> None:
    """Every file that a command has left can be read to its end, and no temporary one is left."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert not path.name.startswith(".") or path.name == ".lock", path
        match path.suffix:
            case ".yaml":
                assert yaml.safe_load(path.read_text()), path
            case ".json":
                assert json.loads(path.read_text()), path
            case ".csv":
                assert path.read_text().endswith("\n"), path
            case ".ckpt":
                assert is_whole(path), path
            case ".safetensors":
                with safe_open(path, "pt") as file:
                    assert file.keys(), path


# What each command says, by the number of blocks that are left for it.
NO_SPACE = "cannot be written (No space left on device)."
DATABASE = "mwa-tune: error: {folder}/study.db cannot be used (database or disk is full): make room on its disk"
FULL: dict[str, dict[int, str]] = {
    "sweep": {
        0: f"mwa-train: error: {{folder}}/multirun.yaml {NO_SPACE}",
        40: "mwa-train: error: 2 of 2 jobs failed (0, 1): see {folder}/",
    },
    "search": {0: f"mwa-tune: error: {{folder}}/multirun.yaml {NO_SPACE}", 20: DATABASE, 55: "mwa-tune: error: "},
    "compare": {0: "mwa-compare: error: output={folder}: cannot be written (No space left on device); give another"},
    "evaluate": {0: f"mwa-eval: error: {{folder}}/config.yaml {NO_SPACE}", 4: "mwa-eval: error: {folder}/"},
    "check": {0: ""},  # reads only
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", FULL)
def test_full_disk__every_command_ends_in_one_line_and_goes_on_where_there_is_room(
    command: str,
    small_disk: Path,
    tiny_command: list[str],
    whole: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among a person's files, which stay as they are; nothing that is cut short is taken for whole."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mine, root = fill_folder(small_disk / "mine", *RECORDS), small_disk / "data"
    shutil.copytree(next(word.partition("=")[2] for word in tiny_command if word.startswith("data.root=")), root)
    fill_folder(root / "figs", *RECORDS)
    before, folder = state(small_disk), mine / "new"
    main, words = {
        "sweep": (training.main, ["-m", *tiny_command, "seed=1,2", "launcher.jobs=2", f"run_dir={folder}"]),
        "search": (tune.main, [*tiny_command, "optim.lr=interval(1e-4,1e-2)", "tune.trials=1", f"run_dir={folder}"]),
        "compare": (compare.main, [str(whole), "format=csv", f"output={folder}"]),
        "evaluate": (evaluate.main, [f"run={whole}", "save_predictions=true", f"run_dir={folder}"]),
        "check": (
            prepare.main,
            ["data=karpathy", f"data.root={root}", "data.annotations=dataset.json", "check=true"],
        ),
    }[command]
    for room, says in FULL[command].items():
        ballast = leave(room, small_disk)
        code = main(words)
        said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
        if says:
            assert (code, len(said)) == (2, 1), said
            assert said[0].startswith(says.format(folder=folder))
        else:
            assert (code, said) == (0, [])
        ballast.unlink()
        now = state(small_disk)
        assert {name: now.get(name) for name in before} == before
        assert_whole(folder)
    assert main(words) == 0
    now = state(small_disk)
    assert {name: now.get(name) for name in before} == before
    assert_whole(folder)
    if command == "compare":
        assert folder.read_text().startswith("run,")
    elif command != "check":
        assert {path.parent.name for path in folder.rglob("metrics.json")} == {
            "sweep": {"0", "1"},
            "search": {"0"},
            "evaluate": {"new"},
        }[command]
