"""A disk of data that goes, a loader's worker that is killed, a loss that is not finite."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.shards import store as shards
from mwa_lightning.data.sources import find_source
from mwa_lightning.errors import DataError
from mwa_lightning.tasks.retrieval import RetrievalTask

if TYPE_CHECKING:
    from tests.faults.conftest import Disturbed

Train = Callable[..., int]
Happen = Callable[..., Any]
AGAIN = "start the same command again (a training run with this run_dir, to resume from its last checkpoint)"


@pytest.mark.parametrize("options", [(), ("data.num_workers=1", "data.max_bad_images=5")])
def test_lost_data__ends_at_once_and_goes_on_when_it_is_back(
    options: tuple[str, ...], data_root: Path, tmp_path: Path, disturbed: Disturbed, happening: Happen
) -> None:
    """Pictures may be bad, but none is replaced because all are gone: the run would be another one."""
    root = tmp_path / "pictures"
    shutil.copytree(data_root, root)
    options = (*options, f"data.root={root}")
    with happening("epoch 2: training", lambda: root.rename(tmp_path / "elsewhere")):
        line = disturbed.fails(*options)
    assert f"the data at {root / 'dataset.json'} has gone while it was used (No such file or directory)" in line
    assert AGAIN in line
    assert "replaced" not in disturbed.log
    (tmp_path / "elsewhere").rename(root)
    if len(options) == 1:
        disturbed.ends(*options)


@pytest.fixture
def in_shards(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data in shards, of which one is open at a time: files that are open outlive the name of their folder."""
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    write_shards(find_source(layout="karpathy", root=data_root), tmp_path / "shards", shard_bytes=12_000)
    return tmp_path / "shards"


@pytest.mark.parametrize("key", ["data.root", "data.shards"])
def test_lost_data__a_mount_that_leaves_an_empty_folder(
    key: str, data_root: Path, in_shards: Path, tmp_path: Path, disturbed: Disturbed, happening: Happen
) -> None:
    root = tmp_path / "mounted"
    root.mkdir()
    mount = ["mount", "--bind", str(data_root if key == "data.root" else in_shards), str(root)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    unmount = ["umount", "--lazy", str(root)]
    options = (f"{key}={root}", "data.max_bad_images=5")
    with happening("epoch 1: validation", lambda: subprocess.run(unmount, check=True)):
        line = disturbed.fails(*options)
    annotations = root / "dataset.json" if key == "data.root" else root / "annotations" / "dataset.json"
    assert f"the data at {annotations} has gone while it was used" in line
    assert AGAIN in line
    assert "replaced" not in disturbed.log
    subprocess.run(mount, check=True)
    try:
        disturbed.ends(*options)
    finally:
        subprocess.run(unmount, check=True)


def test_lost_shards__as_with_files(in_shards: Path, tmp_path: Path, disturbed: Disturbed, happening: Happen) -> None:
    options = ("data.num_workers=1", "data.max_bad_images=5", f"data.shards={in_shards}")
    with happening("epoch 2: training", lambda: in_shards.rename(tmp_path / "elsewhere")):
        line = disturbed.fails(*options)
    assert f"the data at {in_shards / 'annotations' / 'dataset.json'} has gone while it was used" in line
    assert AGAIN in line
    assert "replaced" not in disturbed.log


@pytest.mark.parametrize("first", ["files", "shards"])
def test_shards__a_run_changes_to_or_from_them_in_mid_epoch(
    first: str, data_root: Path, in_shards: Path, disturbed: Disturbed, happening: Happen
) -> None:
    """It stops where one of them has gone, and goes on with the other."""
    keys = {"files": f"data.root={data_root}", "shards": f"data.shards={in_shards}"}

    def end() -> None:
        raise DataError("the end")

    with happening("wrote last.ckpt", end):
        assert disturbed.fails(keys.pop(first)).endswith("the end")
    assert disturbed.saved_step == 2  # of three an epoch
    (other,) = keys.values()
    disturbed.ends(other)


def test_damaged_shards__in_mid_epoch(in_shards: Path, disturbed: Disturbed, happening: Happen) -> None:
    """One is named, and once all are whole again the run goes on to the bytes of one that read files all along."""
    contents = {shard: shard.read_bytes() for shard in in_shards.glob("*.tar")}

    def damage() -> None:
        for shard, content in contents.items():
            shard.write_bytes(bytes(len(content)))

    options = (f"data.shards={in_shards}", "data.max_bad_images=5")
    with happening("wrote last.ckpt", damage):
        line = disturbed.fails(*options)
    assert re.search(rf"mwa-train: error: {in_shards}/shard-0000\d.tar is damaged at 0000000\d\d", line)
    assert disturbed.saved_step == 2
    for shard, content in contents.items():
        shard.write_bytes(content)
    disturbed.ends(*options)
    assert "replaced" not in disturbed.log


def test_dead_worker__one_line_and_the_run_goes_on(disturbed: Disturbed, happening: Happen) -> None:
    def kill_one() -> None:
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)

    with happening("epoch 2: training", kill_one):
        line = disturbed.fails("data.num_workers=1")
    # Torch does not always learn how it ended.
    assert re.search(r"error: a process that reads data (was ended by a signal \(Killed\)|ended unexpectedly), ", line)
    assert "a training run resumes from its last checkpoint" in line
    disturbed.ends("data.num_workers=0")


