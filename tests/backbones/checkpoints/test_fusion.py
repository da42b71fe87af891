"""The official key lists of BLIP and ALBEF at base size: each maps totally onto ours, and refusals are one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mwa_lightning.backbones.checkpoints import FORMATS, load_backbone
from mwa_lightning.backbones.checkpoints.key_map import Mapped, apply_key_map
from mwa_lightning.backbones.checkpoints.loading import FileFormat, parameters_to_fill
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.heads import retrieval_heads

LINEAR, NORM, BOTH = "linear", "norm", ("weight", "bias")
KINDS = {
    "blip": {"text_layers": 12, "fusion_layers": 0, "vocabulary_size": 30524, "encoder_token": -1},
    "albef": {"text_layers": 6, "fusion_layers": 6, "vocabulary_size": 30522, "token_types": 2},
}
SIZES = {
    "vision_width": 768, "vision_depth": 12, "vision_heads": 12, "vision_ffn_width": 3072, "patch_size": 16,
    "image_size": 384, "text_width": 768, "text_heads": 12, "text_ffn_width": 3072,
}  # fmt: skip


def make(kind: str, *, pair: bool, **sizes: Any) -> tuple[FusionEncoder, nn.Module]:
    backbone = FusionEncoder(name=kind, pair=pair, **(KINDS[kind] | SIZES | sizes))
    width = backbone.text_width
    head = nn.ModuleDict({"hidden": nn.Linear(width, width), "output": nn.Linear(width, 2)})
    return backbone, head if pair else retrieval_heads(backbone)


def official(kind: str, *, pair: bool) -> dict[str, tuple[int, ...]]:
    """Keys and shapes as the original code and LAVIS have them, spelled out once more.

    Compared with lists that were taken from instantiated models of LAVIS.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (768,)

    shapes["visual_encoder.cls_token"], shapes["visual_encoder.pos_embed"] = (1, 1, 768), (1, 577, 768)
    shapes["visual_encoder.patch_embed.proj.weight"] = (768, 3, 16, 16)
    shapes["visual_encoder.patch_embed.proj.bias"] = (768,)
    norm("visual_encoder.norm")
    for layer in range(12):
        block = f"visual_encoder.blocks.{layer}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 768, 2304)
        linear(f"{block}.attn.proj", 768, 768)
        linear(f"{block}.mlp.fc1", 768, 3072)
        linear(f"{block}.mlp.fc2", 3072, 768)
    shapes["text_encoder.embeddings.position_ids"] = (1, 512)
    shapes["text_encoder.embeddings.word_embeddings.weight"] = (30524 if kind == "blip" else 30522, 768)
    shapes["text_encoder.embeddings.position_embeddings.weight"] = (512, 768)
    norm("text_encoder.embeddings.LayerNorm")
    for layer in range(18 if kind == "albef" and pair else 12):
        name = f"text_encoder.encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{name}.{part}", 768, 768)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            norm(f"{name}.{part}")
        linear(f"{name}.intermediate.dense", 768, 3072)
        linear(f"{name}.output.dense", 3072, 768)
        if kind == "albef" and layer < 6:
            continue
        norm(f"{name}.crossattention.output.LayerNorm")
        for image in ("0", "1") if kind == "blip" and pair else ("",):
            for part in (f"self{image}.query", f"self{image}.key", f"self{image}.value", f"output.dense{image}"):
                linear(f"{name}.crossattention.{part}", 768, 768)
        if kind == "blip" and pair and layer >= 6:
            linear(f"{name}.crossattention.output.merge_layer", 1536, 768)
    if pair:
        linear("cls_head.0", 768, 768)
        linear("cls_head.2", 768, 2)
    else:
        linear("vision_proj", 768, 256)
        linear("text_proj", 768, 256)
        linear("itm_head", 768, 2)
        shapes |= {"temp": (), "image_queue": (256, 100), "text_queue": (256, 100), "idx_queue": (1, 100)}
        shapes |= {"queue_ptr": (1,), "vision_proj_m.weight": (256, 768)}
    return shapes | {"visual_encoder_m.cls_token": (1, 1, 768)}


def form(name: str) -> FileFormat:
    return next(form for form in FORMATS["fusion"] if form.name == name)


def mapped(kind: str, *, pair: bool) -> tuple[Mapped, dict[str, torch.Size | None]]:
    """The list of a kind of file put through its key map, without memory for the tensors."""
    with torch.device("meta"):
        backbone, heads = make(kind, pair=pair)
        state = {key: torch.empty(shape) for key, shape in official(kind, pair=pair).items()}
    kind_of_file = form({"blip": "BLIP", "albef": "ALBEF"}[kind] + (" (two images)" if pair else ""))
    assert kind_of_file.sizes(state) == kind_of_file.backbone_sizes(backbone)
    shapes: dict[str, torch.Size | None] = {
        name: parameter.shape for name, parameter in parameters_to_fill(backbone, heads).items()
    }
    return apply_key_map(state, kind_of_file.key_map(backbone), shapes, origin="file"), shapes


@pytest.mark.parametrize("pair", [False, True], ids=["one_image", "two_images"])
@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_key_map__is_total_at_base_size(kind: str, pair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: True)  # there are no values
    result, shapes = mapped(kind, pair=pair)
    assert result.new == (["text_embedding.token_types"] if kind == "albef" else [])
    assert result.tensors.keys() | set(result.new) == shapes.keys()
    unneeded = {"text_encoder.embeddings.position_ids", "visual_encoder_m.cls_token"}
    if not pair:
        unneeded |= {"image_queue", "text_queue", "idx_queue", "queue_ptr", "vision_proj_m.weight"}
    assert set(result.dropped) == unneeded
    sizes = {("blip", False): 521, ("blip", True): 626, ("albef", False): 461, ("albef", True): 590}
    assert len(result.tensors) == sizes[kind, pair]


SMALL = {
    "vision_width": 16, "vision_depth": 1, "vision_heads": 2, "vision_ffn_width": 32, "patch_size": 8, "image_size": 16,
    "text_width": 16, "text_heads": 2, "text_ffn_width": 64, "text_layers": 2, "vocabulary_size": 30,
    "text_positions": 12, "max_text_length": 8, "embedding_width": 4,
}  # fmt: skip


def write(path: Path, kind: str, *, pair: bool) -> Path:
    from tests.parity.plain_bert import official_state

    state = official_state(
        kind, pair=pair, width=16, text_width=16, depth=1, layers=2, vocabulary=30, patch=8, grid=2, positions=12,
        embedding=4, merge_from=1,
    )  # fmt: skip
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize(
    ("file", "backbone", "said"),
    [
        (("blip", True), {"pair": False}, "2 text layers that see the image from layer 0 up, for two images, but"),
        (("albef", False), {"pair": False}, "2 text layers that see the image from layer 1 up, but blip is"),
        (("blip", False), {"vocabulary_size": 31}, "vocabulary 30, patches"),
        (("blip", False), {"vision_depth": 2}, "missing: visual_encoder.blocks.1."),
    ],
    ids=["two images for one", "albef for blip", "vocabulary", "depth"],
)
def test_load_backbone__refuses_what_does_not_fit(
    tmp_path: Path, file: tuple[str, bool], backbone: dict[str, Any], said: str
) -> None:
    ours, heads = make("blip", **({"pair": False} | SMALL | {"vision_ffn_width": 64} | backbone))
    before = [parameter.clone() for parameter in ours.parameters()]
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        load_backbone(ours, heads, write(tmp_path / "model.pth", file[0], pair=file[1]))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(one, other) for one, other in zip(before, ours.parameters(), strict=True))
