"""Write the table of docs/adapters.md: which adapter trains on which backbone for which task.

    python scripts/adapter_grid.py

Each combination of the choices in configs/ is composed, checked and built at tiny size, by what `mwa-train` checks and
builds with; where that refuses, the table has its line. tests/test_grid.py trains what is built.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.consistency import check_model, check_task, check_training
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.tasks.reasoning import USUAL_SHAPES
from mwa_lightning.training.assembly.build import attach, build_backbone

PAGE = Path(__file__).parent.parent / "docs" / "adapters.md"
BEGIN, END = "<!-- the table of scripts/adapter_grid.py -->", "<!-- its end -->"

BACKBONES = tuple(name for name in group_options("backbone") if name.endswith("_tiny"))
TASKS = group_options("task")
# A method in another arrangement is a row of its own.
METHODS = (*group_options("adapter"), "modex adapter.variant=released")


class Cell(NamedTuple):
    """One combination; `method` is a choice of configs/adapter, and keys behind it."""

    method: str
    backbone: str
    task: str

    @property
    def images(self) -> int:
        """Of a sample."""
        return USUAL_SHAPES[self.task].images if self.task in USUAL_SHAPES else 1


CELLS = tuple(Cell(method, backbone, task) for method in METHODS for backbone in BACKBONES for task in TASKS)


def composed(cell: Cell) -> DictConfig:
    """Its configuration, with random weights and data of the right kind."""
    return deepcopy(_composed(cell))


@cache
def _composed(cell: Cell) -> DictConfig:
    words = [f"backbone={cell.backbone}", "backbone.checkpoint=random", f"task={cell.task}"]
    words += f"adapter={cell.method}".split()
    if cell.task in USUAL_SHAPES:
        words.append("data=scenes_nlvr2")
    request = read_request(words, config_name="train")
    config = compose_groups("train", request.choices)
    if "pair" in config.backbone:
        request.values["backbone.pair"] = cell.images == 2
    apply(config, request)
    return config


def build(config: DictConfig) -> AdaptedModel:
    """The model, after the checks before training. Raises ConfigError for what makes no sense."""
    check_model(config)
    check_task(config)
    check_training(config)
    return attach(config, *build_backbone(config))


@cache
def refusal(cell: Cell) -> str | None:
    """The line with which training is refused, or None."""
    try:
        build(composed(cell))
    except ConfigError as error:
        return str(error).replace(cell.backbone, "this backbone")
    return None


def table() -> str:
    """The table, with a note for each kind of refusal."""
    notes: list[str] = []
    lines = [
        "| `adapter=` | " + " | ".join(f"`{backbone.removesuffix('_tiny')}_*`" for backbone in BACKBONES) + " |",
        "|---" * (len(BACKBONES) + 1) + "|",
    ]
    for method in METHODS:
        shown = [f"`{method}`"]
        for backbone in BACKBONES:
            lines_of_tasks = {task: refusal(Cell(method, backbone, task)) for task in TASKS}
            trained = [task for task, line in lines_of_tasks.items() if line is None]
            refused = sorted({line for line in lines_of_tasks.values() if line is not None})
            notes += [line for line in refused if line not in notes]
            marks = [f"[{notes.index(line) + 1}]" for line in refused]
            shown.append(" ".join(["all tasks" if len(trained) == len(TASKS) else ", ".join(trained), *marks]).strip())
        lines.append("| " + " | ".join(shown) + " |")
    lines += ["", f"All tasks: {', '.join(TASKS)}. Refused with:", ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table as it should be now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
