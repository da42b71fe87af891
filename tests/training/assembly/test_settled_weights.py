"""What the files of weights say of a model is taken where a key is null, and contradicted where it is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mwa_lightning.backbones.checkpoints import FORMATS
from mwa_lightning.cli.config.composing import Request, apply, compose_groups
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.training.assembly.build import build_backbone
from mwa_lightning.training.assembly.settled_weights import settle_weights
from tests.backbones.checkpoints.files import KINDS, as_file, make

CLIP = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
TEXT = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 3}


def settled(weights: Path | str, backbone: str = "clip", **values: Any) -> Any:
    config = compose_groups("train", {"backbone": backbone, "adapter": "none"})
    given = {f"backbone.{key}": value for key, value in values.items()} | {"backbone.checkpoint": str(weights)}
    apply(config, Request(choices={}, values=given, added={}))
    settle_weights(config)
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP with the names of transformers."""
    save_file(as_file(FORMATS["dual"][0], *make("clip")), tmp_path / "model.safetensors")
    return tmp_path


def say(folder: Path, *, name: str = "config.json", **content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", [name for name, (kind, _) in KINDS.items() if kind in ("clip", "siglip")])
def test_settle__sizes_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    name, form = KINDS[kind]
    backbone, heads = make(name)
    torch.save({"state_dict": {f"model.{key}": value for key, value in as_file(form, backbone, heads).items()}},
               tmp_path / "epoch_2.pt")  # fmt: skip
    config = settled(tmp_path / "epoch_2.pt", name, vision_heads=2, text_heads=2)
    node = config.backbone
    assert {key: node[key] for key in (
        "vision_width", "vision_depth", "vision_ffn_width", "text_width", "text_depth", "text_ffn_width", "patch_size",
        "image_size", "vocabulary_size", "text_positions", "max_text_length", "embedding_width",
    )} == {
        "vision_width": 8, "vision_depth": 2, "vision_ffn_width": 12, "text_width": 6, "text_depth": 1,
        "text_ffn_width": 10, "patch_size": 4, "image_size": 8, "vocabulary_size": 30, "text_positions": 9,
        "max_text_length": 9, "embedding_width": 8 if name == "siglip" else 5,
    }  # fmt: skip
    built, _ = build_backbone(config)
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(built.parameters(), backbone.parameters(), strict=True)
    )


