"""Very small fusion encoders with heads of retrieval, for the tests of matching, re-ranking and the momentum queue."""

from __future__ import annotations

import torch

from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.model import RetrievalModel

FAMILIES = {"blip": 0, "albef": 2}  # fusion layers


def make_model(fusion_layers: int) -> RetrievalModel:
    """A very small ALBEF (with fusion layers) or BLIP (without)."""
    torch.manual_seed(0)
    backbone = FusionEncoder(
        name="test",
        vision_width=16,
        vision_depth=2,
        vision_heads=2,
        vision_ffn_width=32,
        patch_size=8,
        image_size=16,
        text_width=16,
        text_heads=2,
        text_ffn_width=32,
        text_layers=2,
        fusion_layers=fusion_layers,
        vocabulary_size=40,
        encoder_token=None if fusion_layers else -1,
        embedding_width=8,
    )
    adapter = MultiWayAdapter(mid_dim=4, dropout=0.0)
    return RetrievalModel(backbone=backbone, adapter=adapter, heads=retrieval_heads(backbone))


def make_batch(*image_ids: int, seed: int = 1) -> TrainBatch:
    """Pairs of random images with random texts of 2 to 6 tokens."""
    torch.manual_seed(seed)
    count = len(image_ids)
    return TrainBatch(
        images=torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8),
        ids=torch.randint(4, 38, (count, 6)),
        mask=torch.arange(6) < torch.tensor([6, 4, 3, 5, 6, 2])[:count, None],
        image_ids=torch.tensor(image_ids),
        sample_ids=[str(number) for number in range(count)],
    )
