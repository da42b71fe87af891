"""Adapters trained with the released MultiWay-Adapter code (longkukuhi/MultiWay-Adapter), under our names.

There the two New Knowledge Extractors are named the wrong way round: `adaptmlp_text` runs on images,
`adaptmlp_vision` on texts. The enhancer is a full feed-forward network (`adapter.enhancer=ffn`). The scale of
the extractors is not in the file: it comes from the configuration. On images and on texts the outputs are
those of the released code; on fused input its extractors did not run, ours do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mwa_lightning.adapters.files.foreign import described_as
from mwa_lightning.backbones.checkpoints.families.beit3 import HEADS
from mwa_lightning.backbones.checkpoints.reading import read_state
from mwa_lightning.errors import CheckpointError, shorten

_ADAPTER = re.compile(r"beit3\.encoder\.layers\.(\d+)\.(adaptmlp_text|adaptmlp_vision|enhancemlp)\.(.+)")
_EXTRACTORS = {"adaptmlp_text": "vision", "adaptmlp_vision": "text"}
_EXTRACTOR_PARTS = {"down_proj": "down", "up_proj": "up"}
_ENHANCER_PARTS = {"fc1": "up", "fc2": "down", "ffn_layernorm": "inner_norm"}


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Read an adapter of the released code: `adapter.*`, and `heads.*` where the file has them.

    A full checkpoint will do: what it holds besides (`beit3.*`) is the frozen backbone, which is not read
    from here. Raises CheckpointError if the file cannot be read, holds no adapter, or one with parts that
    ours lacks (a norm of the adapter's own, a learned scale), or is of another task than retrieval.
    """
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    foreign: list[str] = []
    state = read_state(path)
    for key, tensor in state.items():
        name = _our_name(key)
        if name is not None:
            found[name] = tensor
        elif _ADAPTER.fullmatch(key):
            unknown.append(key)
        elif not key.startswith("beit3."):
            foreign.append(key)
    if not any(name.startswith("adapter.") for name in found):
        raise CheckpointError(f"{path}: {described_as(state)}")
    if unknown:
        raise CheckpointError(
            f"{path}: has parts that this MultiWay-Adapter lacks ({shorten(unknown)}); give a file "
            "trained without norms (--ffn_adapter_layernorm_option none) or a learned scale in the adapter"
        )
    if foreign:
        raise CheckpointError(
            f"{path}: has weights besides those of BEiT-3, its adapter and the heads of retrieval ({shorten(foreign)}"
            "); give a file trained for retrieval"
        )
    return found


def released_options(state: Mapping[str, Tensor]) -> dict[str, int | bool | str]:
    """The arguments of `MultiWayAdapter` that fit what `read_released` gave; the scale is not in a file."""
    downs = {
        stream: [
            tensor for name, tensor in state.items() if re.search(rf"\.{stream}_\d+\.bottleneck\.down\.weight$", name)
        ]
        for stream in _EXTRACTORS.values()
    }
    options: dict[str, int | bool | str] = {
        "extractor_vision": bool(downs["vision"]),
        "extractor_text": bool(downs["text"]),
        "enhancer": "ffn" if any(".enhancers." in name for name in state) else "none",
    }
    for tensor in downs["vision"] + downs["text"]:
        options["mid_dim"] = tensor.shape[0]
    return options


def _our_name(key: str) -> str | None:
    """Our name of a key, or None for one that is not of the adapter or the heads."""
    if key in HEADS:
        return f"heads.{HEADS[key]}"
    matched = _ADAPTER.fullmatch(key)
    if matched is None:
        return None
    layer, module, rest = matched.groups()
    part, _, kind = rest.partition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in _EXTRACTORS and part in _EXTRACTOR_PARTS:
        return f"adapter.extractors.{_EXTRACTORS[module]}_{layer}.bottleneck.{_EXTRACTOR_PARTS[part]}.{kind}"
    if module == "enhancemlp" and part in _ENHANCER_PARTS:
        return f"adapter.enhancers.{layer}.inner.{_ENHANCER_PARTS[part]}.{kind}"
    return None
