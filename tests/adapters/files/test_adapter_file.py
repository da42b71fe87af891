"""adapter.safetensors: exactly what was trained, and nothing loads silently wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mwa_lightning.adapters.files.adapter_file import is_ours, load_adapter, read_metadata, save_adapter, trained_state
from mwa_lightning.errors import CheckpointError

METADATA = {"method": "probe", "backbone": "probe", "fingerprint": "f" * 64, "version": "0", "config": {"mid_dim": 4}}


class Model(nn.Module):
    """A frozen part and a trained one."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.trained = nn.Linear(2, width)


def write(folder: Path, model: nn.Module) -> Path:
    path = folder / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata=METADATA)
    return path


def test_round_trip__restores_the_trained_bytes_and_leaves_the_frozen(tmp_path: Path) -> None:
    source, target = Model(), Model()
    path = write(tmp_path, source)
    frozen = target.frozen.weight.clone()
    load_adapter(path, target, fingerprint="f" * 64)
    assert torch.equal(target.trained.weight, source.trained.weight)
    assert torch.equal(target.trained.bias, source.trained.bias)
    assert torch.equal(target.frozen.weight, frozen)
    assert sorted(path.parent.iterdir()) == [path]
    assert read_metadata(path)["config"] == '{"mid_dim": 4}'


def test_load__refuses_another_backbone(tmp_path: Path) -> None:
    path = write(tmp_path, Model())
    with pytest.raises(
        CheckpointError, match="trained on probe with weights ffffffffffff, this backbone has 000000000000"
    ):
        load_adapter(path, Model(), fingerprint="0" * 64)


def test_load__names_missing_and_unexpected_and_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, Model())
    target = Model()
    target.frozen.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing: frozen.bias, frozen.weight"):
        load_adapter(path, target, fingerprint="f" * 64)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_load__names_another_shape(tmp_path: Path) -> None:
    path = write(tmp_path, Model(width=3))
    with pytest.raises(CheckpointError, match=r"of another shape: trained.bias \(3,\) for \(4,\)"):
        load_adapter(path, Model(width=4), fingerprint="f" * 64)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_load__refuses_a_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "adapter.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter.safetensors: (no such|not a readable)"):
        load_adapter(path, Model(), fingerprint="f" * 64)


@pytest.mark.parametrize("name", ["adapter.pth", "adapter"])
def test_load__is_told_by_its_content(tmp_path: Path, name: str) -> None:
    source, target = Model(), Model()
    path = write(tmp_path, source).rename(tmp_path / name)
    assert is_ours(path)
    load_adapter(path, target, fingerprint="f" * 64)
    assert torch.equal(target.trained.weight, source.trained.weight)


@pytest.mark.parametrize("zipped", [True, False])
def test_load__file_of_torch_by_its_content(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "adapter"
    torch.save({"model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    assert not is_ours(path)
    named = path.rename(tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=r"a file of torch, not safetensors; rename it to adapter\.pth"):
        load_adapter(named, Model(), fingerprint="f" * 64)


def test_load__refuses_a_cut_file(tmp_path: Path) -> None:
    path = write(tmp_path, Model())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="; copy it again"):
        load_adapter(path, Model(), fingerprint="f" * 64)


class Sites(nn.Module):
    """Bottlenecks on some streams of a model of these widths, as MultiWay-Adapter names them."""

    def __init__(self, *, layers: int, **widths: int) -> None:
        super().__init__()
        self.adapter = nn.ModuleDict(
            {
                f"{stream}_{layer}": nn.ModuleDict({"bottleneck": nn.ModuleDict({"down": nn.Linear(width, 2)})})
                for stream, width in widths.items()
                for layer in range(layers)
            }
        )


def test_load__another_size_is_said_of_the_same_parts_only(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of width 8 and 1 layer, and this one has width 6 and 2 layers;"):
        load_adapter(write(tmp_path, Sites(layers=1, vision=8)), Sites(layers=2, vision=6), fingerprint="f" * 64)
    with pytest.raises(CheckpointError, match=r"does not fit this adapter .*; take the backbone, the adapter and its"):
        load_adapter(write(tmp_path, Sites(layers=1, vision=8)), Sites(layers=1, text=6), fingerprint="f" * 64)
