"""Names, refusals and whole files of the run directory."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError, StorageError
from mwa_lightning.training.runs.run_directory import RunDirectory, new_directory, write_atomically

MakeConfig = Callable[..., DictConfig]
NOW = datetime(2026, 1, 31, 12, 0, 5)


def test_new_directory__a_time_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    with new_directory(tmp_path, now=NOW) as first, new_directory(tmp_path, now=NOW) as second:
        assert (first.name, second.name) == ("2026-01-31_12-00-05", "2026-01-31_12-00-05_2")
        with (
            new_directory(tmp_path, kind="tune", now=NOW) as third,
            new_directory(tmp_path, kind="tune", now=NOW) as last,
        ):
            assert (third.name, last.name) == ("2026-01-31_12-00-05_tune", "2026-01-31_12-00-05_2_tune")
        (first / "config.yaml").touch()
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_new_directory__of_a_kind(tmp_path: Path) -> None:
    with (
        new_directory(tmp_path, kind="tune", now=NOW) as first,
        new_directory(tmp_path, kind="tune", now=NOW) as second,
    ):
        assert (first.name, second.name) == ("2026-01-31_12-00-05_tune", "2026-01-31_12-00-05_2_tune")


def test_new_directory__leaves_nothing_if_nothing_came_into_it(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with new_directory(tmp_path / "logs" / "retrieval" / "scenes_mwa") as path:
        assert path.is_dir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "logs"]


def test_new_directory__others_remove_the_empty_parents_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it makes itself then are removed at the end; where they are gone each time, it is told."""
    parent = tmp_path / "logs" / "retrieval"
    parent.mkdir(parents=True)
    mkdir, removals = Path.mkdir, [parent, parent.parent]

    def removed(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith("2026") and removals:
            for directory in (parent, parent.parent):
                directory.rmdir()
            removals.pop()
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", removed)
    with new_directory(parent, now=NOW) as path:
        assert path == parent / "2026-01-31_12-00-05"
        assert path.is_dir()
    assert list(tmp_path.iterdir()) == []
    removals[:] = [parent] * 1000
    with (
        pytest.raises(ConfigError, match=r"cannot be made \(No such file or directory\)"),
        new_directory(parent, now=NOW),
    ):
        pass


def test_new_directory__where_none_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with (
        pytest.raises(ConfigError, match=r"logs/retrieval: cannot be made \(Not a directory\); give run_dir="),
        new_directory(tmp_path / "logs" / "retrieval"),
    ):
        pass


def test_check__free_keys_may_differ(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not run.check(make_config())
    run.create()
    run.write_config(make_config())
    assert run.check(make_config("data.num_workers=3", "debug=true"))
    with pytest.raises(ConfigError, match="seed=1"):
        run.check(make_config("seed=1"))


def test_check__a_directory_of_something_else(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear")
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunDirectory(tmp_path / "run").check(make_config())


def test_check__a_directory_that_may_not_be_looked_into(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root there is none, so the kernel's answer is put in."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConfigError, match=r"run: cannot be looked into \(Permission denied\); choose another run_dir"):
        RunDirectory(tmp_path / "run").check(make_config())


@pytest.mark.parametrize("content", [b'{"a": 1', b"[1, 2]", b"\xff"])
@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_read__damaged(name: str, content: bytes, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / name}: cannot be read, it is damaged")):
        run.read_metrics() if name == "metrics.json" else run.read_config()


def test_read__what_is_not_damaged_is_not_called_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read \((it is a directory|Is a directory)"):
        RunDirectory(tmp_path).read_config()


def test_write_atomically__a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"metrics\.json cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_logging__appends(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for text in ("first", "second"):
        with run.logging():
            logging.getLogger("mwa_lightning.training").warning(text)
    assert [line.split()[-1] for line in run.log.read_text().splitlines()] == ["first", "second"]
