"""Heads for statements: what they read of a backbone, in which order, and at which size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.blocks import Block
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.reasoning_heads import (
    DualReasoningHeads,
    MultiwayReasoningHeads,
    ReasoningHeads,
    StatementShape,
    reasoning_heads,
)

WIDTH = 16
PAIR = StatementShape(images=2, classes=("False", "True"))
SINGLE = StatementShape(images=1, classes=("a", "b", "c"))


@pytest.fixture
def backbone() -> Multiway:
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "depth": 2, "heads": 2, "ffn_width": 32, "patch_size": 8, "image_size": 16}
    return Multiway(name="test", vocabulary_size=40, **sizes).eval()


class Words(Backbone):
    """Stands for an encoder of another family: tokens are means of colours, and embedded ids."""

    family: ClassVar[Family] = "dual"
    streams: tuple[Stream, ...] = ("vision", "text")

    def __init__(self) -> None:
        sizes = {"patch_size": 8, "image_size": 16, "vocabulary_size": 40, "max_text_length": 8}
        sizes["text_positions"] = 8
        super().__init__(name="words", image_mean=(0.5,) * 3, image_std=(0.5,) * 3, **sizes)
        self.width = WIDTH
        self.vision = nn.Linear(3, WIDTH)
        self.text = nn.Embedding(40, WIDTH)

    def layers(self, stream: Stream) -> Sequence[tuple[int, Block]]:
        return []

    def layers_above(self, parameter_name: str) -> int:
        return 0

    def encode_image(self, images: Tensor) -> Tensor:
        return self.vision(self.normalize(images).mean(dim=(2, 3))).unsqueeze(1)

    def encode_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.text(ids)


def inputs(samples: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (samples, images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    ids = torch.randint(3, 40, (samples, 5), generator=generator)
    return pictures, ids, torch.arange(5) < torch.tensor([5, 3, 4])[:samples, None]


def randomized(heads: ReasoningHeads) -> ReasoningHeads:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return heads.eval()


def test_multiway__reads_image_and_text_of_each_pass_in_turn(backbone: Multiway) -> None:
    heads = randomized(MultiwayReasoningHeads(width=WIDTH, shape=PAIR))
    images, ids, mask = inputs(3, 2)
    logits = heads(backbone, images, ids, mask)
    for row in range(3):
        length = int(mask[row].sum())
        tokens = []
        for side in range(2):
            vision, text = backbone.fuse(images[row, side][None], ids[row, :length][None], None)
            tokens += [vision[0, 0], text[0, 0]]
        joined = torch.cat(tokens)
        assert joined.shape == heads.norm1.weight.shape
        hidden = heads.norm2(heads.dense1(heads.norm1(joined)))
        assert torch.allclose(logits[row], heads.dense2(functional.gelu(hidden)), atol=1e-5)
    assert not torch.allclose(heads(backbone, images.flip(1), ids, mask), logits, atol=1e-3)


@pytest.mark.parametrize("shape", [SINGLE, PAIR, StatementShape(images=3, classes=("x", "y"))])
def test_heads__any_number_of_images_and_classes(backbone: Multiway, shape: StatementShape) -> None:
    dual = DualReasoningHeads(embedding=RetrievalHeads(width=WIDTH), shape=shape)
    for model, heads in ((backbone, reasoning_heads(backbone, shape)), (Words(), dual)):
        logits = randomized(heads)(model, *inputs(3, shape.images))
        assert logits.shape == (3, len(shape.classes))
        assert (logits.std(dim=0) > 1e-3).all()


def test_multiway__is_drawn_as_officially(backbone: Multiway) -> None:
    heads = MultiwayReasoningHeads(width=WIDTH, shape=PAIR)
    shapes = {name: tuple(parameter.shape) for name, parameter in heads.named_parameters()}
    assert shapes == {
        "norm1.weight": (64,), "norm1.bias": (64,), "dense1.weight": (32, 64), "dense1.bias": (32,),
        "norm2.weight": (32,), "norm2.bias": (32,), "dense2.weight": (2, 32), "dense2.bias": (2,),
    }  # fmt: skip
    for layer in (heads.dense1, heads.dense2):
        assert 0 < layer.weight.abs().max() <= 2e-5
        assert not layer.bias.any()


def test_multiway__empty_batch_has_gradients_of_zero(backbone: Multiway) -> None:
    heads = MultiwayReasoningHeads(width=WIDTH, shape=PAIR)
    heads(backbone, *inputs(0, 2)).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in heads.parameters())


def test_dual__reads_embeddings_and_products() -> None:
    words = Words()
    heads = randomized(DualReasoningHeads(embedding=RetrievalHeads(width=WIDTH), shape=PAIR))
    images, ids, mask = inputs(3, 2)
    first, second = (heads.embedding.embed_image(words.encode_image(images[:, side])) for side in range(2))
    text = heads.embedding.embed_text(words.encode_text(ids, mask), mask)
    joined = torch.cat([first, second, text, first * text, second * text], dim=1)
    hidden = functional.gelu(heads.norm2(heads.dense1(heads.norm1(joined))))
    assert torch.allclose(heads(words, images, ids, mask), heads.dense2(hidden), atol=1e-5)


def test_dual__the_scale_of_retrieval_is_not_used() -> None:
    heads = DualReasoningHeads(embedding=RetrievalHeads(width=WIDTH), shape=PAIR)
    assert heads.pretrained is heads.embedding
    heads(Words(), *inputs(3, 2)).sum().backward()
    without = {name for name, parameter in heads.named_parameters() if parameter.grad is None}
    assert without == {"embedding.logit_scale"}
    assert [id(parameter) for parameter in heads.unused] == [id(heads.embedding.logit_scale)]


def test_reasoning_heads__family_without_any() -> None:
    class Other(Words):
        family: ClassVar[Family] = "other"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"backbone=words: there is no head for statements .*task=retrieval"):
        reasoning_heads(Other(), PAIR)


def fusion_encoder(*, fusion_layers: int, pair: bool) -> FusionEncoder:
    torch.manual_seed(3)
    return FusionEncoder(
        name="fused", vision_width=WIDTH, vision_depth=1, vision_heads=2, vision_ffn_width=32, patch_size=8,
        image_size=16, text_width=24, text_heads=2, text_ffn_width=32, text_layers=2, fusion_layers=fusion_layers,
        vocabulary_size=40, merge_from=1, pair=pair,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("fusion_layers", [0, 1])
@pytest.mark.parametrize("shape", [SINGLE, PAIR])
def test_fusion__one_text_pass_sees_all_images(fusion_layers: int, shape: StatementShape) -> None:
    backbone = fusion_encoder(fusion_layers=fusion_layers, pair=shape.images == 2)
    heads = randomized(reasoning_heads(backbone, shape))
    assert heads.streams == (("vision", "text", "fusion") if fusion_layers else ("vision", "fusion"))
    images, ids, mask = inputs(3, shape.images)
    logits = heads(backbone, images, ids, mask)
    seen = [backbone.encode_image(images[:, side]) for side in range(shape.images)]
    hidden = functional.relu(heads.hidden(backbone.fuse(seen, ids, mask)[:, 0]))
    assert torch.allclose(logits, heads.output(hidden), atol=1e-5)
    heads(backbone, images, ids, mask).sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


@pytest.mark.parametrize(
    ("pair", "images", "said"),
    [(False, 2, "set backbone.pair=true"), (True, 1, "set backbone.pair=false"), (False, 3, "it can see one or two")],
)
def test_fusion__number_of_images_of_another_form(pair: bool, images: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reasoning_heads(fusion_encoder(fusion_layers=1, pair=pair), SINGLE._replace(images=images))
