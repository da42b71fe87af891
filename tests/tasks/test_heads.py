from __future__ import annotations

import math

import pytest
import torch

from mwa_lightning.tasks.heads import RetrievalHeads


def test_retrieval_heads__names_and_initial_values() -> None:
    torch.manual_seed(0)
    heads = RetrievalHeads(width=64)
    shapes = {name: tuple(value.shape) for name, value in heads.state_dict().items()}
    assert shapes == {"logit_scale": (), "vision.weight": (64, 64), "text.weight": (64, 64)}
    assert heads.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for head in (heads.vision, heads.text):
        assert head.weight.abs().max() <= 0.02
        # A normal of deviation 0.02 cut at +-0.02 has 0.0108.
        assert head.weight.std().item() == pytest.approx(0.0108, abs=0.0004)


def test_embed__first_token_through_its_own_head() -> None:
    heads = RetrievalHeads(width=2)
    with torch.no_grad():
        heads.vision.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        heads.text.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tokens = torch.tensor([[[3.0, 2.0], [50.0, 50.0]]])
    assert torch.allclose(heads.embed_image(tokens), torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(heads.embed_text(tokens), torch.tensor([[2.0, 3.0]]) / math.sqrt(13))


def test_embed__fp32_under_autocast_and_from_half_tokens() -> None:
    heads = RetrievalHeads(width=32)
    tokens = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = heads.embed_image(tokens.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = heads.embed_image(tokens)
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, expected)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-6)


def test_embed__no_rows() -> None:
    assert RetrievalHeads(width=8).embed_text(torch.empty(0, 5, 8)).shape == (0, 8)
