"""Callbacks and loggers of any class in whole small runs: made from the configuration, resumed, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]

OWN = """
import lightning.pytorch as pl


class Counter(pl.Callback):
    def __init__(self, *, every: int = 1) -> None:
        self.every = every
        self.steps = 0

    def on_train_batch_end(self, *_: object) -> None:
        self.steps += self.every

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class Half:
    pass


class Failing(pl.loggers.CSVLogger):
    def log_metrics(self, *_: object, **__: object) -> None:
        raise RuntimeError("the server has gone")
"""
COUNTER = ("+callbacks.counter._target_=own_callbacks_and_loggers.Counter", "+callbacks.counter.every=3")


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_callbacks_and_loggers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_callbacks_and_loggers", raising=False)


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_callback__its_state_is_saved_and_resumed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*COUNTER, "trainer.max_steps=5", "training.checkpoint_every_n_steps=2")
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: object, **position: int) -> None:
        save(self, trainer, **position)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            fit(make_config(*arguments))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["callbacks"]["Counter"] == {"steps": 6}
    fit(make_config(*arguments))
    assert torch.load(last, weights_only=True)["callbacks"]["Counter"] == {"steps": 15}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("+callbacks.x=3",), r"callbacks\.x: is no setting of ours and names no class"),
        (("+callbacks.x.every=3",), r"callbacks\.x: is no setting of ours and names no class"),
        (("+callbacks.x._target_=own_callbacks_and_loggers.Countr",), "has no Countr. Did you mean Counter"),
        (("+callbacks.x._target_=own_callbacks_and_loggers.Half",), "is no Callback; derive the class from"),
        ((COUNTER[0], "+callbacks.counter.every=two"), "callbacks.counter.every=two: should be a valid integer"),
        ((*COUNTER, "+callbacks.counter.evry=2"), "callbacks.counter.evry: Counter has no such option. Did you mean"),
        (
            ("+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint",),
            "a run saves its checkpoints itself",
        ),
    ],
)
def test_refused__before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(make_config(*words))
    assert not (tmp_path / "run").exists()


def of_class(config: DictConfig, target: str, **options: str) -> DictConfig:
    """The configuration with a logger of a class, as a file of the group `logger` names it."""
    config.logger = {"_target_": target, "name": "mine", **options}
    return config


def test_logger__of_any_class_beside_the_table(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("trainer.max_steps=2", "trainer.log_every_n_steps=1")
    fit(of_class(config, "lightning.pytorch.loggers.CSVLogger"))
    rows = (tmp_path / "run/logger/mine/version_0/metrics.csv").read_text().splitlines()
    assert "train/loss" in rows[0].split(",")
    assert (tmp_path / "run/metrics.csv").read_text().count(",train/loss,") == 2


def test_logger__removes_nothing_of_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """Lightning's CSVLogger, told to write to no folder below its own, removes the metrics.csv that lies there."""
    config = make_config("trainer.max_steps=2")
    fit(of_class(config, "lightning.pytorch.loggers.CSVLogger", name="", version=""))
    assert (tmp_path / "run/logger/metrics.csv").is_file()
    assert (tmp_path / "run/metrics.csv").read_text().startswith("step,epoch,name,value\n")


def test_logger__that_is_none(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no Logger; derive the class from"):
        fit(of_class(make_config(), "own_callbacks_and_loggers.Half"))
    assert not (tmp_path / "run").exists()


def test_logger__that_fails_is_warned_of_once_and_the_run_goes_on(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("trainer.max_steps=2", "trainer.log_every_n_steps=1")
    figures = fit(of_class(config, "own_callbacks_and_loggers.Failing"))
    assert "test/mean_recall" in figures
    assert [record.getMessage() for record in caplog.records if "the server has gone" in record.getMessage()] == [
        "Failing takes nothing more until the next start (the server has gone); the run goes on, and its directory has "
        "everything"
    ]
