"""What a task asks of a configuration, and that a task from outside asks nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.rules import RetrievalRules, TaskRules, rules_of

STATEMENTS = "mwa_lightning.data.statement_datamodule.StatementDataModule"
CAPTIONS = "mwa_lightning.data.datamodule.RetrievalDataModule"


def make_config(task: str, data: str, **values: object) -> DictConfig:
    node = {"_target_": task, "name": "mine", "monitor": "val/map"}
    return OmegaConf.create({"task": node, "data": {"_target_": data, "layout": "some", "one_k": False, **values}})


RETRIEVAL = "mwa_lightning.tasks.retrieval.RetrievalTask"
REASONING = "mwa_lightning.tasks.reasoning.ReasoningTask"


@pytest.mark.parametrize(("task", "data"), [(RETRIEVAL, STATEMENTS), (REASONING, CAPTIONS)])
def test_our_tasks_refuse_data_of_the_other(task: str, data: str) -> None:
    config = make_config(task, data)
    with pytest.raises(ConfigError, match=r"data=some holds .*task=mine wants"):
        rules_of(config).check_data(config)


@pytest.mark.parametrize(("task", "data"), [(RETRIEVAL, CAPTIONS), (REASONING, STATEMENTS)])
def test_our_tasks_take_their_own_data(task: str, data: str) -> None:
    config = make_config(task, data)
    rules_of(config).check_data(config)


def test_retrieval_needs_two_samples_in_a_global_batch() -> None:
    config = make_config(RETRIEVAL, CAPTIONS, batch_size=1)
    RetrievalRules().check_training(config, processes=2)
    RetrievalRules().check_training(config, processes=None)
    with pytest.raises(ConfigError, match="take at least 2"):
        RetrievalRules().check_training(config, processes=1)


# By its last word alone, the second would be taken for ours.
@pytest.mark.parametrize("target", ["my_task.Tagging", "my_task.ReasoningTask"])
def test_a_task_from_outside_refuses_no_data_and_is_chosen_by_any_metric_of_validation(target: str) -> None:
    config = make_config(target, CAPTIONS, batch_size=1)
    rules = rules_of(config)
    assert type(rules) is TaskRules
    rules.check_data(config)
    rules.check_training(config, processes=1)
    assert rules.is_measured(config, "val/map")
    assert not rules.is_measured(config, "train/loss")
    assert rules.metrics(config) == ["val/map"]
    assert not rules.has_zero_shot
    assert not rules.published


def test_rules_are_asked_without_torch() -> None:
    code = "import sys, mwa_lightning.tasks.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
