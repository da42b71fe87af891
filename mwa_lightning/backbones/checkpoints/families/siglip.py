"""The files of SigLIP and SigLIP 2 of fixed resolution: with the names of transformers, or of OpenCLIP and timm."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from mwa_lightning.backbones.checkpoints.families.clip import (
    KINDS,
    POSITIONS,
    Layout,
    blocks_of_transformers,
    dual_format,
    open_clip_text,
    transformers_layout,
    with_kinds,
)
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
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


def open_clip_siglip_key_map(backbone: DualEncoder) -> KeyMap:
    """The names of OpenCLIP's SigLIP: images by timm (`visual.trunk`), texts by OpenCLIP's own transformer."""
    trunk = "visual.trunk"
    names = open_clip_text("text.", backbone.text_depth) | {
        f"{trunk}.pos_embed": POSITIONS,
        f"{trunk}.attn_pool.latent": "heads.vision.probe",
        "logit_scale": "heads.logit_scale",
        "logit_bias": "heads.logit_bias",
    }
    modules = {
        f"{trunk}.patch_embed.proj": "vision.embedding.projection",
        f"{trunk}.norm": "vision.final_norm",
        f"{trunk}.attn_pool.q": "heads.vision.attention.query.0",
        f"{trunk}.attn_pool.proj": "heads.vision.attention.output.0",
        f"{trunk}.attn_pool.norm": "heads.vision.norm",
        f"{trunk}.attn_pool.mlp.fc1": "heads.vision.ffn.up",
        f"{trunk}.attn_pool.mlp.fc2": "heads.vision.ffn.down",
        "text.text_projection": "heads.text",
    }
    for kind in KINDS:
        names[f"{trunk}.attn_pool.kv.{kind}"] = tuple(
            f"heads.vision.attention.{part}.0.{kind}" for part in ("key", "value")
        )
    for layer in range(backbone.vision_depth):
        theirs, ours = f"{trunk}.blocks.{layer}", f"vision.blocks.{layer}"
        for kind in KINDS:
            names[f"{theirs}.attn.qkv.{kind}"] = tuple(
                f"{ours}.attention.{part}.vision.{kind}" for part in ("query", "key", "value")
            )
        modules |= {
            f"{theirs}.attn.proj": f"{ours}.attention.output.vision",
            f"{theirs}.norm1": f"{ours}.attention_norm.vision",
            f"{theirs}.norm2": f"{ours}.ffn_norm.vision",
            f"{theirs}.mlp.fc1": f"{ours}.ffn.vision.up",
            f"{theirs}.mlp.fc2": f"{ours}.ffn.vision.down",
        }
    return KeyMap(names=names | with_kinds(modules), dropped=_DROPPED, converted={f"{trunk}.pos_embed": _without_batch})


def _without_batch(table: Tensor) -> Tensor:
    """(1, n, d) as (n, d)."""
    return table[0]


SIGLIP = dual_format("SigLIP", transformers_layout("siglip"), siglip_key_map, f"{_PATCHES}.bias", _PROBE, rows_before=0)
_OPEN_CLIP_SIGLIP = dual_format(
    "OpenCLIP's SigLIP",
    Layout(
        form="siglip",
        patches="visual.trunk.patch_embed.proj.weight",
        positions="visual.trunk.pos_embed",
        tokens="text.token_embedding.weight",
        text_positions="text.positional_embedding",
        layers=("visual.trunk.blocks", "text.transformer.resblocks"),
        up=("mlp.fc1", "mlp.c_fc"),
        projection="text.text_projection.weight",
    ),
    open_clip_siglip_key_map,
    "visual.trunk.attn_pool.latent",
    rows_before=0,
)
OPEN_CLIP_SIGLIP = replace(
    _OPEN_CLIP_SIGLIP, instead="the google/siglip-* and google/siglip2-* models on Hugging Face have the same weights"
)
