"""A very small model for the tests of the tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel


@pytest.fixture
def make_model() -> Callable[..., RetrievalModel]:
    """Makes a model of width 16 with two layers around an adapter."""

    def make(adapter: AdapterMethod, *, drop_path: float = 0.0) -> RetrievalModel:
        torch.manual_seed(0)
        backbone = Multiway(
            name="test",
            width=16,
            depth=2,
            heads=2,
            ffn_width=32,
            patch_size=8,
            image_size=16,
            vocabulary_size=40,
            drop_path=drop_path,
        )
        return RetrievalModel(backbone=backbone, adapter=adapter, heads=RetrievalHeads(width=16))

    return make
