"""Whole runs that learn and runs that do not: what the watch says of them, and that it changes nothing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
from omegaconf import DictConfig
from torch import Tensor

from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import NotLearning
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.fit import fit
from mwa_lightning.training.watching.advice import advise
from mwa_lightning.training.watching.watch import LearningWatch
from tests.training.watching.test_verdicts import AS_FALLEN, FALLEN, course

MakeConfig = Callable[..., DictConfig]


class Killed(BaseException):
    """Stands for SIGKILL."""


LONGER = (
    "optim.warmup_epochs=0",
    "optim.logit_scale_factor=1",
    "trainer.max_epochs=10",
    "trainer.check_val_every_n_epoch=10",
)


def test_watch__changes_no_bytes(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("trainer.accumulate_grad_batches=2", "adapter.dropout=0.1")
    fit(make_config(*options, run="watched"))
    monkeypatch.setattr(LearningWatch, "on_before_backward", pl.Callback.on_before_backward)
    monkeypatch.setattr(LearningWatch, "on_before_optimizer_step", pl.Callback.on_before_optimizer_step)
    figures = fit(make_config(*options, run="not_watched"))
    assert not any(name.startswith("train/") for name in figures)
    assert len({(tmp_path / run / "adapter.safetensors").read_bytes() for run in ("watched", "not_watched")}) == 1


def test_watch__dead_adapter_is_named_everywhere(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("optim.lr=1e-3", "adapter.scale=1e-45", "adapter.enhancer=none", *LONGER)
    line = "nothing trains in adapter: its gradients are zero since about step 0; set adapter.scale=0.6"
    figures = fit(make_config(*options))
    assert figures["train/dead_at_step"] == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == figures
    log = " ".join((tmp_path / "run/train.log").read_text().split())
    assert log.count(line) == 2  # when it was found, and below the closing table
    assert line in " ".join(capsys.readouterr().out.split())
    with pytest.raises(NotLearning) as caught:
        fit(make_config(*options, "training.collapsed=stop", run="stopped"))
    assert str(caught.value) == line
    assert caught.value.exit_code == 5
    stopped = json.loads((tmp_path / "stopped/metrics.json").read_text())
    assert stopped["train/dead_at_step"] == 0
    assert stopped["train/spread"] == pytest.approx(figures["train/spread"], rel=0.2)  # some steps earlier
    assert not any(name.startswith(("test/", "time/")) for name in stopped)
    assert " ".join((tmp_path / "stopped/train.log").read_text().split()).count(line) == 1


COLLAPSING = ("optim.lr=1", "task.logit_scale=pretrained", "training.collapsed=stop", *LONGER)


@pytest.mark.slow
def test_watch__killed_just_before_the_verdict(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start that resumes makes one step: the others, of which its judgement tells, are in the checkpoint."""
    with pytest.raises(NotLearning) as whole:
        fit(make_config(*COLLAPSING, run="whole"))
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: pl.Trainer, **position: int) -> None:
        save(self, trainer, **position)
        if trainer.global_step == 23:
            raise Killed

    options = (*COLLAPSING, "training.checkpoint_every_n_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            fit(make_config(*options, run="killed"))
    assert not (tmp_path / "killed/metrics.json").exists()
    with pytest.raises(NotLearning) as again:
        fit(make_config(*options, run="killed"))
    assert str(again.value) == str(whole.value)
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("whole", "killed"))
    assert first == second
    assert (tmp_path / "killed/checkpoints/last.ckpt").is_file()
    # And it may go on all the same.
    figures = fit(make_config(*options, "training.collapsed=warn", run="killed"))
    assert figures["train/collapsed_at_step"] == first["train/collapsed_at_step"]
    assert "test/mean_recall" in figures


def test_watch__of_a_run_with_a_moving_average(make_config: MakeConfig) -> None:
    """It is the weights that train which are watched: the same line."""
    with pytest.raises(NotLearning) as plain:
        fit(make_config(*COLLAPSING))
    with pytest.raises(NotLearning) as averaged:
        fit(make_config(*COLLAPSING, "training.ema_decay=0.9", run="averaged"))
    assert str(averaged.value) == str(plain.value)


