"""Whole runs of statements about images at a tiny size: files, figures, continuation to the byte, evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors import safe_open

from mwa_lightning.adapters.files.adapter_file import read_metadata
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.model import ReasoningModel
from mwa_lightning.training.assembly.build import build_model
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]
OPTIONS = ("training.checkpoint_every_n_steps=2", "training.ema_decay=0.9", "save_predictions=true")


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("statements") / "scenes"
    write_scenes_nlvr2(root, domain="target", seed=3, train=24, dev=8, test=12)
    return root


@pytest.fixture
def make(make_config: MakeConfig, statements: Path) -> MakeConfig:
    """Configurations of reasoning: three steps an epoch, two epochs."""

    def config(*arguments: str, **more: str) -> DictConfig:
        return make_config("task=reasoning", "data=scenes_nlvr2", f"data.root={statements}", *arguments, **more)

    return config


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_fit__killed_in_mid_epoch_and_started_again(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes and figures as a run that nothing happened to; its evaluation gives its figures."""
    whole = fit(make(*OPTIONS, run="whole"))
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: object, **position: int) -> None:
        save(self, trainer, **position)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            fit(make(*OPTIONS, run="killed"))
    again = fit(make(*OPTIONS, run="killed"))
    assert {name: value for name, value in again.items() if "time/" not in name} == {
        name: value for name, value in whole.items() if "time/" not in name
    }
    for file in ("adapter.safetensors", "predictions.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()

    names = {"accuracy", "consistency", "majority", "text_bound", "images_bound"}
    assert {name.removeprefix("test/") for name in whole if name.startswith("test/")} == names
    assert all(0 <= whole[f"test/{name}"] <= 100 for name in names)
    # In the scenes a sentence, and a pair of pictures, is as often true as false.
    assert whole["test/majority"] == whole["test/text_bound"] == whole["test/images_bound"] == 50.0
    assert whole["val/accuracy"] >= 0
    metadata = read_metadata(tmp_path / "whole" / "adapter.safetensors")
    assert metadata["task"] == "reasoning"
    assert (json.loads(metadata["images"]), json.loads(metadata["classes"])) == (2, ["False", "True"])
    with safe_open(tmp_path / "whole" / "predictions.safetensors", framework="pt") as file:
        logits, labels = file.get_tensor("logits"), file.get_tensor("labels")
        identifiers = json.loads(file.metadata()["identifiers"])
    assert logits.shape == (12, 2)
    assert identifiers[:3] == ["test1-0-0-0", "test1-0-0-1", "test1-0-1-0"]
    right = logits.gather(1, labels[:, None]) > logits.gather(1, 1 - labels[:, None])
    assert whole["test/accuracy"] == pytest.approx(100 * right.float().mean().item(), abs=1e-4)

    adapter = f"adapter.checkpoint={tmp_path / 'whole' / 'adapter.safetensors'}"
    figures = evaluate(make(adapter, command="evaluate", run="evaluation"))
    for name in names:
        assert figures[f"test/{name}"] == whole[f"test/{name}"]
    # The kind of file is told by its content, not by its name.
    renamed = shutil.copy(tmp_path / "whole" / "adapter.safetensors", tmp_path / "adapter.bin")
    for file in (adapter, f"adapter.checkpoint={renamed}"):
        with pytest.raises(CheckpointError, match="was trained for task=reasoning, not for task=retrieval"):
            build_model(make(file, "task=retrieval", command="evaluate"))


def test_fit__a_loss_that_is_not_finite_names_the_statements(make: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ReasoningModel.forward
    monkeypatch.setattr(ReasoningModel, "forward", lambda *arguments: forward(*arguments) * torch.nan)
    with pytest.raises(Exception, match=r"the loss is not finite; samples: train-"):
        fit(make())
