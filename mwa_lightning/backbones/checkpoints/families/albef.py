"""The files of ALBEF: of the original code and LAVIS (pretraining, retrieval, NLVR2, entailment).

Pretraining files of the original code have BERT under `text_encoder.bert`, the others and those of LAVIS directly under
`text_encoder`. LAVIS leaves out the table of token types.
"""

from __future__ import annotations

import torch

from mwa_lightning.backbones.checkpoints.families.fusion import (
    POSITIONS,
    TOKEN_TYPES,
    Modules,
    fusion_format,
    fusion_key_map,
    official_vision_modules,
    text_layer_modules,
    text_layers,
)
from mwa_lightning.backbones.checkpoints.file_format import State
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.fusion import FusionEncoder

ENCODERS = ("text_encoder.bert", "text_encoder")


def albef_key_map(backbone: FusionEncoder) -> KeyMap:
    """The key map of a file for one image.

    In the form for two images, each fusion layer of the file fills two neighbours, as upstream (salesforce/ALBEF,
    Pretrain_nlvr.py).
    """
    below = backbone.text_layers
    places = {
        below + layer: [below + backbone.images * layer + image for image in range(backbone.images)]
        for layer in range(backbone.fusion_layers)
    }
    return _key_map(backbone, places)


def albef_pair_key_map(backbone: FusionEncoder) -> KeyMap:
    """The key map of a file for two images; what neighbours share, it has twice."""
    return _key_map(backbone, {layer: [layer] for layer, _ in backbone.layers("fusion")})


def _key_map(backbone: FusionEncoder, places: dict[int, list[int]]) -> KeyMap:
    """`places` leads from the number of each fusion layer in the file to those of ours that it fills."""
    modules = official_vision_modules(backbone.vision_depth)
    tables = {
        "visual_encoder.cls_token": "vision_embedding.cls_token",
        "visual_encoder.pos_embed": POSITIONS,
    }
    repeated: list[str] = []
    for encoder in ENCODERS:
        modules[f"{encoder}.embeddings.LayerNorm"] = ("text_embedding.norm",)
        tables |= {
            f"{encoder}.embeddings.word_embeddings.weight": "text_embedding.tokens.weight",
            f"{encoder}.embeddings.position_embeddings.weight": "text_embedding.positions",
            f"{encoder}.embeddings.token_type_embeddings.weight": TOKEN_TYPES,
        }
        for layer in range(backbone.text_layers):
            modules |= text_layer_modules(f"{encoder}.encoder.layer.{layer}", [layer], "text")
        for layer, ours in places.items():
            fusing = _fusion_layer_modules(backbone, f"{encoder}.encoder.layer.{layer}", ours)
            modules |= fusing
            repeated += fusing
    return fusion_key_map(modules=modules, repeated=repeated, tables=tables)


def _fusion_layer_modules(backbone: FusionEncoder, theirs: str, layers: list[int]) -> Modules:
    def each(part: str) -> tuple[str, ...]:
        return tuple(f"text_blocks.{layer}.{part}" for layer in layers)

    def shared(part: str) -> tuple[str, ...]:
        # Neighbours share these modules, which belong to the lower one.
        owners = {layer - (layer - backbone.text_layers) % backbone.images for layer in layers}
        return tuple(f"text_blocks.{layer}.{part}" for layer in sorted(owners))

    return text_layer_modules(theirs, layers, "fusion") | {
        f"{theirs}.crossattention.self.query": each("cross_attention.query.0"),
        f"{theirs}.crossattention.self.key": shared("cross_attention.key.0"),
        f"{theirs}.crossattention.self.value": shared("cross_attention.value.0"),
        f"{theirs}.crossattention.output.dense": each("cross_attention.output.0"),
        f"{theirs}.crossattention.output.LayerNorm": each("cross_norm.fusion"),
    }


def _is_albef(state: State) -> bool:
    tokens = any(f"{encoder}.embeddings.word_embeddings.weight" in state for encoder in ENCODERS)
    return tokens and "visual_encoder.patch_embed.proj.weight" in state and text_layers(state)[0] > 0


def _is_pair(state: State) -> bool:
    """Whether the two lowest fusion layers have the same keys: so do they in the form for two images only."""
    if not _is_albef(state):
        return False
    first, _ = text_layers(state)
    for encoder in ENCODERS:
        lower, upper = (
            state.get(f"{encoder}.encoder.layer.{layer}.crossattention.self.key.weight") for layer in (first, first + 1)
        )
        if lower is not None and upper is not None:
            return torch.equal(lower, upper)
    return False


ALBEF_PAIR = fusion_format(name="ALBEF (two images)", recognises=_is_pair, key_map=albef_pair_key_map, pair=True)
ALBEF = fusion_format(name="ALBEF", recognises=_is_albef, key_map=albef_key_map)
