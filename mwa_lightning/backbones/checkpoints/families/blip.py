"""The files of BLIP: of the original code and LAVIS (retrieval, pretraining, NLVR2), and of transformers."""

from __future__ import annotations

import re

from mwa_lightning.backbones.checkpoints.families.fusion import (
    DROPPED,
    KINDS,
    POSITIONS,
    Modules,
    fusion_format,
    fusion_key_map,
    official_vision_modules,
    text_layer_modules,
    text_layers,
    vision_block_modules,
)
from mwa_lightning.backbones.checkpoints.file_format import State
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.fusion import FusionEncoder

PARTS = ("query", "key", "value")
_OFFICIAL = {
    "visual_encoder.cls_token": "vision_embedding.cls_token",
    "visual_encoder.pos_embed": POSITIONS,
}
_TRANSFORMERS = {
    "vision_model.embeddings.class_embedding": "vision_embedding.cls_token",
    "vision_model.embeddings.position_embedding": POSITIONS,
}
_TRANSFORMERS_PATCHES = "vision_model.embeddings.patch_embedding.weight"
# Of transformers' BlipModel: projections of its own that no released file has trained.
_DROPPED_OF_TRANSFORMERS = re.compile(r"(visual|text)_projection\.weight|logit_scale|text_model\.pooler\..+")


def blip_key_map(backbone: FusionEncoder) -> KeyMap:
    """The key map of a file for one image.

    In the form for two, both cross-attentions of a layer begin as the one of the file, as upstream (salesforce/BLIP,
    models/blip_nlvr.py, `load_checkpoint`), and the merging layers are new.
    """
    return _one_image(backbone, official_vision_modules(backbone.vision_depth), _OFFICIAL, ("text_encoder",))


def blip_pair_key_map(backbone: FusionEncoder) -> KeyMap:
    """The key map of a file for two images."""
    modules = official_vision_modules(backbone.vision_depth) | _text_modules(backbone, "text_encoder")
    for layer in range(backbone.text_layers):
        theirs, ours = f"text_encoder.encoder.layer.{layer}.crossattention", f"text_blocks.{layer}.cross_attention"
        for image in range(2):
            modules |= {f"{theirs}.self{image}.{part}": (f"{ours}.{part}.{image}",) for part in PARTS}
            modules[f"{theirs}.output.dense{image}"] = (f"{ours}.output.{image}",)
        if layer >= backbone.merge_from:
            modules[f"{theirs}.output.merge_layer"] = (f"{ours}.merge",)
    return fusion_key_map(modules=modules, tables=_OFFICIAL | _text_tables("text_encoder"))


def transformers_blip_key_map(backbone: FusionEncoder) -> KeyMap:
    """The key map of transformers' names: `BlipForImageTextRetrieval`, and `BlipModel` without its projections."""
    modules: Modules = {
        "vision_model.embeddings.patch_embedding": ("vision_embedding.projection",),
        "vision_model.post_layernorm": ("vision_norm",),
    }
    parts = ("self_attn.qkv", "self_attn.projection", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    for layer in range(backbone.vision_depth):
        modules |= vision_block_modules(f"vision_model.encoder.layers.{layer}", layer, parts)
    return _one_image(backbone, modules, _TRANSFORMERS, ("text_model", "text_encoder"))


def _one_image(
    backbone: FusionEncoder, modules: Modules, tables: dict[str, str], text_names: tuple[str, ...]
) -> KeyMap:
    repeated: list[str] = []
    merging: set[str] = set()
    for encoder in text_names:
        modules |= _text_modules(backbone, encoder)
        tables = tables | _text_tables(encoder)
        for layer in range(backbone.text_layers):
            theirs, ours = f"{encoder}.encoder.layer.{layer}.crossattention", f"text_blocks.{layer}.cross_attention"
            crossing: Modules = {
                f"{theirs}.self.{part}": tuple(f"{ours}.{part}.{image}" for image in range(backbone.images))
                for part in PARTS
            }
            crossing[f"{theirs}.output.dense"] = tuple(f"{ours}.output.{image}" for image in range(backbone.images))
            modules |= crossing
            repeated += crossing
            if backbone.pair and layer >= backbone.merge_from:
                merging |= {f"{ours}.merge.{kind}" for kind in KINDS}
    return fusion_key_map(
        modules=modules,
        repeated=repeated,
        tables=tables,
        new=[frozenset(merging)],
        dropped=(*DROPPED, _DROPPED_OF_TRANSFORMERS) if tables.keys() & _TRANSFORMERS.keys() else DROPPED,
    )


def _text_modules(backbone: FusionEncoder, encoder: str) -> Modules:
    modules: Modules = {f"{encoder}.embeddings.LayerNorm": ("text_embedding.norm",)}
    for layer in range(backbone.text_layers):
        theirs = f"{encoder}.encoder.layer.{layer}"
        modules |= text_layer_modules(theirs, [layer], "text")
        modules[f"{theirs}.crossattention.output.LayerNorm"] = (f"text_blocks.{layer}.cross_norm.text",)
    return modules


def _text_tables(encoder: str) -> dict[str, str]:
    return {
        f"{encoder}.embeddings.word_embeddings.weight": "text_embedding.tokens.weight",
        f"{encoder}.embeddings.position_embeddings.weight": "text_embedding.positions",
    }


def _has(state: State, *keys: str) -> bool:
    return all(key in state and state[key].ndim >= 2 for key in keys)


def _is_official(state: State) -> bool:
    embedded = _has(state, "visual_encoder.patch_embed.proj.weight", "text_encoder.embeddings.word_embeddings.weight")
    return embedded and text_layers(state)[0] == 0


def _is_pair(state: State) -> bool:
    return _is_official(state) and any(".crossattention.self0." in key for key in state)


def _is_transformers(state: State) -> bool:
    tokens = "embeddings.word_embeddings.weight"
    return _has(state, _TRANSFORMERS_PATCHES) and any(
        _has(state, f"{encoder}.{tokens}") for encoder in ("text_encoder", "text_model")
    )


BLIP_PAIR = fusion_format(name="BLIP (two images)", recognises=_is_pair, key_map=blip_pair_key_map, pair=True)
BLIP = fusion_format(name="BLIP", recognises=_is_official, key_map=blip_key_map)
TRANSFORMERS_BLIP = fusion_format(
    name="BLIP (transformers)",
    recognises=_is_transformers,
    key_map=transformers_blip_key_map,
    patches=_TRANSFORMERS_PATCHES,
)
