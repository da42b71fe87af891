"""What all methods have in common."""

from __future__ import annotations

import pytest

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.model import RetrievalModel

TOKENS, POSITIONS = "backbone.text_embedding.tokens.weight", "backbone.text_embedding.positions"


def trained(adapter: AdapterMethod) -> set[str]:
    backbone = Multiway(
        name="tiny",
        width=8,
        depth=2,
        heads=2,
        ffn_width=16,
        patch_size=8,
        image_size=16,
        vocabulary_size=20,
        text_positions=10,
        max_text_length=8,
    )
    model = RetrievalModel(backbone=backbone, adapter=adapter, heads=retrieval_heads(backbone))
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("method", [MultiWayAdapter, ModeX, HeadOnly])
def test_modules_to_save__train_and_nothing_else_does_besides(method: type[AdapterMethod]) -> None:
    assert trained(method(modules_to_save=["tokens"])) == trained(method()) | {TOKENS}
    assert trained(method(modules_to_save=["text_embedding"])) == trained(method()) | {TOKENS, POSITIONS}


def test_modules_to_save__a_part_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"adapter.modules_to_save=embed_tokens: tiny has no part of this name"):
        trained(HeadOnly(modules_to_save=["embed_tokens"]))
