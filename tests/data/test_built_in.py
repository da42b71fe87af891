"""The built-in data sets are made once, where the user keeps what can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.data import built_in
from mwa_lightning.data.built_in import cache_folder, prepare_scenes
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.sources import find_source


def test_cache_folder__places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("MWA_CACHE", raising=False)
    assert cache_folder() == Path("/x/mwa_lightning")
    monkeypatch.setenv("MWA_CACHE", "/y")
    assert cache_folder() == Path("/y")


def test_prepare_scenes__made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "SCENES", {"seed": 0, "train": 2, "val": 1, "test": 1})
    prepare_scenes(tmp_path / "deep" / "set", domain="target")
    source = find_source(layout="scenes", root=tmp_path / "deep" / "set")
    splits = source.read(Problems())
    assert {name: len(split.captions) for name, split in splits.items()} == {"train": 10, "val": 5, "test": 5}
    first = source.annotations.stat()
    prepare_scenes(tmp_path / "deep" / "set", domain="target")
    assert source.annotations.stat() == first
