"""Checkpoint files: what is read, and that nothing in a file is ever run."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from mwa_lightning.backbones.checkpoints.reading import read_state
from mwa_lightning.errors import CheckpointError

STATE = {"one": torch.arange(3.0), "two": torch.ones(2, 2, dtype=torch.bfloat16)}


class Running:
    """Unpickles by calling a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def assert_is_state(read: dict[str, torch.Tensor]) -> None:
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], STATE[name]) and read[name].dtype == STATE[name].dtype for name in STATE)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["model", "module", None])
def test_read_state__official_layouts(tmp_path: Path, key: str | None, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({key: STATE, "epoch": 3} if key else STATE, path, _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state(path))


def test_read_state__model_goes_before_module(tmp_path: Path) -> None:
    torch.save({"module": {"other": torch.zeros(1)}, "model": STATE}, tmp_path / "weights.pt")
    assert_is_state(read_state(tmp_path / "weights.pt"))


@pytest.mark.parametrize("zipped", [True, False])
def test_read_state__arguments_of_a_run_beside_the_tensors(tmp_path: Path, zipped: bool) -> None:
    arguments = argparse.Namespace(
        lr=np.float64(1e-3), small=np.float32(2), steps=np.int64(7), flag=np.bool_(True), dtype=np.dtype("float16"),
        output=pathlib.Path("/runs/1"), pure=pathlib.PureWindowsPath("C:/runs"), device=torch.device("cpu"),
    )  # fmt: skip
    path = tmp_path / "weights.pth"
    torch.save({"model": STATE, "args": arguments}, path, _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state(path))


@pytest.mark.parametrize("core", ["core", "_core"])
def test_read_state__names_of_any_numpy_and_newer_pathlib(tmp_path: Path, core: str) -> None:
    """Whichever of the names the numpy has that is installed here."""
    path = tmp_path / "weights.pth"
    arguments = {"lr": np.float64(1e-3), "output": pathlib.Path("/runs/1")}
    torch.save({"model": STATE, "args": arguments}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    content, count = re.subn(rb"cnumpy\._?core\.multiarray\n", f"cnumpy.{core}.multiarray\n".encode(), content)
    assert count == 1
    content = content.replace(b"cpathlib\nPosixPath\n", b"cpathlib._local\nWindowsPath\n")
    path.write_bytes(content)
    assert_is_state(read_state(path))


@pytest.mark.parametrize("name", ["weights.safetensors", "renamed.bin"])
def test_read_state__safetensors_are_told_by_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert_is_state(read_state(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
def test_read_state__file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / "weights.pth"
    running = {
        f"{os.system.__module__}.system": Running(os.system, f"touch {witness}"),
        "eval": Running(eval, f"open({str(witness)!r}, 'w')"),
        "omegaconf.dictconfig.DictConfig": OmegaConf.create({"a": 1}),
    }
    for name, value in running.items():
        torch.save({"model": STATE, "args": value}, path, _use_new_zipfile_serialization=zipped)
        assert f"it asks for {name}," in refused(path)
        assert not witness.exists()


def test_read_state__bare_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps({"model": Running(os.system, f"touch {witness}")}, protocol=2))
    assert f"{os.system.__module__}.system" in refused(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # the file does what it is meant to do where nobody stops it
    assert witness.exists()


def test_read_state__torchscript_names_the_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    message = refused(path)
    assert "TorchScript" in message
    assert "hf://openai/clip-vit-base-patch32" in message


def test_read_state__missing_folder_empty(tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(tmp_path / "absent.pth")
    assert "a folder" in refused(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "an empty file" in refused(tmp_path / "empty.pth")


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_read_state__cut_short(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    state = {"one": torch.randn(40, 40), "two": torch.randn(40)}
    if path.suffix == ".pth":
        torch.save({"model": state}, path, _use_new_zipfile_serialization=name != "old.pth")
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "again" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (
            b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code>",
            "XML answer of a server (AuthenticationFailed)",
        ),
        (b'{"error":"Repository not found"}', "in JSON (Repository not found)"),
        (b'{"data":{"a": 1}}', "a JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n", "a Git LFS pointer to 605 MB"),
        (b"../../.git/annex/objects/aa/bb", "a git-annex pointer; git annex get fetches"),
        (b"Not Found", "a text that begins with 'Not Found'"),
        (b"\x00" * 100, "begins with zeros only"),
        (b"PK\x03\x04 no zip", "cut short"),
        (b"\x1f\x8b\x08\x00", "a compressed file; unpack it"),
        (b"Rar!\x1a\x07", "a compressed file; unpack it"),
        (b"\0\0\0\x18ftypmp42\0", "a video, not weights; give the checkpoint file"),
        (b"\x89HDF\r\n\x1a\n", "TensorFlow or Keras"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x81\xa6params", "Flax"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"\xff\xd8\xff\xe0", "a JPEG, not weights; give the checkpoint file"),
        (bytes(range(1, 100)) * 3, "not a whole checkpoint"),
    ],
)
def test_read_content__another_kind_of_file(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("weights.pth", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        assert said in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(1)], "holds no tensors by name"),
        ({"model": {}}, "holds no tensors by name"),
        ({"model": 3}, "holds no tensors by name"),
        ({"weights": STATE, "epoch": 3}, "its entry 'weights' is no tensor but dict"),
        ({"state_dict": {"one": 1}, "epoch": 3}, "bare or under one of 'model', 'module', 'state_dict'"),
        ({"model": {"one": torch.ones(1), "two": 2}}, "its entry 'two' is no tensor but int"),
    ],
)
def test_read_state__no_state_dict(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert said in refused(path)


def test_weights_file__name_that_cannot_be(tmp_path: Path) -> None:
    assert "cannot be read (File name too long); mend that, or give another file" in refused(tmp_path / ("a" * 300))


def test_read_state__memory_that_does_not_suffice_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1200000000 bytes.")

    path = tmp_path / "weights.pth"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)
    monkeypatch.setattr("torch.load", load)
    assert f"memory does not suffice to read its {path.stat().st_size:,} bytes" in refused(path)


def test_read_state__asset_that_the_package_has_not() -> None:
    with pytest.raises(CheckpointError, match=r"asset://absent.safetensors: the package ships no such file"):
        read_state("asset://absent.safetensors")


def write_parts(folder: Path) -> Path:
    """Both tensors, each in a file of its own, and their index."""
    for number, name in enumerate(STATE, start=1):
        save_file({name: STATE[name]}, folder / f"model-{number}-of-2.safetensors")
    index = folder / "model.safetensors.index.json"
    owners = {name: f"model-{number}-of-2.safetensors" for number, name in enumerate(STATE, start=1)}
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": owners}))
    return index


def test_read_state__several_files_by_their_index(tmp_path: Path) -> None:
    index = write_parts(tmp_path)
    assert_is_state(read_state(index))
    assert_is_state(read_state(tmp_path))
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: names model-2-of-2\.safetensors, which is not beside it"):
        read_state(index)


def test_read_state__folder_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_is_state(read_state(tmp_path))
    save_file({"one": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert read_state(tmp_path).keys() == {"one"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not an index"),
        ("{}", "not an index"),
        ('{"weight_map": {}}', "does not name files beside it"),
        ('{"weight_map": {"one": "../model-1-of-2.safetensors"}}', "does not name files beside it"),
        ('{"weight_map": {"one": "model-1-of-2.safetensors", "two": "model-1-of-2.safetensors"}}', "agree.*two"),
    ],
)
def test_read_state__index_that_does_not_fit(tmp_path: Path, content: str, said: str) -> None:
    index = write_parts(tmp_path)
    index.write_text(content)
    assert re.search(said, refused(index))
