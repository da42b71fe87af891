"""The files of SigLIP and SigLIP 2 of fixed resolution, with the names of Hugging Face's transformers."""

from __future__ import annotations

import re

from mwa_lightning.backbones.checkpoints.clip import (
    KINDS,
    POSITIONS,
    blocks_of_transformers,
    sizes_of_backbone,
    sizes_of_file,
    with_kinds,
)
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.checkpoints.loading import FileFormat
from mwa_lightning.backbones.dual import DualEncoder

_PATCHES = "vision_model.embeddings.patch_embedding"
_TOKENS = "text_model.embeddings.token_embedding.weight"
_PROBE = "vision_model.head.probe"
_DROPPED = (re.compile(r"(vision|text)_model\.embeddings\.position_ids"),)


def siglip_key_map(backbone: DualEncoder) -> KeyMap:
    """The names of transformers' SiglipModel."""
    names: dict[str, str | tuple[str, ...]] = {
        "vision_model.embeddings.position_embedding.weight": POSITIONS,
        _TOKENS: "text.embedding.tokens.weight",
        "text_model.embeddings.position_embedding.weight": "text.embedding.positions",
        _PROBE: "heads.vision.probe",
        "logit_scale": "heads.logit_scale",
        "logit_bias": "heads.logit_bias",
    }
    for kind in KINDS:
        names[f"vision_model.head.attention.in_proj_{kind}"] = tuple(
            f"heads.vision.attention.{part}.0.{kind}" for part in ("query", "key", "value")
        )
    names |= with_kinds(
        {
            _PATCHES: "vision.embedding.projection",
            "vision_model.post_layernorm": "vision.final_norm",
            "text_model.final_layer_norm": "text.final_norm",
            "vision_model.head.attention.out_proj": "heads.vision.attention.output.0",
            "vision_model.head.layernorm": "heads.vision.norm",
            "vision_model.head.mlp.fc1": "heads.vision.ffn.up",
            "vision_model.head.mlp.fc2": "heads.vision.ffn.down",
            "text_model.head": "heads.text",
        }
    )
    names |= blocks_of_transformers("vision_model", "vision", backbone.vision_depth)
    names |= blocks_of_transformers("text_model", "text", backbone.text_depth)
    return KeyMap(names=names, dropped=_DROPPED)


SIGLIP = FileFormat(
    name="SigLIP",
    recognises=lambda state: {f"{_PATCHES}.weight", f"{_PATCHES}.bias", _TOKENS, _PROBE} <= state.keys(),
    sizes=lambda state: sizes_of_file(
        state, "siglip", f"{_PATCHES}.weight", _TOKENS, "vision_model.encoder.layers", "text_model.encoder.layers"
    ),
    backbone_sizes=sizes_of_backbone,
    key_map=siglip_key_map,
    positions={POSITIONS: 0},
)
