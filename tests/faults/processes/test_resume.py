"""`resume=auto`, `never` and a file, and checkpoints that were truncated, through the command."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mwa_lightning.training.runs.checkpointing import BEST, LAST, PREVIOUS

Train = Callable[..., int]


class Stopped(BaseException):
    """Stands for the end of a process."""


def stop() -> None:
    raise Stopped


@pytest.fixture
def stopped(train: Train, happening: Callable[..., Any], tmp_path: Path) -> Path:
    """A run that ended in its second epoch, after the checkpoint of step 4; that of step 3 is the previous one."""
    run = tmp_path / "run"
    with pytest.raises(Stopped), happening("writing last.ckpt of step 6", stop):
        train(f"run_dir={run}")
    assert {path.name for path in (run / "checkpoints").glob("*.ckpt")} == {LAST, PREVIOUS, BEST}
    return run


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_auto__goes_on_from_another_directory_by_a_relative_path(
    stopped: Path, whole: Path, train: Train, left_by: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stopped.parent)
    assert train("run_dir=run") == 0
    assert f"resuming from {stopped / 'checkpoints' / LAST}" in (stopped / "train.log").read_text()
    assert left_by(stopped) == left_by(whole)


def test_pain_10__checkpoints_hold_what_trains_and_resume_exactly(
    stopped: Path, whole: Path, train: Train, left_by: Callable[..., Any]
) -> None:
    state = torch.load(stopped / "checkpoints" / LAST, weights_only=True)
    assert not any(name.startswith("model.backbone.") for name in state["state_dict"])
    assert len(state["optimizer_states"][0]["state"]) == len(state["state_dict"])
    assert train(f"run_dir={stopped}") == 0
    assert left_by(stopped) == left_by(whole)


# Words, and what the log says when each start but the last ends; three steps an epoch.
ENDED = {
    "max_steps, after an epoch": (["trainer.max_steps=8"], ["epoch 2: training from step 3"]),
    "max_steps, in an epoch": (["trainer.max_steps=8"], ["writing last.ckpt of step 6"]),
    "max_steps, in the last validation": (["trainer.max_steps=8"], ["epoch 3: validation"]),
    "max_steps, before a validation": (
        ["trainer.max_steps=8", "trainer.check_val_every_n_epoch=2"],
        ["epoch 2: training from step 3"],
    ),
    "steps of two batches": (
        ["trainer.accumulate_grad_batches=2", "data.batch_size=4"],
        ["writing last.ckpt of step 3", "writing last.ckpt of step 3"],
    ),
    "steps of two batches, averaged": (
        ["trainer.accumulate_grad_batches=2", "data.batch_size=4", "training.ema_decay=0.9"],
        ["epoch 2: training from step 3", "writing last.ckpt of step 6"],
    ),
}


@pytest.mark.parametrize("case", ENDED)
def test_auto__with_other_epochs_and_steps(
    case: str, train: Train, tmp_path: Path, happening: Callable[..., Any], left_by: Callable[..., Any]
) -> None:
    words, ends = ENDED[case]
    run, alone = tmp_path / "run", tmp_path / "alone"
    for line in ends:
        with pytest.raises(Stopped), happening(line, stop):
            train(*words, f"run_dir={run}")
    assert train(*words, f"run_dir={run}") == 0
    assert train(*words, f"run_dir={alone}") == 0
    assert left_by(run) == left_by(alone)


def test_never__refuses_a_run_and_takes_an_empty_directory(
    stopped: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(stopped)
    capsys.readouterr()
    assert train(f"run_dir={stopped}", "resume=never") == 2
    assert only_line(capsys) == (
        f"mwa-train: error: run_dir={stopped}: holds a run, and resume=never: choose another run_dir, or "
        "resume=auto to resume it"
    )
    assert files_of(stopped) == before
    (tmp_path / "empty").mkdir()
    assert train(f"run_dir={tmp_path / 'empty'}", "resume=never", "trainer.max_steps=1") == 0


def test_never__a_requeued_job_goes_on(
    stopped: Path, whole: Path, train: Train, left_by: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that its directory holds is its own."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert train(f"run_dir={stopped}", "resume=never") == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(f"run_dir={stopped}", "resume=never") == 0
    assert left_by(stopped) == left_by(whole)


def test_auto__a_run_killed_before_its_first_file(
    train: Train, whole: Path, tmp_path: Path, left_by: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    token = "0123456789abcdef"
    (run / ".lock").write_text(json.dumps({"token": token}))
    (run / f".config.yaml.{token}").write_text("half")
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)
    assert not [path for path in run.rglob(".*") if path.is_file()]


def test_file__of_its_own_directory_goes_back_to_it(
    stopped: Path, whole: Path, train: Train, left_by: Callable[..., Any]
) -> None:
    assert train(f"run_dir={stopped}", f"resume={stopped / 'checkpoints' / PREVIOUS}") == 0
    assert f"resuming from {stopped / 'checkpoints' / PREVIOUS}" in (stopped / "train.log").read_text()
    assert left_by(stopped) == left_by(whole)


@pytest.mark.parametrize("name", [PREVIOUS, BEST])
def test_file__of_its_own_directory_a_requeued_job_goes_back_to_once(
    name: str,
    stopped: Path,
    whole: Path,
    train: Train,
    left_by: Callable[..., Any],
    happening: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its command is the same at every start: it goes on from what it saved since, and back until it has."""
    arguments = (f"run_dir={stopped}", f"resume={stopped / 'checkpoints' / name}")
    ends = ("What trains", "writing last.ckpt of step 4", "writing last.ckpt of step 8")
    for restarts, line in enumerate(ends):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        with pytest.raises(Stopped), happening(line, stop):
            train(*arguments)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert train(*arguments) == 0
    log = (stopped / "train.log").read_text()
    origins = re.findall(r"resuming from .*/(.*)$", log, re.MULTILINE)
    assert origins == [name, name, LAST]
    assert left_by(stopped) == left_by(whole)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_file__a_requeued_job_that_lost_it_goes_on_from_the_one_before(
    damage: Callable[[Path], Any],
    stopped: Path,
    whole: Path,
    train: Train,
    left_by: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = stopped / "checkpoints" / LAST
    damage(last)
    assert train(f"run_dir={stopped}", f"resume={last}") == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(f"run_dir={stopped}", f"resume={last}") == 0
    assert f"resuming from {stopped / 'checkpoints' / PREVIOUS}" in (stopped / "train.log").read_text()
    assert left_by(stopped) == left_by(whole)


def test_file__of_another_directory_begins_a_run(
    stopped: Path,
    whole: Path,
    train: Train,
    tmp_path: Path,
    left_by: Callable[..., Any],
    happening: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second start of the new run, by the same command, goes on from its own checkpoint."""
    before = files_of(stopped)
    origin, new = stopped / "checkpoints" / PREVIOUS, tmp_path / "new"
    arguments = (f"run_dir={new}", f"resume={os.path.relpath(origin)}")
    with pytest.raises(Stopped), happening("writing last.ckpt of step 8", stop):
        train(*arguments)
    capsys.readouterr()
    assert train(f"run_dir={new}", f"resume={stopped / 'checkpoints' / LAST}") == 2
    assert "holds a run that did not begin at" in only_line(capsys)
    assert train(*arguments) == 0
    log = (new / "train.log").read_text()
    assert log.index(f"resuming from {origin}") < log.index(f"resuming from {new / 'checkpoints' / LAST}")
    expected = left_by(whole)
    later = [row for row in expected.rows if int(row["step"]) >= 3]
    assert left_by(new) == expected._replace(rows=later)
    assert files_of(stopped) == before


def test_file__without_the_best_weights_says_so(stopped: Path, train: Train, tmp_path: Path) -> None:
    """The checkpoint of step 4 lies in the second epoch; the best so far was the first."""
    new = tmp_path / "new"
    assert train(f"run_dir={new}", f"resume={stopped / 'checkpoints' / LAST}") == 0
    assert "does not hold the weights of the best epoch so far, 1:" in (new / "train.log").read_text()
    assert (new / "adapter.safetensors").is_file()


def test_file__of_a_finished_run(whole: Path, train: Train, tmp_path: Path) -> None:
    """Nothing is left to train: what it holds is evaluated."""
    assert train(f"run_dir={tmp_path / 'new'}", f"resume={whole / 'checkpoints' / LAST}") == 0
    assert (tmp_path / "new" / "adapter.safetensors").is_file()
    assert "does not hold the weights of the best epoch so far" in (tmp_path / "new" / "train.log").read_text()


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), (), "truncated or changed"),
        (lambda path: path.unlink(), (), "there is no such file"),
        (lambda path: None, ("adapter=head_only",), "its run has other settings: adapter"),
        (
            lambda path: (path.parent.parent / "config.yaml").unlink(),
            ("adapter=full",),
            "does not fit what trains",
        ),
        (lambda path: None, ("optim.lr=1e-5",), "optim.lr=1e-05 (there: auto)"),
    ],
)
def test_file__that_does_not_fit(
    damage: Callable[[Path], Any],
    arguments: tuple[str, ...],
    message: str,
    stopped: Path,
    tiny_run: list[str],
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    origin = stopped / "checkpoints" / LAST
    damage(origin)
    capsys.readouterr()
    if arguments and arguments[0].startswith("adapter="):
        from mwa_lightning.cli import train as command

        options = ("trainer.max_epochs=3", "training.checkpoint_every_n_steps=2", "callbacks.progress_bar=false")
        code = command.main([*tiny_run, *options, *arguments, f"run_dir={tmp_path / 'new'}", f"resume={origin}"])
    else:
        code = train(f"run_dir={tmp_path / 'new'}", f"resume={origin}", *arguments)
    assert code == 2
    assert message in only_line(capsys)
    assert not (tmp_path / "new").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.write_bytes(b""), flip]
)
def test_auto__cut_short_and_the_one_before_is_used(
    damage: Callable[[Path], Any],
    stopped: Path,
    whole: Path,
    train: Train,
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = stopped / "checkpoints" / LAST
    damage(last)
    assert train(f"run_dir={stopped}") == 0
    assert f"warning: {last} is truncated or changed; using the checkpoint before it" in capsys.readouterr().out
    assert f"resuming from {stopped / 'checkpoints' / PREVIOUS}" in (stopped / "train.log").read_text()
    assert left_by(stopped) == left_by(whole)


def test_auto__last_and_previous_broken_and_the_best_is_used(
    stopped: Path, whole: Path, train: Train, left_by: Callable[..., Any]
) -> None:
    for name in (LAST, PREVIOUS):
        flip(stopped / "checkpoints" / name)
    assert train(f"run_dir={stopped}") == 0
    assert f"resuming from {stopped / 'checkpoints' / BEST}" in (stopped / "train.log").read_text()
    assert left_by(stopped) == left_by(whole)


def test_auto__no_checkpoint_whole_is_an_error_and_nothing_is_lost(
    stopped: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (LAST, PREVIOUS, BEST):
        flip(stopped / "checkpoints" / name)
    before = files_of(stopped)
    capsys.readouterr()
    assert train(f"run_dir={stopped}") == 2
    assert only_line(capsys) == (
        f"mwa-train: error: {stopped / 'checkpoints'}: no checkpoint is whole: last.ckpt, previous.ckpt, best.ckpt are "
        "truncated or changed (not as in sha256.txt); put a whole one back, or start anew with another run_dir"
    )
    after = files_of(stopped)
    assert {path for path in after if before.get(path) != after[path]} == {stopped / "train.log"}