def spoil(root: Path, to: Path, name: str = "train_7.jpg") -> str:
    """A copy of a data set of which one picture is none; returns its option."""
    shutil.copytree(root, to)
    (to / name).write_bytes(b"an error page of some server")
    return f"data.root={to}"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("data.num_workers=1", "training.zero_shot=true"),
    ],
    ids=lambda options: options[0] if options else "plain",
)
def test_bad_picture__before_the_first_checkpoint_nothing_is_left(
    options: tuple[str, ...],
    data_root: Path,
    elsewhere: Path,
    tmp_path: Path,
    train: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It shows when it is used, and is a user's mistake like a file that is missing."""
    bad = spoil(data_root, tmp_path / "pictures")
    once = ("training.checkpoint_every_n_steps=null", *options)
    assert train(bad, *once) == 2
    assert "train_7.jpg" in capsys.readouterr().err.splitlines()[-1]
    assert list(elsewhere.iterdir()) == []
    (elsewhere / "runs").mkdir()
    assert train(bad, *once, "run_dir=runs") == 2
    assert list((elsewhere / "runs").iterdir()) == []


@pytest.mark.parametrize("logger", [("logger=tensorboard",), ()], ids=["tensorboard", "notes"])
def test_bad_picture__what_others_have_made_keeps_the_directory(
    logger: tuple[str, ...], data_root: Path, tmp_path: Path, train: Train, disturbed: Disturbed, happening: Happen
) -> None:
    """A logger's files, or a person's: all of it stays, and once the picture is mended the run goes on there."""
    bad, notes = spoil(data_root, tmp_path / "pictures"), disturbed.run / "checkpoints" / "notes.txt"
    with happening("run directory", (lambda: None) if logger else (lambda: notes.write_text("dear"))):
        disturbed.fails(bad, "training.checkpoint_every_n_steps=null", *logger)
    assert (disturbed.run / "config.yaml").is_file()
    assert logger or notes.read_text() == "dear"
    disturbed.ends(f"data.root={data_root}", *logger)
    assert logger or notes.read_text() == "dear"


def test_bad_picture__an_earlier_start_keeps_its_directory(
    data_root: Path, tmp_path: Path, train: Train, disturbed: Disturbed, happening: Happen
) -> None:
    """Only what this very start has made is removed."""
    bad, run = spoil(data_root, tmp_path / "pictures"), disturbed.run

    def fail() -> None:
        raise RuntimeError

    with happening("epoch 1: training", fail):
        assert train(f"run_dir={run}") == 1
    assert not list(run.glob("checkpoints/*"))
    assert train(bad, "training.checkpoint_every_n_steps=null", f"run_dir={run}") == 2
    assert not list(run.glob("checkpoints/*"))
    assert (run / "train.log").is_file()
    disturbed.ends()


@pytest.fixture
def bad_step(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The loss of step 4 is not a number."""
    step = RetrievalTask.training_step

    def poisoned(self: RetrievalTask, *arguments: Any) -> Tensor:
        loss: Any = step(self, *arguments)
        return loss * float("nan") if self.trainer.global_step == 4 else loss

    monkeypatch.setattr(RetrievalTask, "training_step", poisoned)
    return monkeypatch


def test_nan__stops_and_names_step_tensor_and_samples(disturbed: Disturbed, bad_step: pytest.MonkeyPatch) -> None:
    """The checkpoint is from before: without what was wrong, the run ends as if it had not been."""
    line = disturbed.fails(code=4)
    assert line.startswith("mwa-train: error: step 4: the loss is not finite; samples: train_")
    assert "training.nonfinite=skip" in line
    assert disturbed.saved_step == 4
    state = torch.load(disturbed.run / "checkpoints/last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    bad_step.undo()
    disturbed.ends()


def test_nan__is_skipped_counted_and_named_where_asked(
    tmp_path: Path, whole: Path, train: Train, bad_step: pytest.MonkeyPatch, left_by: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    assert train(f"run_dir={run}", "training.nonfinite=skip") == 0
    log = (run / "train.log").read_text()
    assert log.count("WARNING step 4: the loss is not finite; samples: train_") == 1
    assert "Step skipped (1 so far)" in log
    with (run / "metrics.csv").open() as file:
        skipped = {float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/skipped_steps"}
    assert skipped == {1.0}
    assert all(tensor.isfinite().all() for tensor in load_file(run / "adapter.safetensors").values())
    assert left_by(run).last != left_by(whole).last
