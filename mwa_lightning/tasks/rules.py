"""What a task asks of a configuration; no torch here, so that the command line can ask before work begins."""

from __future__ import annotations

import re

from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError
from mwa_lightning.report.tables import RECALLS


class TaskRules:
    """Checks of a configuration by its task. A task from outside has these, which refuse nothing.

    Attributes:
        published: Metrics that published results of this task can have.
        has_zero_shot: Whether backbone and heads, as they are read, can be evaluated before training.
        long_texts: Whether its texts have more room than captions in the code that made released ModeX files.
    """

    published: tuple[str, ...] = ()
    has_zero_shot = False
    long_texts = False

    def check_data(self, config: DictConfig) -> None:
        """Raise ConfigError if the data cannot be of this task."""

    def check_training(self, config: DictConfig, *, processes: int | None) -> None:
        """Raise ConfigError if so many processes (None = not known yet) cannot train with the configuration."""

    def is_measured(self, config: DictConfig, metric: str) -> bool:
        """Whether the best epoch or trial can be chosen by a metric: there is one so named, and more is better."""
        return metric.startswith("val/")

    def metrics(self, config: DictConfig) -> list[str]:
        """The metrics to choose by, or examples of them, for messages."""
        return [config.task.monitor]


class RetrievalRules(TaskRules):
    """Captions are retrieved; a batch has to have negatives."""

    published = RECALLS
    has_zero_shot = True

    def check_data(self, config: DictConfig) -> None:
        if _holds_statements(config):
            raise ConfigError(
                f"data={config.data.layout} holds labelled statements, and task={config.task.name} wants captions: "
                "take task=reasoning or task=entailment, or choose another data="
            )

    def check_training(self, config: DictConfig, *, processes: int | None) -> None:
        if processes is not None and config.data.batch_size * processes < 2:
            raise ConfigError(
                f"data.batch_size={config.data.batch_size} on {processes} process makes a global batch of one, "
                "which has no negatives; take at least 2"
            )

    def is_measured(self, config: DictConfig, metric: str) -> bool:
        return metric in self.metrics(config)

    def metrics(self, config: DictConfig) -> list[str]:
        tables = ("val/", "val/1k/") if config.data.one_k else ("val/",)
        return [f"{table}{name}" for table in tables for name in RECALLS]


class ReasoningRules(TaskRules):
    """Labelled statements are classified; the data decides whether there is a consistency, and which subsets."""

    published = ("accuracy",)
    long_texts = True

    def check_data(self, config: DictConfig) -> None:
        if not _holds_statements(config):
            raise ConfigError(
                f"data={config.data.layout} holds captions without labels, and task={config.task.name} wants labelled "
                "statements: take data=nlvr2, snli_ve, statements or scenes_nlvr2, or task=retrieval"
            )

    def is_measured(self, config: DictConfig, metric: str) -> bool:
        return re.fullmatch(r"val/(.+/)?(accuracy|consistency)", metric) is not None

    def metrics(self, config: DictConfig) -> list[str]:
        return ["val/accuracy", "val/consistency", "either of a subset, such as val/balanced/accuracy"]


_RULES = {
    "mwa_lightning.tasks.reasoning.ReasoningTask": ReasoningRules(),
    "mwa_lightning.tasks.retrieval.RetrievalTask": RetrievalRules(),
}


def rules_of(config: DictConfig) -> TaskRules:
    """The rules of the task of a configuration, by the class that it names."""
    return _RULES.get(str(config.task._target_), TaskRules())


def _holds_statements(config: DictConfig) -> bool:
    return str(config.data._target_) == "mwa_lightning.data.statement_datamodule.StatementDataModule"
