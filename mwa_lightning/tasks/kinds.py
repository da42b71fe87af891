"""What kind of task a configuration names; no torch here, so that the command line can ask."""

from __future__ import annotations

from omegaconf import DictConfig


def about_statements(config: DictConfig) -> bool:
    """Whether the task classifies statements about images (reasoning, entailment); else it retrieves."""
    return str(config.task._target_).endswith(".ReasoningTask")
