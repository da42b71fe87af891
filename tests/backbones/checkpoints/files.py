"""Files of every kind that is read, made of a model of ours: the key maps, the other way round."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.checkpoints import FORMATS
from mwa_lightning.backbones.checkpoints.file_format import FileFormat
from mwa_lightning.backbones.checkpoints.loading import parameters_to_fill
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.tasks.heads import retrieval_heads

VISION = {"vision_width": 8, "vision_depth": 2, "vision_heads": 2, "vision_ffn_width": 12}
TEXT = {"text_width": 6, "text_depth": 1, "text_heads": 2, "text_ffn_width": 10}
SMALL = {
    "patch_size": 4, "image_size": 8, "vocabulary_size": 30, "text_positions": 9, "max_text_length": 9,
}  # fmt: skip
DUAL = VISION | TEXT | SMALL
PLAIN = ("image_mean", "image_std")


def make(kind: str) -> tuple[Backbone, nn.Module]:
    """A small model: clip, siglip, beit3, blip or albef, with the heads of retrieval, drawn at random."""
    backbone: Backbone
    if kind in ("clip", "siglip"):
        backbone = DualEncoder(
            name=kind,
            form=kind,  # type: ignore[arg-type]
            activation="gelu",
            norm_epsilon=1e-5,
            embedding_width=8 if kind == "siglip" else 5,
            **DUAL,  # type: ignore[arg-type]
        )
    elif kind == "beit3":
        backbone = Multiway(name=kind, width=8, depth=2, heads=2, ffn_width=12, **SMALL | {"max_text_length": 7})
    else:
        layers = {"text_layers": 1, "fusion_layers": 1} if kind == "albef" else {"text_layers": 2, "fusion_layers": 0}
        text = {key: value for key, value in TEXT.items() if key != "text_depth"}
        backbone = FusionEncoder(name=kind, embedding_width=5, merge_from=0, **VISION, **text, **layers, **SMALL)  # type: ignore[arg-type]
    heads = retrieval_heads(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *heads.parameters()):
            parameter.normal_()
    return backbone, heads


def as_file(form: FileFormat, backbone: Backbone, heads: nn.Module) -> dict[str, Tensor]:
    """The model by the names of a kind of file."""
    ours = {name: parameter.detach() for name, parameter in parameters_to_fill(backbone, heads).items()}
    key_map = form.key_map(backbone)
    state = {}
    for key in key_map.names:
        parts = [ours[name] for name in key_map.parts(key) if name in ours]
        if not parts:
            continue
        whole = parts[0] if key in key_map.repeated else torch.cat(parts) if len(parts) > 1 else parts[0]
        if key in key_map.transposed:
            whole = whole.T
        if key in key_map.converted:
            whole = (-whole).exp() if key == "temp" else whole[None]
        state[key] = whole.contiguous().clone()
    return state


KINDS: dict[str, tuple[str, FileFormat]] = {
    f"{kind}-{form.name}-{number}": (kind, form)
    for family, kinds in {"multiway": ["beit3"], "fusion": ["blip", "albef"], "dual": ["clip", "siglip"]}.items()
    for number, form in enumerate(FORMATS[family])  # type: ignore[index]
    for kind in kinds
    if kind in form.name.lower().replace("-", "").replace("openclip's ", "") and "two images" not in form.name
}


def family_of(kind: str) -> Family:
    """The family of a small model."""
    families: dict[str, Family] = {"beit3": "multiway", "blip": "fusion", "albef": "fusion"}
    return families.get(kind, "dual")
