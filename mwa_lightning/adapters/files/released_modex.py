"""Adapters trained with the released ModeX code (zhangy0822/ModeX), under our names.

There one object holds all adapters of layer i, those of the vision and of the text layer of that number, and every
module that calls it has it as a part: a file holds each tensor up to five times, and again in momentum copies. The
copies must be equal; of the momentum copies none is read. Such a file is a whole model, so it also has what else was
trained: norms, temperature, classifier, merge layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.checkpoints import map_part
from mwa_lightning.errors import CheckpointError, shorten

State = Mapping[str, Tensor]

_ADAPTER = re.compile(
    r"(visual_encoder\.blocks\.\d+|text_encoder\.encoder\.layer\.\d+(\.(attention\.|crossattention\.)?output)?)"
    r"\.modex\.(?P<module>\w+)\.(?P<part>\w+)\.(?P<kind>weight|bias)"
)
_LAYER = re.compile(r"\.(\d+)\.")
_MOMENTUM = re.compile(r"\w+_m\.")

_EXPERT = {"D_fc1": "bottleneck.down", "D_fc2": "bottleneck.up"}
_COORDINATED = {
    "down_proj": "down",
    "up_proj": "ups.text",
    "visual_up_proj": "ups.vision",
    "multi_up_proj": "ups.cross",
    "expert_weights": "coordinator",
}
# Of each module: whose it is here, and the names of its parts. A text layer with cross-attention is a fusion layer.
_MODULES = {
    "visual_msa": ("experts.vision_{layer}_self_attn", _EXPERT),
    "visual_ffn": ("experts.vision_{layer}_ffn", _EXPERT),
    "textual_msa": ("experts.{stream}_{layer}_self_attn", _EXPERT),
    "textual_ffn": ("experts.text_{layer}_ffn", _EXPERT),
    "cross_msa": ("coordinated.fusion_{layer}_cross_attn", _COORDINATED),
    "cross_ffn": ("coordinated.fusion_{layer}_ffn", _COORDINATED),
}


def holds_modex(state: State) -> bool:
    """Whether a file is one of the released ModeX code."""
    return any(".modex." in key for key in state)


def modex_adapter(state: State, *, origin: str | Path) -> dict[str, Tensor]:
    """The adapters of a file as `adapter.*`.

    Raises CheckpointError, which names the keys, if copies of a module differ, or the file has modules that ModeX's
    variant for ALBEF and BLIP lacks (those of decoders).
    """
    keys = [key for key in state if ".modex." in key and not _MOMENTUM.match(key)]
    fusion_layers = {_layer(key) for key in keys if ".modex.cross_msa." in key}
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    unequal: list[str] = []
    for key in keys:
        name = _our_name(key, fusion_layers)
        if name is None:
            unknown.append(key)
        elif name in found and not torch.equal(found[name], state[key]):
            unequal.append(key)
        else:
            found[name] = state[key]
    if unknown:
        raise CheckpointError(
            f"{origin}: has parts that adapter.variant=released lacks ({shorten(unknown)}); give a file of retrieval, "
            "NLVR2 or entailment"
        )
    if unequal:
        raise CheckpointError(
            f"{origin}: holds copies of one adapter that differ ({shorten(unequal)}); give the file as it was saved"
        )
    return found


def modex_trained(
    state: State, backbone: Backbone, wanted: Mapping[str, torch.Size], *, origin: str | Path
) -> dict[str, Tensor]:
    """All that a file has of the parameters `wanted` (names in the whole model): adapters, norms, heads, merge layers.

    Raises CheckpointError if the file is not of this backbone or lacks what it needs.
    """
    rest = {key: tensor for key, tensor in state.items() if ".modex." not in key}
    shapes = {name.removeprefix("backbone."): size for name, size in wanted.items() if not name.startswith("adapter.")}
    mapped = map_part(backbone, rest, shapes, origin=str(origin))
    ours = {name if name.startswith("heads.") else f"backbone.{name}": tensor for name, tensor in mapped.items()}
    return modex_adapter(state, origin=origin) | ours


def modex_options(state: State, *, origin: str | Path) -> dict[str, int | str]:
    """The arguments of `ModeX` that fit a file; the temperature is not in it."""
    downs = [tensor for name, tensor in modex_adapter(state, origin=origin).items() if name.endswith("down.weight")]
    return {"variant": "released", "mid_dim": downs[0].shape[0]}


def _layer(key: str) -> int:
    found = _LAYER.search(key)
    assert found is not None
    return int(found[1])


def _our_name(key: str, fusion_layers: set[int]) -> str | None:
    """Our name of an adapter's key, or None if it is not known."""
    matched = _ADAPTER.fullmatch(key)
    if matched is None or matched["module"] not in _MODULES:
        return None
    owner, parts = _MODULES[matched["module"]]
    if matched["part"] not in parts:
        return None
    layer = _layer(key)
    module = owner.format(layer=layer, stream="fusion" if layer in fusion_layers else "text")
    return f"adapter.{module}.{parts[matched['part']]}.{matched['kind']}"
