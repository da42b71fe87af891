from __future__ import annotations

import math

import pytest
import torch

from mwa_lightning.tasks.heads import AttentionPooler, ClipHeads, RetrievalHeads, SiglipHeads


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
    assert torch.allclose(heads.embed_text(tokens, None), torch.tensor([[2.0, 3.0]]) / math.sqrt(13))


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
    assert RetrievalHeads(width=8).embed_text(torch.empty(0, 5, 8), None).shape == (0, 8)


def test_clip_heads__pool_first_and_last_real_token() -> None:
    heads = ClipHeads(vision_width=3, text_width=2, width=4)
    tokens = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.equal(heads.pool_text(tokens, mask), torch.stack([tokens[0, 1], tokens[1, 2]]))
    assert torch.equal(heads.pool_text(tokens, None), tokens[:, 2])
    images = torch.randn(2, 5, 3)
    assert torch.equal(heads.pool_image(images), images[:, 0])
    expected = torch.nn.functional.normalize(images[:, 0] @ heads.vision.weight.T, dim=-1)
    assert torch.allclose(heads.embed_image(images), expected)
    assert heads.embed_text(torch.empty(0, 5, 2), torch.empty(0, 5, dtype=torch.bool)).shape == (0, 4)


def test_siglip_heads__names_and_initial_values() -> None:
    heads = SiglipHeads(
        vision_width=8, vision_heads=2, vision_ffn_width=16, text_width=6, activation="gelu_tanh", norm_epsilon=1e-6
    )
    assert heads.width == 8
    assert heads.logit_scale.item() == pytest.approx(math.log(10))
    assert heads.logit_bias.item() == -10
    tokens = torch.randn(2, 5, 6)
    assert torch.equal(heads.pool_text(tokens, torch.zeros(2, 5, dtype=torch.bool)), tokens[:, -1])
    images = torch.randn(2, 7, 8)
    assert torch.allclose(heads.embed_image(images), torch.nn.functional.normalize(heads.pool_image(images), dim=-1))


def test_attention_pooler__equal_tokens_and_any_order() -> None:
    pooler = AttentionPooler(width=8, heads=2, ffn_width=16, activation="gelu", norm_epsilon=1e-6)
    tokens = torch.randn(1, 6, 8)
    with torch.no_grad():
        assert torch.allclose(pooler(tokens), pooler(tokens[:, [3, 1, 5, 0, 2, 4]]), atol=1e-6)
        # Of equal tokens the mean of the values is the value, whatever the attention.
        one = tokens[:, :1]
        value = pooler.attention.output[0](pooler.attention.value[0](one))
        assert torch.allclose(pooler(one.expand(1, 4, 8)), (value + pooler.ffn(pooler.norm(value)))[:, 0], atol=1e-6)
