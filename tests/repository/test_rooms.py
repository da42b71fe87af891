"""Folders of the package and of its tests have a dozen files at most; those of the package say their subject."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted({path.parent for top in ("mwa_lightning", "tests") for path in (ROOT / top).rglob("*.py")})
MOST = 12


@pytest.mark.parametrize("folder", [str(folder.relative_to(ROOT)) for folder in FOLDERS])
def test_folder__a_dozen_files(folder: str) -> None:
    files = [path.name for path in (ROOT / folder).glob("*.py")]
    assert len(files) <= MOST, f"{folder} has {len(files)} files; make a folder of those that have one subject"


@pytest.mark.parametrize(
    "folder", [str(folder.relative_to(ROOT)) for folder in FOLDERS if folder.is_relative_to(ROOT / "mwa_lightning")]
)
def test_folder__says_its_subject(folder: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
