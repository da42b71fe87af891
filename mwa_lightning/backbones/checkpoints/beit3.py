"""The official files of BEiT-3, and safetensors with the same names.

Known are the pretrained, in-domain and image-text-contrastive files and those fine-tuned for retrieval or
NLVR2, at any resolution. Their names are torchscale's: A is vision, B is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints.fingerprint import fingerprint
from mwa_lightning.backbones.checkpoints.key_map import KeyMap, apply_key_map
from mwa_lightning.backbones.checkpoints.reading import read_state
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.positions import grid_of, interpolate_positions
from mwa_lightning.errors import CheckpointError, shorten

EXPERTS = {"A": "vision", "B": "text"}
HEADS = {
    "vision_head.weight": "vision.weight",
    "language_head.weight": "text.weight",
    "logit_scale": "logit_scale",
}
POSITIONS = "vision_embedding.positions"

# What official files have and adaptation does not need: the heads of masked modelling (pretrained, in-domain)
# and of NLVR2. Then what the released MultiWay-Adapter code adds to a file, which is read as
# adapter.checkpoint instead.
_DROPPED = (
    re.compile(r"m[li]m_head\.(weight|bias)"),
    re.compile(r"head\.(norm1|dense1|norm2|dense2)\.(weight|bias)"),
    re.compile(r"beit3\.encoder\.layers\.\d+\.(adaptmlp_text|adaptmlp_vision|enhancemlp)\..+"),
)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a checkpoint: the file's keys used and dropped, our parameters that stay as initialised.

    `interpolated` is the side of the grid of positions before and after, or None where it stayed.
    """

    origin: str
    used: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    interpolated: tuple[int, int] | None
    fingerprint: str

    def __str__(self) -> str:
        parts = [f"{self.origin}: {len(self.used)} tensors"]
        if self.interpolated is not None:
            before, after = self.interpolated
            parts.append(f"positions interpolated from {before}x{before} to {after}x{after}")
        if self.dropped:
            parts.append(f"not needed: {shorten(self.dropped)}")
        if self.new:
            parts.append(f"not in the file, freshly drawn: {shorten(self.new)}")
        return "; ".join(parts)


def load_backbone(backbone: Multiway, heads: nn.Module | None, reference: str | Path) -> LoadReport:
    """Fill a backbone, and retrieval heads where there are any, from a file; sets the backbone's fingerprint.

    The vision positions are interpolated to the backbone's resolution, and every tensor is cast to the type
    of the parameter (official pretrained files are fp16). Heads that the file does not have stay as they are
    and are named in the report. Raises CheckpointError, with the model unchanged, if the file cannot be read,
    is of another model or width, or its keys do not fit.
    """
    state = read_state(reference)
    origin = str(reference)
    _check_sizes(state, backbone, origin)
    targets = _parameters(backbone, heads)
    shapes: dict[str, torch.Size | None] = {name: parameter.shape for name, parameter in targets.items()}
    shapes[POSITIONS] = None
    key_map = beit3_key_map(backbone.depth)
    mapped = apply_key_map(state, key_map, shapes, origin=origin)

    frozen = {name: tensor for name, tensor in mapped.tensors.items() if not name.startswith("heads.")}
    identity = fingerprint(frozen)
    table = mapped.tensors[POSITIONS]
    try:
        before, after = grid_of(table), grid_of(targets[POSITIONS])
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    mapped.tensors[POSITIONS] = interpolate_positions(table, after)
    with torch.no_grad():
        for name, tensor in mapped.tensors.items():
            targets[name].copy_(tensor)
    backbone.fingerprint = identity
    return LoadReport(
        origin=origin,
        used=tuple(key for key in state if key not in mapped.dropped),
        dropped=tuple(mapped.dropped),
        new=tuple(mapped.new),
        interpolated=None if before == after else (before, after),
        fingerprint=identity,
    )


def official_state(backbone: Multiway, heads: nn.Module | None) -> dict[str, Tensor]:
    """The weights under the official names: what `load_backbone` reads back."""
    names = {ours: official for official, ours in beit3_key_map(backbone.depth).names.items()}
    return {names[name]: parameter.detach() for name, parameter in _parameters(backbone, heads).items()}


def beit3_key_map(depth: int) -> KeyMap:
    """The key map of a BEiT-3 with `depth` layers; our names are those of the backbone, and `heads.*`."""
    names = {
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
    names |= {theirs: f"heads.{ours}" for theirs, ours in HEADS.items()}
    return KeyMap(names=names, dropped=_DROPPED, optional=[frozenset(f"heads.{name}" for name in HEADS.values())])


def _parameters(backbone: Multiway, heads: nn.Module | None) -> dict[str, nn.Parameter]:
    """All parameters to fill, the heads' as `heads.*`."""
    parameters = dict(backbone.named_parameters())
    if heads is not None:
        parameters |= {f"heads.{name}": parameter for name, parameter in heads.named_parameters()}
    return parameters


def _check_sizes(state: Mapping[str, Tensor], backbone: Multiway, origin: str) -> None:
    """Raise CheckpointError if the file is no BEiT-3, or one of other sizes: said before any list of keys."""
    layers = {int(found[1]) for key in state if (found := re.match(r"beit3\.encoder\.layers\.(\d+)\.", key))}
    tokens = state.get("beit3.text_embed.weight")
    patches = state.get("beit3.vision_embed.proj.weight")
    if not layers or tokens is None or patches is None or tokens.ndim != 2 or patches.ndim != 4:
        hint = ""
        if any("adaptmlp" in key or "enhancemlp" in key or key.startswith("adapter.") for key in state):
            hint = "adapter tensors belong to adapter.checkpoint; "
        raise CheckpointError(
            f"{origin}: not a BEiT-3 checkpoint of images and texts (it has {shorten(state, 3)}); {hint}give "
            f"an official file of {backbone.name}"
        )
    ours = backbone.vision_embedding.projection.weight
    found_sizes = _sizes(tokens.shape[1], 1 + max(layers), tokens.shape[0], patches.shape[-1])
    sizes = _sizes(backbone.width, backbone.depth, backbone.vocabulary_size, ours.shape[-1])
    if found_sizes != sizes:
        raise CheckpointError(
            f"{origin}: has {found_sizes}, but {backbone.name} is configured with {sizes}; give a checkpoint "
            f"of {backbone.name}, or choose the backbone of this one"
        )


def _sizes(width: int, depth: int, vocabulary: int, patch: int) -> str:
    return f"width {width}, depth {depth}, vocabulary {vocabulary}, patches of {patch} px"
