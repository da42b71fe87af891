"""CLIP and SigLIP 2 as backbones: sites, masks, and that every simple adapter method trains on them and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.files.adapter_file import load_adapter, save_adapter, trained_state
from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.model import RetrievalModel, trained_parameters
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.instantiating import instantiate

CLIP: dict[str, Any] = {
    "name": "test_clip", "form": "clip", "activation": "quick_gelu", "norm_epsilon": 1e-5,
    "vision_width": 32, "vision_depth": 3, "vision_heads": 4, "vision_ffn_width": 64,
    "text_width": 24, "text_depth": 2, "text_heads": 2, "text_ffn_width": 48, "embedding_width": 20,
    "patch_size": 8, "image_size": 16, "vocabulary_size": 40, "text_positions": 9, "max_text_length": 9,
}  # fmt: skip
SIGLIP = CLIP | {"name": "test_siglip", "form": "siglip", "activation": "gelu_tanh", "embedding_width": 32}
FORMS = [pytest.param(CLIP, id="clip"), pytest.param(SIGLIP, id="siglip")]


def small_mwa() -> AdapterMethod:
    return MultiWayAdapter(mid_dim=4, enhancer_dim=6, dropout=0.0)


def make_batch() -> TrainBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    ids = torch.randint(3, 40, (4, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 2])[:, None]
    return TrainBatch(images, ids, mask, torch.arange(4), ["a", "b", "c", "d"])


def make_model(sizes: dict[str, Any], adapter: AdapterMethod, seed: int = 0) -> RetrievalModel:
    torch.manual_seed(seed)
    backbone = DualEncoder(**sizes)
    return RetrievalModel(backbone=backbone, adapter=adapter, heads=retrieval_heads(backbone))


def embed(model: RetrievalModel) -> Tensor:
    batch = make_batch()
    with torch.no_grad():
        return torch.cat([model.encode_image(batch.images), model.encode_text(batch.ids, batch.mask)])


@pytest.mark.parametrize("sizes", FORMS)
def test_sites__of_two_transformers(sizes: dict[str, Any]) -> None:
    backbone = DualEncoder(**sizes)
    found = backbone.sites(("vision", "text", "fusion"))
    assert {(site.stream, site.layer, site.width) for site in found} == {
        *(("vision", layer, 32) for layer in range(3)),
        *(("text", layer, 24) for layer in range(2)),
    }
    assert not any(site.branch == "cross_attn" or site.joint for site in found)
    assert backbone.sites(("fusion",)) == []


@pytest.mark.parametrize("sizes", FORMS)
def test_layers_above__of_its_own_transformer(sizes: dict[str, Any]) -> None:
    backbone = DualEncoder(**sizes)
    above = {name: backbone.layers_above(name) for name, _ in backbone.named_parameters()}
    assert above["vision.embedding.positions"] == 4
    assert above["text.embedding.tokens.weight"] == 3
    assert above["vision.blocks.0.ffn.vision.up.weight"] == 3
    assert above["text.blocks.1.attention.key.text.bias"] == 1
    assert above["vision.final_norm.weight"] == above["text.final_norm.bias"] == 0
    assert backbone.no_weight_decay - above.keys() <= {"vision.embedding.cls_token"}


def test_encode_text__clip_looks_back_and_never_at_padding() -> None:
    model = make_model(CLIP, NoAdapter())
    batch = make_batch()
    changed = batch.ids.clone()
    changed[:, 5] = 1 + changed[:, 5] % 30
    with torch.no_grad():
        before, after = (model.backbone.encode_text(ids, batch.mask) for ids in (batch.ids, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 6:], after[:, 6:])
    # Sample 1 has 4 tokens: what is behind them does not show.
    text = [model.encode_text(ids, batch.mask) for ids in (batch.ids, changed)]
    assert torch.equal(text[0][1], text[1][1])
    assert not torch.equal(text[0][0], text[1][0])


def test_encode_text__siglip_sees_padding_and_wants_all_of_it() -> None:
    model = make_model(SIGLIP, NoAdapter())
    batch = make_batch()
    padded = [batch.ids.masked_fill(~batch.mask, pad) for pad in (0, 1)]
    texts = [model.encode_text(ids, batch.mask) for ids in padded]
    assert torch.equal(texts[0][0], texts[1][0])
    assert not torch.allclose(texts[0][1], texts[1][1], atol=1e-4)
    with pytest.raises(ConfigError, match="pad texts to 9 tokens, not 5; the tokenizer"):
        model.encode_text(batch.ids[:, :5], None)


@pytest.mark.parametrize("sizes", FORMS)
@pytest.mark.parametrize("method", [small_mwa, FullFineTuning, HeadOnly])
def test_adapter__trains_what_it_should_and_comes_back(
    sizes: dict[str, Any], method: Callable[[], AdapterMethod], tmp_path: Path
) -> None:
    model = make_model(sizes, method())
    frozen_outputs = embed(make_model(sizes, NoAdapter()))
    assert torch.equal(embed(model.eval()), frozen_outputs)
    trained = trained_parameters(model.train())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    task = RetrievalTask(model=model)
    assert task.loss == ("sigmoid" if sizes["form"] == "siglip" else "softmax")
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        task.model_step(make_batch()).backward()
        assert all(parameter.grad is not None for parameter in trained.values())
        optimizer.step()
    after = dict(model.named_parameters())
    assert {name for name in after if not torch.equal(after[name], before[name])} == trained.keys()
    outputs = embed(model.eval())
    assert (outputs - frozen_outputs).abs().max() > 1e-3

    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata={"backbone": sizes["name"], "fingerprint": "random"})
    restored = make_model(sizes, method())
    load_adapter(path, restored, fingerprint="random")
    assert torch.equal(embed(restored.eval()), outputs)


def test_mwa__an_enhancer_for_each_width() -> None:
    model = make_model(CLIP, MultiWayAdapter(mid_dim=4, enhancer_dim=6))
    widths = {name: parameter.shape[0] for name, parameter in model.adapter.named_parameters() if "up.weight" in name}
    enhancers = {name.split(".")[1]: width for name, width in widths.items() if name.startswith("enhancers")}
    assert enhancers == {"0": 32, "1": 32, "2": 32, "0_text": 24, "1_text": 24}
    assert len(widths) == 10


def test_softmax_on_siglip__leaves_its_bias() -> None:
    model = make_model(SIGLIP, HeadOnly())
    task = RetrievalTask(model=model, loss="softmax")
    task.model_step(make_batch()).backward()
    bias = model.heads.logit_bias
    assert bias is not None
    assert bias.grad is not None
    assert bias.grad.item() == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "blip"}, "choose one of clip, siglip"),
        ({"max_text_length": 10}, "positions for 9 tokens"),
        ({"form": "siglip", "embedding_width": 32, "max_text_length": 8}, "every text has 9 tokens"),
        ({"form": "siglip"}, "take its vision_width, 32"),
        ({"image_size": 20}, "take 16 or 24"),
    ],
)
def test_dual_encoder__sizes_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DualEncoder(**(CLIP | changes))


@pytest.mark.parametrize(("loss", "said"), [("sigmoid", "it needs a logit bias"), ("hinge", "auto, softmax, sigmoid")])
def test_task__loss_that_the_heads_cannot_have(loss: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RetrievalTask(model=make_model(CLIP, HeadOnly()), loss=loss)


@pytest.mark.parametrize("sizes", FORMS)
def test_compile__whole_graph(sizes: dict[str, Any]) -> None:
    model = make_model(sizes, MultiWayAdapter(mid_dim=4, enhancer_dim=6)).eval()
    batch = make_batch()
    images = torch.compile(model.encode_image, fullgraph=True, backend="eager")(batch.images)
    texts = torch.compile(model.encode_text, fullgraph=True, backend="eager")(batch.ids, batch.mask)
    assert torch.allclose(torch.cat([images, texts]), embed(model), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Of the published files, the counted positions left out; the last is counted by hand from their sizes.
        ("clip_b32", 151_277_313),
        ("clip_b16", 149_620_737),
        ("clip_l14", 427_616_513),
        ("siglip2_base", 375_187_970),
        ("siglip2_large", 881_465_346),
    ],
)
def test_config__parameters_of_the_official_model(name: str, count: int) -> None:
    node = compose_groups("train", {"backbone": name}).backbone
    with torch.device("meta"):
        backbone = instantiate(node)
        heads = retrieval_heads(backbone)
    assert sum(parameter.numel() for part in (backbone, heads) for parameter in part.parameters()) == count
