"""Image-text matching: which wrong partners are drawn, and what the loss is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.losses.matching import Pairs, Similarity, hard_partners, matching_loss
from mwa_lightning.tasks.model import trained_parameters
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.tasks.fusion_models import FAMILIES, make_batch, make_model


def test_hard_partners__only_allowed_ones_and_the_likely_ones_most() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[9.0, 3.0, 0.0]]).repeat(4000, 1)
    allowed = torch.tensor([[False, True, True]]).repeat(4000, 1)
    drawn = torch.bincount(hard_partners(scores, allowed), minlength=3) / 4000
    chances = scores[0].softmax(0)
    expected = chances[1] / (chances[1] + chances[2])
    assert drawn[0] == 0
    assert drawn[1].item() == pytest.approx(expected.item(), abs=0.02)


def test_hard_partners__a_right_pair_that_is_sure_leaves_the_wrong_ones_as_hard_as_they_are() -> None:
    """The softmax over all would give the wrong ones chances below what fp32 can hold."""
    torch.manual_seed(0)
    scores = torch.tensor([[300.0, 3.0, 0.0]]).repeat(4000, 1)
    drawn = torch.bincount(hard_partners(scores, torch.tensor([[False, True, True]]).repeat(4000, 1)), minlength=3)
    assert drawn[1].item() / 4000 == pytest.approx(torch.tensor([3.0, 0.0]).softmax(0)[0].item(), abs=0.02)
    assert set(hard_partners(torch.full((9, 3), torch.nan), torch.tensor([[False, True, True]]).repeat(9, 1)).tolist())


@pytest.mark.parametrize("fusion_layers", [0, 2], ids=["blip", "albef"])
def test_matching_loss__equals_plain_code(fusion_layers: int) -> None:
    model, batch = make_model(fusion_layers), make_batch(1, 2, 3)
    backbone, heads = model.backbone, model.heads
    assert isinstance(backbone, FusionEncoder)
    assert isinstance(heads, FusionRetrievalHeads)
    # With these scores the wrong partner is certain: of 0 it is 1, of 1 it is 2, of 2 it is 0.
    similarity = torch.tensor([[0.0, 90.0, 0.0], [0.0, 0.0, 90.0], [90.0, 0.0, 0.0]])
    torch.manual_seed(2)
    tokens = backbone.encode_image(batch.images)
    pairs = Pairs(tokens, batch.ids, batch.mask, batch.image_ids)
    both = Similarity(similarity, similarity.T)
    loss = matching_loss(backbone, heads, own=pairs, candidates=pairs, similarity=both)
    # Image i gets text (i + 1) % 3, text i gets image (i - 1) % 3.
    pairs = (
        [(i, i, 1) for i in range(3)]
        + [((i - 1) % 3, i, 0) for i in range(3)]
        + [(i, (i + 1) % 3, 0) for i in range(3)]
    )
    total = torch.zeros(())
    for image, text, label in pairs:
        length = int(batch.mask[text].sum())
        fused = backbone.fuse([tokens[image : image + 1]], batch.ids[text : text + 1, :length], None)
        total = (
            total - functional.linear(fused[:, 0], heads.matching.weight, heads.matching.bias).log_softmax(1)[0, label]
        )
    assert loss.item() == pytest.approx(total.item() / 9, rel=1e-5)


def test_matching_loss__without_wrong_partners_has_the_right_pairs_only() -> None:
    model, batch = make_model(2), make_batch(5, 5, 5)
    backbone, heads = model.backbone, model.heads
    assert isinstance(backbone, FusionEncoder)
    assert isinstance(heads, FusionRetrievalHeads)
    tokens = backbone.encode_image(batch.images)
    pairs = Pairs(tokens, batch.ids, batch.mask, batch.image_ids)
    even = Similarity(torch.zeros(3, 3), torch.zeros(3, 3))
    loss = matching_loss(backbone, heads, own=pairs, candidates=pairs, similarity=even)
    logits = heads.match(backbone.fuse([tokens], batch.ids, batch.mask))
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, torch.ones(3, dtype=torch.int64)).item())


@pytest.mark.parametrize("fusion_layers", [0, 2], ids=["blip", "albef"])
def test_model_step__reaches_everything_that_trains(fusion_layers: int) -> None:
    task = RetrievalTask(model=make_model(fusion_layers))
    task.model_step(make_batch(1, 2, 2, 3)).backward()
    bare = [
        name for name, parameter in task.model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert bare == []
    frozen = [name for name, parameter in task.model.named_parameters() if not parameter.requires_grad]
    assert all(name.startswith("backbone.") for name in frozen)
    assert len(frozen) == len(list(task.model.backbone.parameters()))


@pytest.mark.parametrize(("family", "side"), [("blip", 0), ("albef", 1)])
def test_model_step__wrong_partners_are_found_among(family: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a queue, ALBEF looks for them among the embeddings of the slow model, BLIP among its own."""
    model, batch = make_model(FAMILIES[family]), make_batch(1, 2, 3)
    task = RetrievalTask(model=model, queue_size=8)
    task.model_step(batch)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    seen: list[Similarity] = []
    assert task.queue is not None
    slow = task.queue.embed(model, batch)
    monkeypatch.setattr(task.queue, "embed", lambda *_: slow)
    monkeypatch.setattr(
        "mwa_lightning.tasks.retrieval.matching_loss",
        lambda *_, similarity, **__: seen.append(similarity) or torch.zeros(()),
    )
    task.model_step(batch)
    own = model(batch.images, batch.ids, batch.mask)
    scale = model.heads.logit_scale.exp()
    (found,) = seen
    for compared, wanted in ((own, side == 0), (slow, side == 1)):
        assert torch.allclose(found.image_to_text, scale * own[0] @ compared[1].T, atol=1e-5) == wanted
        assert torch.allclose(found.text_to_image, scale * own[1] @ compared[0].T, atol=1e-5) == wanted
