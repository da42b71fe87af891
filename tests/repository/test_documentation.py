"""The tables of the documentation hold what the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.training.instantiating import instantiate

ROOT = Path(__file__).parents[2]


def spelled_out(name: str) -> list[str]:
    """`a_{b,c}` as a_b and a_c."""
    before, brace, rest = name.partition("{")
    return [before + part for part in rest.rstrip("}").split(",")] if brace else [name]


def rows(file: str, *, columns: int) -> dict[str, list[str]]:
    """The rows of all tables with so many columns, by the name in backticks in the first column."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        # The heading of a column ends with =.
        if line.startswith("| `") and len(cells) == columns and not cells[0].endswith("=`"):
            for name in spelled_out(cells[0].strip("`")):
                assert name not in found, f"{name} is in {file} twice"
                found[name] = cells[1:]
    return found


@pytest.mark.parametrize("name", group_options("backbone"))
def test_backbones__are_in_the_table_with_their_parameters(name: str) -> None:
    node = compose_groups("train", {"backbone": name}).backbone
    files, where, shown = rows("docs/checkpoints.md", columns=4)[name]
    if node.get("vision_width", 0) is None:
        assert shown == "those of the file"
        return
    with torch.device("meta"):
        backbone = instantiate(node)
        heads = retrieval_heads(backbone)
    count = sum(parameter.numel() for part in (backbone, heads) for parameter in part.parameters())
    assert shown == f"{count:,}"
    assert files
    assert where or name.endswith("_tiny")
    comment = (ROOT / "configs" / "backbone" / f"{name}.yaml").read_text(encoding="utf-8")
    millions = re.search(r"(\d+) million parameters", comment)
    if millions is not None:
        assert int(millions[1]) == round(count / 1e6)


def test_backbones__tables_name_no_others() -> None:
    assert rows("docs/checkpoints.md", columns=4).keys() == set(group_options("backbone"))
    assert rows("README.md", columns=4).keys() == set(group_options("backbone"))


def test_tasks__are_in_the_table_with_their_data_and_figures() -> None:
    table = rows("README.md", columns=5)
    assert table.keys() == set(group_options("task"))
    for task, cells in table.items():
        assert f"`{compose_groups('train', {'task': task}).task.monitor.removeprefix('val/')}`" in cells[-1]
    named = re.findall(r"`data=(\w+)`", " ".join(cells[0] for cells in table.values()))
    assert sorted(named) == sorted(group_options("data"))


def named_in_walks() -> list[tuple[str, str]]:
    """Files, and what docs/architecture.md says is in them."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walks = text[text.index("## A batch") : text.index("## Glossary")]
    named: list[tuple[str, str]] = []
    file = None
    for word in re.findall(r"`([\w./]+)`", walks):
        if word.endswith(".py"):
            file = word
        elif file is not None and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)?", word) and word != "metrics.json":
            named.append((file, word))
    return named


def test_architecture__the_stops_of_the_walks_are_there() -> None:
    named = named_in_walks()
    assert len(named) > 25
    for file, name in named:
        tree: ast.AST = ast.parse((ROOT / "mwa_lightning" / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            inside = [each for each in ast.iter_child_nodes(tree) if getattr(each, "name", None) == part]
            assert inside, f"{name} is not in {file}"
            tree = inside[0]
