"""Tensor files: whole or not at all, and the same bytes for the same content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mwa_lightning.errors import StorageError
from mwa_lightning.system.tensor_files import write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False])}
METADATA = {f"key{number}": f"värde {number}" for number in range(9)}


def test_write_tensors__is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, metadata=METADATA)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in TENSORS.items())


def test_write_tensors__same_content_same_bytes(tmp_path: Path) -> None:
    written = []
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, TENSORS, metadata=dict(sorted(METADATA.items(), reverse=bool(number % 2))))
        written.append(path.read_bytes())
    assert len(set(written)) == 1


def test_write_tensors__leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"earlier")

    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"file\.safetensors cannot be written \(disk full\)"):
        write_tensors(path, TENSORS, metadata=METADATA)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
