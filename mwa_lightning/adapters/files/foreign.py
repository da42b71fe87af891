"""What a file is that is given as an adapter and is none, told from the names of its tensors; and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mwa_lightning.errors import shorten

RELEASED_MODEX = re.compile(r"(^|\.)modex\.")
RELEASED_MWA = re.compile(r"(^|\.)(adaptmlp_text|adaptmlp_vision|enhancemlp)\.")

_TRAIN = "train one with adapter=mwa or modex"
_WHOLE = "the weights of a whole model ({}) without an adapter: give it as backbone.checkpoint"
# What a name holds, and what the file is then. The first that fits counts.
_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)(unet|down_blocks|up_blocks|transformer_blocks)\.|(^|\.)lora_(unet|te\d?)_",
        f"a LoRA of a diffusion model (diffusers, kohya), and these backbones are none; {_TRAIN}",
    ),
    (
        r"^base_model\.model\.|(^|[._])(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_w|ia3_l|vera_)",
        f"an adapter of PEFT, which is not read here; {_TRAIN}, or merge it into its model "
        "(PEFT's merge_and_unload, then save_pretrained) and give that folder as backbone.checkpoint",
    ),
    (r"(^|[._])lora[._](up|down)|\.alpha$", f"a LoRA of another library, which is not read here; {_TRAIN}"),
    (r"^model\.(adapter|heads)\.", "a checkpoint of a run; give the adapter.safetensors of its run directory"),
    (r"^(optimizer|exp_avg|state\.\d+)\b", "the state of an optimizer; give the adapter.safetensors of the run"),
    (r"(^|\.)beit3\.", _WHOLE.format("BEiT-3")),
    (r"(^|\.)(visual_encoder|text_encoder)\.", _WHOLE.format("BLIP or ALBEF")),
    (
        r"(^|\.)(vision_model|text_model|text_decoder)\.",
        _WHOLE.format("CLIP, SigLIP or BLIP of transformers"),
    ),
    (r"(^|\.)(visual|transformer\.resblocks|token_embedding)\b", _WHOLE.format("CLIP or SigLIP of OpenCLIP")),
    (
        r"^(adapter|heads|backbone)\.",
        "an adapter of this package without the metadata that this version writes; give the file as it was saved",
    ),
)
_PATTERNS = tuple((re.compile(pattern), what) for pattern, what in _KINDS)


def is_released(names: Iterable[str]) -> bool:
    """Whether a file is one of the authors' code of MultiWay-Adapter or ModeX."""
    return any(RELEASED_MODEX.search(name) or RELEASED_MWA.search(name) for name in names)


def described_as(names: Iterable[str]) -> str:
    """What a file with these tensors is, and what to do."""
    names = list(names)
    for pattern, what in _PATTERNS:
        if any(pattern.search(name) for name in names):
            return what
    holds = shorten(names, 3) or "nothing"
    return (
        f"not an adapter file: it holds {holds}. Give the adapter.safetensors of a run directory, or a .pth of the "
        "released code of MultiWay-Adapter or ModeX"
    )
