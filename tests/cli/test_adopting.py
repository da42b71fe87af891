"""What the file of `adapter.checkpoint` says becomes the configuration, or is contradicted in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mwa_lightning.adapters.files.adapter_file import save_adapter
from mwa_lightning.cli import evaluate, train
from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.errors import CheckpointError
from mwa_lightning.training.assembly.build import _check_settings
from tests.cli.conftest import Refuses

TARGETS = {
    "mwa": "mwa_lightning.adapters.mwa.MultiWayAdapter",
    "modex": "mwa_lightning.adapters.modex.ModeX",
    "head_only": "mwa_lightning.adapters.head_only.HeadOnly",
}
MAINS: dict[str, Callable[[list[str]], int]] = {"mwa-eval": evaluate.main, "mwa-train": train.main}
Make = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> Make:
    """Make an adapter file of a method and settings, as far as a command looks into it before the work begins."""

    def make(method: str, about: dict[str, Any] | None = None, **settings: Any) -> Path:
        metadata = {"backbone": "beit3_tiny", "fingerprint": "f", "config": {"_target_": TARGETS[method], **settings}}
        path = tmp_path / "adapter.safetensors"
        save_adapter(path, {"adapter.a": torch.ones(2)}, metadata=metadata | {"backbone_settings": about or {}})
        return path

    return make


def composed(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> dict[str, Any]:
    assert MAINS[name]([*words, "--cfg", "job"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", MAINS)
@pytest.mark.parametrize("folder", [False, True])
def test_adopt__method_and_settings_are_the_file_s(
    name: str, folder: bool, file: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file("modex", variant="standard", mid_dim=5, temperature=3.5, first_layer=1)
    given = path.parent if folder else path
    config = composed(capsys, name, "data=scenes", f"adapter.checkpoint={given}")["adapter"]
    assert config.pop("checkpoint") == str(path)
    assert config == {
        "_target_": TARGETS["modex"], "variant": "standard", "mid_dim": 5, "temperature": 3.5, "first_layer": 1,
        "coordinator": "softmax", "modules_to_save": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", MAINS)
@pytest.mark.parametrize(
    ("method", "settings", "words", "said"),
    [
        ("mwa", {"scale": 16.0}, ["adapter.scale=1"], "was trained with 16.0; leave the key out"),
        ("mwa", {"enhancer": "ffn"}, ["adapter.enhancer=none"], "adapter.enhancer=none: "),
        ("mwa", {"extractor_text": False}, ["adapter.extractor_text=true"], "was trained with False"),
        ("modex", {"variant": "released"}, ["adapter=modex", "adapter.variant=standard"], "trained with released"),
        ("mwa", {}, ["adapter=modex"], "is of adapter=mwa, and adapter=modex is set"),
        ("modex", {}, ["adapter=none"], "is of adapter=modex, and adapter=none is set"),
        ("modex", {}, ["experiment=scenes_mwa"], "is of adapter=modex, and adapter=mwa is set"),
        ("mwa", {"mid_dim": "many"}, [], "says adapter.mid_dim=many: want a whole number"),
        ("mwa", {"scale": -1}, [], "says adapter.scale=-1: want a number"),
        ("mwa", {"odd": 1}, [], "says adapter.odd=1, and there is no such key"),
        ("mwa", {"checkpoint": "/x"}, [], "says adapter.checkpoint=/x"),
    ],
)
def test_adopt__contradicts_in_one_line(
    name: str, method: str, settings: dict[str, Any], words: list[str], said: str, file: Make, refuses: Refuses
) -> None:
    path = file(method, **settings)
    refuses(name, MAINS[name], ["data=scenes", f"adapter.checkpoint={path}", *words], [said, str(path)])


def test_adopt__a_class_of_nobody_s(file: Make, refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "mwa", "subprocess.Popen")
    words = ["data=scenes", f"adapter.checkpoint={file('mwa')}"]
    refuses("mwa-eval", evaluate.main, words, ["its method subprocess.Popen is none of"])


def test_adopt__dropout_changes_no_output(file: Make, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=scenes", f"adapter.checkpoint={file('mwa', dropout=0.25)}"]
    assert composed(capsys, "mwa-eval", *words)["adapter"]["dropout"] == 0.25
    assert composed(capsys, "mwa-eval", *words, "adapter.dropout=0.5")["adapter"]["dropout"] == 0.5
    assert composed(capsys, "mwa-train", *words)["adapter"]["dropout"] == 0.1


def test_adopt__what_the_backbone_was_like(file: Make, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"resize": "crop", "image_mean": [0.1, 0.2, 0.3], "max_text_length": 20, "of_later": 1}
    words = ["data=scenes", f"adapter.checkpoint={file('mwa', about)}"]
    backbone = composed(capsys, "mwa-eval", *words, "backbone.max_text_length=30")["backbone"]
    assert (backbone["resize"], backbone["image_mean"], backbone["max_text_length"]) == ("crop", [0.1, 0.2, 0.3], 30)
    assert composed(capsys, "mwa-train", *words)["backbone"]["resize"] == "stretch"  # a recipe's is meant


def test_adopt__of_a_run_whose_configuration_says_otherwise(
    file: Make, capsys: pytest.CaptureFixture[str], refuses: Refuses
) -> None:
    path = file("mwa", scale=16.0)
    saved = composed(capsys, "mwa-train", "adapter=mwa", "adapter.scale=1")
    (path.parent / "config.yaml").write_text(yaml.safe_dump(saved))
    assert composed(capsys, "mwa-eval", f"run={path.parent}")["adapter"]["scale"] == 16.0
    file("head_only")
    refuses("mwa-eval", evaluate.main, [f"run={path.parent}"], ["is of adapter=head_only, and adapter=mwa is set"])


def test_adopt__other_files_are_named_before_torch_is_imported(refuses: Refuses, tmp_path: Path) -> None:
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    for given in ("x.safetensors", "absent"):
        said = "an adapter of PEFT" if given != "absent" else "there is no such file"
        words = ["data=scenes", f"adapter.checkpoint={tmp_path / given}"]
        refuses("mwa-train", train.main, words, [said])


@pytest.mark.parametrize(
    ("key", "adapter", "said"),
    [
        ("visual_encoder.blocks.0.modex.visual_msa.D_fc1.weight", "modex", "give adapter.variant=released adapter.mid"),
        ("visual_encoder.blocks.0.modex.visual_msa.D_fc1.weight", "mwa", "is an adapter of ModeX, not of MultiWayAdap"),
        (
            "beit3.encoder.layers.0.adaptmlp_text.down_proj.weight",
            "mwa",
            "give adapter.extractor_text=False",
        ),
        (
            "beit3.encoder.layers.0.adaptmlp_text.down_proj.weight",
            "modex",
            "is an adapter of MultiWayAdapter, not",
        ),
    ],
)
def test_attach__released_files_are_contradicted_too(key: str, adapter: str, said: str, tmp_path: Path) -> None:
    torch.save({key: torch.ones(4, 8)}, tmp_path / "released.pth")
    config = compose_groups("train", {"backbone": "albef_tiny", "adapter": adapter})
    with pytest.raises(CheckpointError, match=said):
        _check_settings(config, tmp_path / "released.pth")
