"""The official files of BEiT-3, and safetensors with the same names.

Known are the pretrained, in-domain and image-text-contrastive files and those fine-tuned for retrieval or
NLVR2, at any resolution. Their names are torchscale's: A is vision, B is text.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints.file_format import FileFormat, State
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.checkpoints.loading import parameters_to_fill
from mwa_lightning.backbones.multiway import FIRST_POSITION, Multiway

EXPERTS = {"A": "vision", "B": "text"}
HEADS = {
    "vision_head.weight": "vision.weight",
    "language_head.weight": "text.weight",
    "logit_scale": "logit_scale",
}
REASONING_HEADS = {
    f"head.{part}.{kind}": f"{part}.{kind}"
    for part in ("norm1", "dense1", "norm2", "dense2")
    for kind in ("weight", "bias")
}
POSITIONS = "vision_embedding.positions"
_LAYER = re.compile(r"beit3\.encoder\.layers\.(\d+)\.")

# What official files have and adaptation does not need: the heads of masked modelling (pretrained, in-domain); those of
# a task that is not run are not needed either. Then what the released MultiWay-Adapter code adds to a file, which is
# read as adapter.checkpoint instead.
_DROPPED = (
    re.compile(r"m[li]m_head\.(weight|bias)"),
    re.compile(r"beit3\.encoder\.layers\.\d+\.(adaptmlp_text|adaptmlp_vision|enhancemlp)\..+"),
)


def official_state(backbone: Multiway, heads: nn.Module | None) -> dict[str, Tensor]:
    """The weights under the official names: what `load_backbone` reads back."""
    key_map = beit3_key_map(backbone.depth)
    names = {ours: official for official in key_map.names for ours in key_map.parts(official)}
    return {names[name]: parameter.detach() for name, parameter in parameters_to_fill(backbone, heads).items()}


def beit3_key_map(depth: int) -> KeyMap:
    """The key map of a BEiT-3 with `depth` layers; our names are those of the backbone, and `heads.*`."""
    names: dict[str, str | tuple[str, ...]] = {
        "beit3.text_embed.weight": "text_embedding.tokens.weight",
        "beit3.vision_embed.proj.weight": "vision_embedding.projection.weight",
        "beit3.vision_embed.proj.bias": "vision_embedding.projection.bias",
        "beit3.vision_embed.cls_token": "vision_embedding.cls_token",
        "beit3.vision_embed.mask_token": "vision_embedding.mask_token",
        "beit3.encoder.embed_positions.A.weight": POSITIONS,
        "beit3.encoder.embed_positions.B.weight": "text_embedding.positions",
    }
    modules = {f"beit3.encoder.layer_norm.{letter}": f"final_norm.{stream}" for letter, stream in EXPERTS.items()}
    for layer in range(depth):
        theirs, ours = f"beit3.encoder.layers.{layer}", f"blocks.{layer}"
        for letter, stream in EXPERTS.items():
            for part in ("query", "key", "value"):
                modules[f"{theirs}.self_attn.{part[0]}_proj.{letter}"] = f"{ours}.attention.{part}.{stream}"
            modules |= {
                f"{theirs}.self_attn.out_proj.{letter}": f"{ours}.attention.output.{stream}",
                f"{theirs}.self_attn.inner_attn_ln.{letter}": f"{ours}.attention.inner_norm.{stream}",
                f"{theirs}.self_attn_layer_norm.{letter}": f"{ours}.attention_norm.{stream}",
                f"{theirs}.final_layer_norm.{letter}": f"{ours}.ffn_norm.{stream}",
                f"{theirs}.ffn.{letter}.fc1": f"{ours}.ffn.{stream}.up",
                f"{theirs}.ffn.{letter}.ffn_layernorm": f"{ours}.ffn.{stream}.inner_norm",
                f"{theirs}.ffn.{letter}.fc2": f"{ours}.ffn.{stream}.down",
            }
    names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    names |= {theirs: f"heads.{ours}" for theirs, ours in (HEADS | REASONING_HEADS).items()}
    return KeyMap(
        names=names,
        dropped=_DROPPED,
        optional=[frozenset(f"heads.{name}" for name in HEADS.values())],
        task_shaped=[frozenset(f"heads.{name}" for name in REASONING_HEADS.values())],
    )


def _is_beit3(state: State) -> bool:
    tokens, patches = state.get("beit3.text_embed.weight"), state.get("beit3.vision_embed.proj.weight")
    if tokens is None or patches is None or not any(_LAYER.match(key) for key in state):
        return False
    return tokens.ndim == 2 and patches.ndim == 4


def _sizes_of_file(state: State) -> str:
    tokens, patches = state["beit3.text_embed.weight"], state["beit3.vision_embed.proj.weight"]
    depth = 1 + max(int(found[1]) for key in state if (found := _LAYER.match(key)))
    return _sizes(tokens.shape[1], depth, tokens.shape[0], patches.shape[-1])


def _sizes_of_backbone(backbone: Multiway) -> str:
    return _sizes(backbone.width, backbone.depth, backbone.vocabulary_size, backbone.patch_size)


def _sizes(width: int, depth: int, vocabulary: int, patch: int) -> str:
    return f"width {width}, depth {depth}, vocabulary {vocabulary}, patches of {patch} px"


BEIT3 = FileFormat(
    name="BEiT-3",
    anchor="beit3.vision_embed.proj.weight",
    recognises=_is_beit3,
    sizes=_sizes_of_file,
    backbone_sizes=_sizes_of_backbone,
    key_map=lambda backbone: beit3_key_map(backbone.depth),
    positions={POSITIONS: FIRST_POSITION + 1},
)
