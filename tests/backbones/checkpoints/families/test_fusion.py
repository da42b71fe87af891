"""Files of BLIP and ALBEF that do not fit are refused in one line, and nothing is changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.heads import retrieval_heads
from tests.parity.plain_bert import Kind, official_state

SMALL = {
    "vision_width": 16, "vision_depth": 1, "vision_heads": 2, "vision_ffn_width": 64, "patch_size": 8, "image_size": 16,
    "text_width": 16, "text_heads": 2, "text_ffn_width": 64, "text_layers": 2, "vocabulary_size": 30,
    "text_positions": 12, "max_text_length": 8, "embedding_width": 4, "fusion_layers": 0, "encoder_token": -1,
}  # fmt: skip


def write(path: Path, kind: Kind, *, pair: bool) -> Path:
    state = official_state(
        kind, pair=pair, width=16, text_width=16, depth=1, layers=2, vocabulary=30, patch=8, grid=2, positions=12,
        embedding=4, merge_from=1,
    )  # fmt: skip
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize(
    ("file", "backbone", "said"),
    [
        (("blip", True), {}, "2 text layers that see the image from layer 0 up, for two images, but"),
        (("albef", False), {}, "2 text layers that see the image from layer 1 up, but blip is"),
        (("blip", False), {"vocabulary_size": 31}, "vocabulary 30, patches"),
        (("blip", False), {"vision_depth": 2}, "missing: visual_encoder.blocks.1."),
    ],
    ids=["two images for one", "albef for blip", "vocabulary", "depth"],
)
def test_load_backbone__refuses_what_does_not_fit(
    tmp_path: Path, file: tuple[Kind, bool], backbone: dict[str, Any], said: str
) -> None:
    ours = FusionEncoder(name="blip", **(SMALL | backbone))
    heads = retrieval_heads(ours)
    before = [parameter.clone() for parameter in ours.parameters()]
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        load_backbone(ours, heads, write(tmp_path / "model.pth", file[0], pair=file[1]))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(one, other) for one, other in zip(before, ours.parameters(), strict=True))
