"""BEiT-3's NLVR2 form, read from an official file, against a plain head over torchscale's encoder, to 1e-5 in fp32.

The head is written anew from microsoft/unilm beit3 (`BEiT3ForVisualReasoning`): two fused passes with the same
statement, [CLS of image a, `<s>` beside a, CLS of image b, `<s>` beside b], norm, linear, norm, GELU, linear. The
encoder below it is torchscale 0.2.0. Every tensor is drawn at random; that each counts is shown by altering one after
the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.tasks.model import ReasoningModel
from mwa_lightning.tasks.reasoning_heads import StatementShape, reasoning_heads

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
SMALL = {"width": 64, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32, "vocabulary_size": 90}
BASE = {"width": 768, "depth": 2, "heads": 12, "patch_size": 16, "image_size": 64, "vocabulary_size": 1000}
PAIR = StatementShape(images=2, classes=("False", "True"))


class Reference(nn.Module):
    """The official form, named as in the official file."""

    def __init__(self, beit3: nn.Module, width: int) -> None:
        super().__init__()
        self.beit3 = beit3
        self.head = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(4 * width),
                "dense1": nn.Linear(4 * width, 2 * width),
                "norm2": nn.LayerNorm(2 * width),
                "dense2": nn.Linear(2 * width, 2),
            }
        )

    def forward(self, first: Tensor, second: Tensor, ids: Tensor, padding: Tensor) -> Tensor:
        tokens = []
        for images in (first, second):
            out = self.beit3(visual_tokens=images, textual_tokens=ids, text_padding_position=padding)
            sequence, text_begins = out["encoder_out"], out["multiway_split_position"]
            tokens += [sequence[:, 0], sequence[:, text_begins]]
        hidden = self.head["dense1"](self.head["norm1"](torch.cat(tokens, dim=1)))
        return self.head["dense2"](nn.functional.gelu(self.head["norm2"](hidden)))


def make_inputs(sizes: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(6, 2, 3, sizes["image_size"], sizes["image_size"], generator=generator)
    ids = torch.randint(sizes["vocabulary_size"], (6, 12), generator=generator)
    return images, ids, torch.arange(12) < torch.tensor([12, 7, 1, 9, 3, 5])[:, None]


def both(
    make_reference: Callable[..., nn.Module], randomize: Callable[..., None], sizes: dict[str, Any], path: Path
) -> tuple[Reference, ReasoningModel]:
    """The reference, and ours read from the file that it is saved to."""
    reference = Reference(make_reference(**sizes), sizes["width"]).eval()
    randomize(reference, width=sizes["width"], seed=11)
    torch.save({"model": reference.state_dict(), "args": argparse.Namespace(lr=7e-4)}, path)
    backbone = Multiway(name="parity", ffn_width=4 * sizes["width"], **sizes)
    heads = reasoning_heads(backbone, PAIR)
    report = load_backbone(backbone, heads, path)
    assert (report.dropped, report.new) == ((), ())
    return reference, ReasoningModel(backbone=backbone, adapter=NoAdapter(), heads=heads).eval()


@pytest.mark.parametrize("sizes", [pytest.param(SMALL, id="small"), pytest.param(BASE, id="base_width")])
def test_logits__equal_the_official_form(
    tmp_path: Path,
    make_reference: Callable[..., nn.Module],
    randomize: Callable[..., None],
    relative_error: Callable[[Tensor, Tensor], float],
    sizes: dict[str, int],
) -> None:
    reference, ours = both(make_reference, randomize, sizes, tmp_path / "nlvr2.pth")
    images, ids, mask = make_inputs(sizes)
    with torch.no_grad():
        expected = reference(images[:, 0], images[:, 1], ids, ~mask)
        found = ours(images, ids, mask)
        swapped = ours(images.flip(1), ids, mask)
    assert relative_error(found, expected) < TOLERANCE
    assert relative_error(swapped, expected) > 1000 * TOLERANCE


def test_logits__depend_on_every_tensor_of_the_head_and_the_encoder(
    tmp_path: Path,
    make_reference: Callable[..., nn.Module],
    randomize: Callable[..., None],
    relative_error: Callable[[Tensor, Tensor], float],
) -> None:
    reference, ours = both(make_reference, randomize, SMALL, tmp_path / "nlvr2.pth")
    images, ids, mask = make_inputs(SMALL)
    generator = torch.Generator().manual_seed(9)
    unnoticed = []
    with torch.no_grad():
        expected = reference(images[:, 0], images[:, 1], ids, ~mask)
        for name, parameter in ours.named_parameters():
            kept = parameter.detach().clone()
            # An alteration of a hundredth of what a tensor holds.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.002)
            if relative_error(ours(images, ids, mask), expected) < 5 * TOLERANCE:
                unnoticed.append(name)
            parameter.copy_(kept)
    # Only masked image modelling reaches the mask token. A change of all keys by the same vector shifts the logits of
    # each query alike, so no attention sees it, but a fused pass has two kinds of keys and sees the difference.
    assert unnoticed == ["backbone.vision_embedding.mask_token"]