def test_watch__steps_that_are_skipped_tell_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, watches: list[LearningWatch]
) -> None:
    step = RetrievalTask.model_step

    def poisoned(self: RetrievalTask, batch: TrainBatch) -> Tensor:
        return step(self, batch) * (math.nan if self.global_step in (2, 9, 23) else 1.0)

    monkeypatch.setattr(RetrievalTask, "model_step", poisoned)
    options = ("optim.lr=1e-3", "adapter.scale=1e-45", "adapter.enhancer=none", "training.nonfinite=skip", *LONGER)
    figures = fit(make_config(*options))
    assert [step.number for step in watches[0]._steps] == [n for n in range(30) if n not in (2, 9, 23)]
    assert figures["train/dead_at_step"] == 0
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.slow
def test_watch__gradients_that_are_accumulated(
    make_config: MakeConfig, tmp_path: Path, watches: list[LearningWatch]
) -> None:
    """Two batches of 8 statements to a step are as one of 16, but for what a batch's own mean does to the spread."""
    root = tmp_path / "statements"
    write_scenes_nlvr2(root, domain="target", seed=3, train=32, dev=8, test=8)
    options = ("task=reasoning", "data=scenes_nlvr2", f"data.root={root}", "optim.lr=1e-3", "adapter.dropout=0")
    longer = ("trainer.max_epochs=13", "trainer.check_val_every_n_epoch=13")
    accumulated = ("data.batch_size=8", "trainer.accumulate_grad_batches=2")
    for run, further in (("whole", ("data.batch_size=16",)), ("accumulated", accumulated)):
        fit(make_config(*options, *LONGER, *longer, *further, run=run))
    whole, parts = (watch._steps for watch in watches)
    assert [step.number for step in parts] == [step.number for step in whole] == list(range(26))
    for one, other in zip(whole, parts, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
        assert other.knowing_nothing == pytest.approx(one.knowing_nothing, rel=1e-6)
        assert other.gradients == pytest.approx(one.gradients, rel=1e-3)
        assert other.spreads == pytest.approx(one.spreads, rel=0.3)


def test_watch__collapsed(make_config: MakeConfig) -> None:
    """A step that is far too long, with a scale that goes along with anything."""
    with pytest.raises(NotLearning) as caught:
        fit(make_config(*COLLAPSING))
    said = str(caught.value)
    assert said.startswith("the embeddings have collapsed: all ")
    assert said.endswith("; set optim.lr=0.3 or optim.warmup_epochs=0.5")


def test_watch__collapsed_statements(make_config: MakeConfig, tmp_path: Path) -> None:
    root = tmp_path / "statements"
    write_scenes_nlvr2(root, domain="target", seed=3, train=24, dev=8, test=8)
    options = ("task=reasoning", "data=scenes_nlvr2", f"data.root={root}", "optim.lr=0.3", "training.collapsed=stop")
    with pytest.raises(NotLearning) as caught:
        fit(make_config(*options, *LONGER))
    said = str(caught.value)
    assert said.startswith("the answers have collapsed: the model says the same of all statements since about step ")
    assert said.endswith("that of knowing nothing is 0.69); set optim.lr=0.1 or optim.warmup_epochs=0.5")


def test_watch__diverging(make_config: MakeConfig) -> None:
    watch = LearningWatch(action="stop", advise=partial(advise, make_config("optim.lr=10", "optim.warmup_epochs=0")))
    watch._steps = course([3.5, 3.6, 3.4, *(5 + number / 2 for number in range(27))])
    with pytest.raises(NotLearning) as caught:
        watch._judge()
    assert str(caught.value) == (
        "the run diverges: loss 16.75 since about step 3, 3.50 at the start, that of knowing nothing is 4.16; set "
        "optim.lr=3 or optim.warmup_epochs=0.5 or trainer.gradient_clip_val=1"
    )


def test_watch__says_it_once_and_that_it_is_over(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    watch = LearningWatch(
        action="warn", advise=partial(advise, make_config("task.logit_scale=pretrained", "optim.lr=1e-3", *LONGER))
    )
    with caplog.at_level(logging.INFO, logger="mwa_lightning"):
        for _ in range(2):
            watch._steps = course(AS_FALLEN, images=FALLEN)
            watch._judge()
        again = LearningWatch(action="warn", advise=watch.advise)
        again.load_state_dict(watch.state_dict())  # as from a checkpoint
        again._judge()
        assert (again.finding, again.figures, again.remark) == (watch.finding, watch.figures, watch.remark)
        watch._steps = course([3.0] * 60)
        watch._judge()
    first, second = (record.message for record in caplog.records)
    assert first.startswith(
        "the embeddings have collapsed: all images look the same to the model since about step 13 ("
    )
    assert first.endswith("; set task.logit_scale=fitted or optim.lr=0.0003 or optim.warmup_epochs=0.5")
    assert second == "the run learns again at step 59"
    assert watch.remark is None
    assert "train/collapsed_at_step" not in watch.figures


def test_watch__healthy(make_config: MakeConfig) -> None:
    figures = fit(make_config("optim.lr=1e-2", "adapter=full", *LONGER))
    assert not any(name.endswith("_at_step") for name in figures)
    assert 0 < figures["train/spread"] <= 1.1
    assert figures["train/gradient_norm"] > 0
    assert 1.8 < figures["train/loss_of_knowing_nothing"] < 2.08  # ln 8, and less where two captions are of one image