def test_settle__config_json(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    vision, text = CLIP | {"hidden_act": "gelu", "layer_norm_eps": 1e-6}, TEXT | {"hidden_act": "gelu"}
    say(folder, vision_config=vision, text_config=text | {"layer_norm_eps": 1e-6})
    say(folder, name="preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2,
        size={"height": 8, "width": 8}, do_center_crop=False)  # fmt: skip
    with caplog.at_level(logging.INFO):
        node = settled(folder).backbone
    assert (node.activation, node.norm_epsilon, node.vision_heads, node.text_heads) == ("gelu", 1e-6, 2, 3)
    assert (list(node.image_mean), list(node.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (node.resize, node.interpolation) == ("stretch", "bilinear")
    assert "backbone.activation=gelu" in caplog.text
    caplog.clear()
    node = settled(folder, activation="quick_gelu", image_mean=[0.1, 0.2, 0.3], resize="crop", image_size=12).backbone
    assert (node.activation, node.resize, node.image_size) == ("quick_gelu", "crop", 12)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        f"backbone.activation=quick_gelu is as it was set, but {folder / 'config.json'} says gelu",
        f"backbone.resize=crop is as it was set, but {folder / 'preprocessor_config.json'} says stretch",
    ]
    again = settled(folder).backbone  # as a run that goes on does, with all keys set
    caplog.clear()
    settled(folder, **{key: value for key, value in again.items() if key in ("activation", "norm_epsilon", "resize")})
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_settle__what_config_json_leaves_out_is_as_transformers_has_it(folder: Path) -> None:
    say(folder, vision_config=CLIP, text_config=TEXT)
    node = settled(folder).backbone
    assert (node.activation, node.norm_epsilon, node.resize) == ("quick_gelu", 1e-5, "crop")


@pytest.mark.parametrize(
    ("model", "activation"), [({}, "gelu"), ({"quick_gelu": True}, "quick_gelu"), ({"quick_gelu": False}, "gelu")]
)
def test_settle__open_clip_config_json(tmp_path: Path, model: dict[str, Any], activation: str) -> None:
    save_file(as_file(FORMATS["dual"][1], *make("clip")), tmp_path / "open_clip_model.safetensors")
    vision, text = {"width": 8, "layers": 2, "head_width": 4, "image_size": 8}, {"width": 6, "layers": 1, "heads": 3}
    pictures = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    say(tmp_path, name="open_clip_config.json", preprocess_cfg=pictures,
        model_cfg=model | {"vision_cfg": vision, "text_cfg": text})  # fmt: skip
    say(tmp_path, vision_config=CLIP | {"hidden_act": "relu"})  # transformers' own is not asked
    node = settled(tmp_path).backbone
    assert (node.activation, node.vision_heads, node.text_heads) == (activation, 2, 3)
    assert (list(node.image_std), node.resize, node.interpolation) == ([0.25] * 3, "stretch", "bilinear")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", {"vision_config": CLIP | {"hidden_act": "relu"}, "text_config": TEXT | {"hidden_act": "relu"}},
         "its activation is relu"),
        ("config.json", {"vision_config": CLIP | {"hidden_act": "gelu"}, "text_config": TEXT}, "both have the same"),
        ("config.json", {"vision_config": CLIP | {"layer_norm_eps": 0}, "text_config": TEXT | {"layer_norm_eps": 0}},
         "layer_norm_eps=0 is not a number above 0"),
        ("config.json", {"vision_config": CLIP | {"num_attention_heads": 1 << 20}, "text_config": TEXT},
         "num_attention_heads=1048576 is not a whole number above 0 and below 1,048,576"),
        ("config.json", {"vision_config": CLIP | {"hidden_act": [1]}, "text_config": TEXT | {"hidden_act": [1]}},
         r"its activation is \[1\], and here it can be gelu, .*; choose another model"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, r"image_mean=\[1, 2\] is not three numbers from 0 to 1"),
        ("preprocessor_config.json", {"image_std": [0, 0.5, 1]}, "is not three numbers above 0 and up to 1"),
        ("preprocessor_config.json", {"resample": 1}, "resample=1"),
        ("preprocessor_config.json", {"resample": [3]}, r"resample=\[3\]; here it is 2"),
        ("preprocessor_config.json",
         {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
         "resizes images to 256 px and cuts 224 px"),
    ],
)  # fmt: skip
def test_settle__what_cannot_be_done_is_said(folder: Path, name: str, content: dict[str, Any], said: str) -> None:
    say(folder, vision_config=CLIP, text_config=TEXT)
    say(folder, name=name, **content)
    with pytest.raises(CheckpointError, match=said) as caught:
        settled(folder)
    assert str(caught.value).startswith(str(folder / name))


def test_settle__damaged_json_and_that_of_another_model(folder: Path) -> None:
    say(folder, vision_config=CLIP | {"hidden_size": 768}, text_config=TEXT | {"hidden_act": "gelu"})
    assert settled(folder, vision_heads=2, text_heads=2).backbone.activation == "quick_gelu"
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        settled(folder)


def test_settle__heads(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.vision_heads is not set, .* the width 8 has; set it"):
        settled(folder)
    say(folder, vision_config=CLIP, text_config=TEXT)
    with pytest.raises(ConfigError, match=r"backbone\.text_heads=2: .*config\.json says 3; set backbone\.text_heads=3"):
        settled(folder, text_heads=2)


def test_settle__other_kind_and_random(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a CLIP, and backbone=siglip a SigLIP; choose backbone=clip"):
        settled(folder, "siglip")
    with pytest.raises(ConfigError, match=r"backbone\.vision_width is not set, and random weights"):
        settled("random")
    node = settled("random", "clip_b32").backbone
    assert (node.image_size, node.activation, node.interpolation) == (224, "quick_gelu", "bicubic")


def test_settle__so400m_by_its_shapes(tmp_path: Path) -> None:
    """384 px with patches of 14 px: 27 x 27, and 16 heads of 72 channels."""
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (1152,),
        "vision_model.embeddings.position_embedding.weight": (729, 1152),
        "vision_model.head.probe": (1, 1, 1152),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (1, 1152),
        "text_model.embeddings.token_embedding.weight": (40, 1152),
        "text_model.embeddings.position_embedding.weight": (64, 1152),
        "text_model.encoder.layers.0.mlp.fc1.weight": (1, 1152),
    }
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    node = settled(tmp_path, "siglip").backbone
    assert (node.image_size, node.vision_heads, node.text_heads) == (378, 16, 16)
    say(tmp_path, model_type="siglip", vision_config={"hidden_size": 1152, "num_hidden_layers": 1, "image_size": 384,
        "num_attention_heads": 16}, text_config={"hidden_size": 1152, "num_hidden_layers": 1})  # fmt: skip
    with pytest.raises(ConfigError, match=r"text_heads=16: .* says 12"):
        settled(tmp_path, "siglip", text_heads=16)
    assert settled(tmp_path, "siglip").backbone.image_size == 384
