"""Which commit a package in a checkout is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mwa_lightning.system.code_version import commit


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package beside its configurations, in a repository."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package.parent / "configs").mkdir()
    (package / "__init__.py").write_text("")
    (package.parent / "configs" / "train.yaml").write_text("a: 1\n")
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "--message", "all")
    return package


@pytest.mark.parametrize("file", ["package/__init__.py", "package/new.py", "configs/train.yaml"])
def test_commit__with_a_note_of_changes(package: Path, file: str) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert len(head) == 40
    (package.parent / "notes.txt").write_text("no code")
    assert commit.__wrapped__(package) == head
    (package.parent / file).write_text("b = 2\n")
    assert commit.__wrapped__(package) == f"{head} with changes"


def test_commit__none_of_an_installed_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = package.parent / "venv" / "package"  # within somebody's repository, which does not hold it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit.__wrapped__(installed) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit.__wrapped__(package) is None
