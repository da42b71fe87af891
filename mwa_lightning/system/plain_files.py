"""What a file says as plain data: nothing, numbers, words, lists and mappings of words to these; nothing is run.

A file may come from anywhere, so it is small, has no references that stand for more than is there, and no objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mwa_lightning.system.regular_files import open_file

# A configuration has a few thousand bytes, the record of a large sweep some hundred thousand.
_MOST = 16 << 20
_TIMES = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """The rules of OmegaConf, which writes these files: `1e-3` is a number, a date is a word, each key stands once."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it refers from one place to another (*), which is not followed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise ValueError(f"it has the key {twice[0]} twice")
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ValueError, which says what is wrong with it, or OSError."""
    try:
        return plain(yaml.load(_read(path).decode("utf-8"), _Loader))
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError, which says what is wrong with it, or OSError."""
    return parse_json(_read(path))


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text. Raises ValueError, which says what is wrong with it."""
    try:
        return plain(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError(f"it is longer than {_MOST >> 20} MiB")
    return content


def plain(value: Any) -> Any:
    """The value, if it is plain data. Raises ValueError."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise ValueError(f"it has the key {key!r}, which is no word")
            plain(item)
    elif isinstance(value, list):
        for item in value:
            plain(item)
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"it holds a {type(value).__name__}, where numbers, words, lists and mappings belong")
    return value


def words_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in plain data with the dotted name of its place."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from words_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from words_in(item, name)
