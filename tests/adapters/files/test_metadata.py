"""What an adapter file says is data: checked, one line where it cannot be, and nothing run or allocated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mwa_lightning.adapters.files.adapter_file import method_in
from mwa_lightning.adapters.files.foreign import described_as
from mwa_lightning.adapters.files.metadata import FORMAT, locate_adapter, read_header
from mwa_lightning.errors import CheckpointError

METADATA = {
    "format": FORMAT,
    "backbone": "beit3_tiny",
    "fingerprint": "f" * 64,
    "task": "reasoning",
    "images": "2",
    "classes": '["no", "yes"]',
    "image_size": "60",
    "config": json.dumps({"_target_": "mwa_lightning.adapters.mwa.MultiWayAdapter", "mid_dim": 4}),
    "backbone_settings": json.dumps({"resize": "crop"}),
}


def write(folder: Path, dtype: torch.dtype = torch.float32, **changes: str | None) -> Path:
    path = folder / "adapter.safetensors"
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    save_file({"adapter.a": torch.ones(2, 3).to(dtype)}, path, metadata)
    return path


def test_read_header__what_we_write(tmp_path: Path) -> None:
    header = read_header(write(tmp_path))
    assert header.target == "mwa_lightning.adapters.mwa.MultiWayAdapter"
    assert header.settings == {"mid_dim": 4}
    assert header.backbone_settings == {"resize": "crop", "image_size": 60}
    assert (header.task, header.images, header.classes) == ("reasoning", 2, ("no", "yes"))
    assert header.shapes == {"adapter.a": (2, 3)}
    old = read_header(write(tmp_path, backbone_settings=None, images=None, classes=None, task=None))
    assert (old.task, old.images, old.classes, old.backbone_settings) == (None, None, (), {"image_size": 60})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": None}, "lack 'fingerprint'"),
        ({"backbone": None}, "lack 'backbone'"),
        ({"format": None}, "not an adapter file|without the metadata"),
        ({"config": "[" * 100_000}, "'config' cannot be read .it is nested too deep"),
        ({"config": "{"}, "'config' cannot be read"),
        ({"config": "[1]"}, "'config' are not a mapping but \\[1\\]; give the file as it was saved"),
        ({"config": '{"mid_dim": "???"}'}, r"'config.mid_dim' are '\?\?\?'"),
        ({"config": '{"mid_dim": "${oc.env:HOME}"}'}, r"'config.mid_dim' are '\$\{oc.env:HOME\}'"),
        ({"backbone_settings": '{"resize": ["${x}"]}'}, r"are not followed"),
        ({"config": '{"enhancer_dim": 1000000000}'}, "says adapter.enhancer_dim=1000000000, and no tensor"),
        ({"image_size": '"???"'}, "'image_size' are not a whole number but "),
        ({"image_size": "true"}, "'image_size' are not a whole number but "),
        ({"image_size": "1000000"}, "says image_size=1000000, and 1 to 4096 can be; give the file"),
        ({"image_size": "0"}, "says image_size=0, and 1 to 4096 can be"),
        ({"image_size": "9" * 5000}, "4300 digits"),
        ({"images": "x"}, "'images' cannot be read"),
        ({"images": "1000000000"}, "says images=1000000000"),
        ({"classes": None}, "have but one"),
        ({"images": None}, "have but one"),
        ({"classes": '["a"]'}, "two or more are wanted"),
        ({"classes": '["a", "a"]'}, "two or more are wanted"),
    ],
)
def test_read_header__refuses_in_one_line(changes: dict[str, str | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        read_header(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
def test_read_header__weights_are_of_a_floating_type(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"adapter\.a is of type .*, and weights are F64, F32, F16, BF16; give the"
    ):
        read_header(write(tmp_path, dtype))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 600))
def test_read_header__damage_is_one_line(place: int, byte: int, cut: int, tmp_path: Path) -> None:
    content = bytearray(write(tmp_path).read_bytes())
    content[min(place, len(content) - 1)] = byte
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(bytes(content[: len(content) - cut] if cut < 500 else content))
    try:
        read_header(damaged)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 (it may also be whole)


PEFT = "an adapter of PEFT, which is not read here"
DIFFUSION = "a LoRA of a diffusion model"
WHOLE = "without an adapter: give it as backbone.checkpoint"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", PEFT),
        ("base_model.model.vision_model.encoder.layers.0.mlp.fc1.lora_B.default.weight", PEFT),
        ("text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight", PEFT),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", DIFFUSION),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", DIFFUSION),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", DIFFUSION),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora.up.weight", "a LoRA of another library"),
        ("beit3.encoder.layers.0.self_attn.k_proj.A.weight", f"BEiT-3. {WHOLE}"),
        ("visual_encoder.blocks.0.attn.qkv.weight", f"BLIP or ALBEF. {WHOLE}"),
        ("module.text_encoder.bert.encoder.layer.0.output.dense.weight", f"BLIP or ALBEF. {WHOLE}"),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", f"of transformers. {WHOLE}"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", f"of OpenCLIP. {WHOLE}"),
        ("visual.trunk.blocks.0.attn.qkv.weight", f"of OpenCLIP. {WHOLE}"),
        ("adapter.extractors.vision_0.bottleneck.down.weight", "without the metadata that this version writes"),
        ("model.adapter.enhancers.0.inner.down.weight", "a checkpoint of a run; give the adapter.safetensors"),
        ("weight", "not an adapter file: it holds weight"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_method_in__names_what_is_no_adapter(name: str, said: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"given.{kind}"
    tensors = {name: torch.ones(1)}
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=said) as caught:
        method_in(path)
    assert "\n" not in str(caught.value)


def test_described_as__an_empty_file() -> None:
    assert "it holds nothing" in described_as([])


def test_method_in__released_files_may_be_safetensors(tmp_path: Path) -> None:
    tensors = {"beit3.encoder.layers.0.adaptmlp_text.down_proj.weight": torch.ones(4, 8)}
    for name, dump in {"a.safetensors": save_file, "a.pth": torch.save}.items():
        dump(tensors, tmp_path / name)
        target, options = method_in(tmp_path / name)
        assert target == "mwa_lightning.adapters.mwa.MultiWayAdapter"
        assert options == {"extractor_vision": True, "extractor_text": False, "enhancer": "none", "mid_dim": 4}


def test_locate_adapter__a_folder_is_its_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = write(tmp_path / "run")
    assert locate_adapter(tmp_path / "run") == locate_adapter(path) == path
    for name, said in {
        "adapter_config.json": PEFT,
        "config.yaml": "of an evaluation or of a training that did not end; give the directory",
        "other": "a folder without adapter.safetensors",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(CheckpointError, match=said):
            locate_adapter(tmp_path / name)


def test_locate_adapter__name_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\); give the adapter\.safetensors"):
        locate_adapter(tmp_path / ("a" * 300))


@pytest.mark.parametrize("key", ["config", "backbone", "pictures"])
def test_read_header__metadata_are_texts(key: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    head = json.loads(content[8 : (end := 8 + int.from_bytes(content[:8], "little"))])
    head["__metadata__"][key] = 5
    packed = json.dumps(head).encode()
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + content[end:])
    with pytest.raises(CheckpointError, match="its metadata are not all texts; give the file as it was saved"):
        read_header(path)


def test_method_in__checkpoint_of_a_run(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {"model.adapter.a": torch.ones(1)}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: a checkpoint of a run; give the adapter\.safetensors"):
        method_in(tmp_path / "last.ckpt")


def test_read_header__a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it is a named pipe, not a file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no such adapter file"):
        read_header(tmp_path / "absent")
