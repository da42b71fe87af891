"""Re-ranking: scores of pairs against plain code, and with all candidates the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mwa_lightning.errors import NotFinite
from mwa_lightning.metrics.recall import Embedded
from mwa_lightning.metrics.reranking import reranked_figures
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.tasks.reranking import Reranker
from tests.metrics.test_reranking import official_figures
from tests.tasks.fusion_models import FAMILIES, make_model

IMAGES, CAPTIONS = 12, 2
OWNER = torch.arange(IMAGES).repeat_interleave(CAPTIONS)


def make_texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of 3 to 7 tokens; the last is that of the first image too."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 8, (len(OWNER),), generator=generator)
    ids = torch.randint(4, 38, (len(OWNER), 7), generator=generator)
    return ids, torch.arange(7) < lengths.unsqueeze(1)


def make_trained(fusion_layers: int) -> RetrievalModel:
    """A model with weights so large that every part of it does something."""
    model = make_model(fusion_layers)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model.eval()


@torch.no_grad()
def encode(model: RetrievalModel, reranker: Reranker) -> tuple[Embedded, Tensor, Tensor, Tensor]:
    """As the task does: in batches, and not in file order."""
    pictures = torch.randint(0, 256, (IMAGES, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    ids, mask = make_texts()
    tokens = model.backbone.encode_image(pictures)
    for part in torch.arange(IMAGES).flip(0).split(5):
        reranker.add_images(tokens[part], 10 + part)  # numbers need not begin with 0
    for part in torch.arange(len(OWNER)).roll(7).split(9):
        reranker.add_texts(ids[part], mask[part], part)
    return Embedded(model.heads.embed_image(tokens), model.encode_text(ids, mask), OWNER), tokens, ids, mask


@torch.no_grad()
def every_pair(model: RetrievalModel, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The match logits (images, texts), pair by pair and without padding."""
    rows = []
    for image in range(len(tokens)):
        fused = [
            model.backbone.fuse([tokens[image : image + 1]], ids[text : text + 1, : int(mask[text].sum())], None)
            for text in range(len(ids))
        ]
        rows.append([model.heads.match(each)[0, 1] for each in fused])
    return torch.tensor(rows)


@pytest.mark.parametrize("add_cosine", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_rank__with_all_candidates_is_the_whole_matrix(family: str, add_cosine: bool) -> None:
    model, reranker = make_trained(FAMILIES[family]), Reranker(k=1000, add_cosine=add_cosine)
    embedded, *encoded = encode(model, reranker)
    expected = every_pair(model, *encoded)
    assert expected.std() > 0.1
    if add_cosine:
        expected = expected + embedded.images @ embedded.texts.T
    ranking = reranker.rank(embedded, model)
    whole = torch.empty_like(expected).scatter(1, ranking.image_to_text.rows, ranking.image_to_text.scores)
    other = torch.empty_like(expected.T).scatter(1, ranking.text_to_image.rows, ranking.text_to_image.scores)
    # Padding, batches and keys that are computed once change the last bits, which large weights amplify.
    noise = 1e-4 * expected.std().item()
    assert torch.allclose(whole, expected, rtol=0, atol=noise)
    assert torch.allclose(other, expected.T, rtol=0, atol=noise)
    figures = reranked_figures(ranking, embedded)
    assert figures == pytest.approx(official_figures(expected.numpy(), expected.T.numpy(), OWNER.numpy()))


@pytest.mark.parametrize("family", FAMILIES)
def test_rank__scores_the_best_by_cosine_and_no_others(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reranker = make_trained(FAMILIES[family]), Reranker(k=3, add_cosine=True)
    embedded, *encoded = encode(model, reranker)
    cosines = embedded.images @ embedded.texts.T
    expected = every_pair(model, *encoded) + cosines
    scored = []
    fuse = type(model.backbone).fuse

    def counting(self: object, memory: list[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        scored.append((len(memory[0]), len(ids)))
        return fuse(model.backbone, memory, ids, mask)

    monkeypatch.setattr(type(model.backbone), "fuse", counting)
    ranking = reranker.rank(embedded, model)
    for found, scores, by_cosine in (
        (ranking.image_to_text, expected, cosines),
        (ranking.text_to_image, expected.T, cosines.T),
    ):
        assert torch.equal(found.rows, by_cosine.topk(3, dim=1).indices)
        noise = 1e-4 * expected.std().item()
        assert torch.allclose(found.scores, scores.gather(1, found.rows), rtol=0, atol=noise)
    # An image is encoded once for all of its texts, and a pair that is a candidate both ways is scored once.
    pairs = torch.zeros_like(cosines, dtype=torch.bool).scatter(1, ranking.image_to_text.rows, True)
    pairs |= torch.zeros_like(cosines.T, dtype=torch.bool).scatter(1, ranking.text_to_image.rows, True).T
    assert sum(texts for _, texts in scored) == int(pairs.sum())
    assert {images for images, _ in scored} == {1}


def test_rank__equal_texts_tie() -> None:
    """A caption that two images share is as good for the one as for the other, to the last bit."""
    model, reranker = make_trained(0), Reranker(k=1000, add_cosine=True)
    embedded, _, ids, mask = encode(model, reranker)
    ids[-1], mask[-1] = ids[0], mask[0]
    reranker.add_texts(ids[-1:], mask[-1:], torch.tensor([len(OWNER) - 1]))
    same = embedded.texts.clone()
    same[-1] = same[0]
    ranking = reranker.rank(Embedded(embedded.images, same, OWNER), model)
    whole = torch.empty(IMAGES, len(OWNER)).scatter(1, ranking.image_to_text.rows, ranking.image_to_text.scores)
    assert torch.equal(whole[:, 0], whole[:, -1])


def test_rank__a_score_that_is_not_finite_is_an_error() -> None:
    model, reranker = make_trained(0), Reranker(k=3, add_cosine=True)
    embedded, *_ = encode(model, reranker)
    with torch.no_grad():
        model.heads.matching.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="matching head gives scores that are not finite"):
        reranker.rank(embedded, model)


def test_rank__tells_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model, reranker = make_trained(0), Reranker(k=3, add_cosine=True)
    embedded, *_ = encode(model, reranker)
    clock = iter(range(0, 1000, 20))  # 20 s an image
    monkeypatch.setattr("mwa_lightning.report.progress.time.perf_counter", lambda: float(next(clock)))
    with caplog.at_level("INFO"):
        reranker.rank(embedded, model)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "re-ranking: image 1 of 12, 7 min 20 s left"
    assert lines[1] == "re-ranking: image 3 of 12, 4 min 0 s left"
    assert lines[-1] == "re-ranked the candidates of 12 images in 4 min 20 s"
