"""Evaluation gives the figures that training ended with, and touches nothing of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from safetensors.torch import load_file

from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]


def test_evaluate__a_run_and_its_zero_shot(make_config: MakeConfig, tmp_path: Path) -> None:
    trained = fit(make_config("training.zero_shot=true", "trainer.max_epochs=1", "optim.lr=0.01"))
    adapter = f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}"
    again = evaluate(make_config(adapter, "save_predictions=true", command="evaluate", run="again"))
    assert {name: value for name, value in again.items() if name.startswith("test/")} == {
        name: value for name, value in trained.items() if name.startswith("test/")
    }
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == again
    predictions = load_file(tmp_path / "again" / "predictions.safetensors")
    assert predictions["image_embeddings"].shape == (6, 16)
    assert predictions["text_embeddings"].shape == (12, 16)

    none = evaluate(make_config("adapter=none", command="evaluate", run="none"))
    for name, value in none.items():
        if name.startswith("test/"):
            assert value == trained[name.replace("test/", "zero_shot/")]


def test_evaluate__another_split_has_its_own_names(make_config: MakeConfig) -> None:
    figures = evaluate(make_config("adapter=none", "split=val", command="evaluate"))
    assert "val/mean_recall" in figures
    assert not any(name.startswith("test/") for name in figures)


def test_evaluate__refuses_the_directory_of_a_training_run(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="training run"):
        evaluate(make_config("adapter=none", command="evaluate"))


def test_evaluate__adapter_of_another_backbone(make_config: MakeConfig, tmp_path: Path) -> None:
    fit(make_config("trainer.max_epochs=1"))
    adapter = f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}"
    with pytest.raises(CheckpointError, match=r"fingerprint|weights"):
        evaluate(make_config(adapter, "seed=43", command="evaluate", run="other"))
    assert not (tmp_path / "other").exists()


def test_evaluate__unknown_expectation(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the nearest are beit3_base_coco"):
        evaluate(make_config("adapter=none", "expect=beit3_base_cocoo", command="evaluate"))
    assert not (tmp_path / "run").exists()


def test_evaluate__parts_of_the_backbone_that_trained_too(make_config: MakeConfig, tmp_path: Path) -> None:
    further = "adapter.modules_to_save=[tokens]"
    trained = fit(make_config(further, "trainer.max_epochs=1", "optim.lr=0.01"))
    assert "backbone.text_embedding.tokens.weight" in load_file(tmp_path / "run" / "adapter.safetensors")
    adapter = f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}"
    again = evaluate(make_config(adapter, further, command="evaluate", run="again"))
    assert {name: value for name, value in again.items() if name.startswith("test/")} == {
        name: value for name, value in trained.items() if name.startswith("test/")
    }
