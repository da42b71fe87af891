"""Recall@K: hand-computed cases, and a brute-force oracle that counts by the definition in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mwa_lightning.errors import DataError, NotFinite
from mwa_lightning.metrics import recall
from mwa_lightning.metrics.recall import FIGURES, RetrievalRecall, best_ranks

ROOT = Path(__file__).parents[2]


def measure(images: Tensor, texts: Tensor, text_image: Tensor, **options: bool) -> dict[str, float]:
    metric = RetrievalRecall(**options)
    metric.update_images(images, torch.arange(len(images)))
    metric.update_texts(texts, torch.arange(len(texts)), text_image)
    return {name: value.item() for name, value in metric.compute().items()}


def oracle(images: np.ndarray, texts: np.ndarray, text_image: np.ndarray) -> dict[str, float]:
    """Query by query and candidate by candidate."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    ranks: dict[str, list[int]] = {"i2t": [], "t2i": []}
    for image in range(len(images)):
        best = max(scores[image, text] for text in range(len(texts)) if text_image[text] == image)
        wrong = [text for text in range(len(texts)) if text_image[text] != image and scores[image, text] >= best]
        ranks["i2t"].append(1 + len(wrong))
    for text in range(len(texts)):
        own = scores[text_image[text], text]
        wrong = [image for image in range(len(images)) if image != text_image[text] and scores[image, text] >= own]
        ranks["t2i"].append(1 + len(wrong))
    figures = {
        f"{direction}_r{k}": 100 * sum(rank <= k for rank in ranks[direction]) / len(ranks[direction])
        for direction in ranks
        for k in (1, 5, 10)
    }
    return figures | {"mean_recall": sum(figures.values()) / 6}


@st.composite
def splits(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings on a grid of quarters, so products are exact and ties common; 1 to 7 captions an image."""
    images = draw(st.integers(1, 24))
    width = draw(st.integers(1, 6))
    captions = draw(st.lists(st.integers(1, 7), min_size=images, max_size=images))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([1, 2, 4]))
    text_image = generator.permutation(np.repeat(np.arange(images), captions))
    shapes = ((images, width), (len(text_image), width))
    grids = [torch.from_numpy(generator.integers(-steps, steps + 1, shape)).float() / 4 for shape in shapes]
    return grids[0], grids[1], torch.from_numpy(text_image)


class TestFigures:
    def test_compute__by_hand(self) -> None:
        # Image 0 finds its first caption; the captions of image 1 lose to caption 0.
        images = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
        text_image = torch.tensor([0, 0, 1, 1])
        # i2t: image 0: right 1.0 and 0, wrong 0 and -0: rank 1. Image 1: right 0.6, -0.6; wrong 0.8
        # and, a tie, 0.6: rank 3.
        # t2i: caption 0: 1.0 to 0.8: rank 1. Captions 1 and 2: image 1 leads, 0.6 to 0: ranks 2 and 1.
        # Caption 3: 0 to -0.6, and its own is the -0.6: rank 2.
        expected = dict(zip(FIGURES, (50.0, 100.0, 100.0, 50.0, 100.0, 100.0), strict=True))
        expected["mean_recall"] = 500 / 6
        assert measure(images, texts, text_image) == pytest.approx(expected, abs=1e-12)

    def test_compute__ten_images_in_a_line(self) -> None:
        # Caption i is image i turned by i places among 12 one-hot images: only caption 0 finds its own.
        images = torch.eye(12)
        texts = torch.eye(12) * 0.5
        texts[3] = torch.tensor([1.0 if place in (4, 5, 6, 7) else 0.0 for place in range(12)])
        figures = measure(images, texts, torch.arange(12))
        # t2i of caption 3: four images at 1, eight at 0, its own among these: rank 12.
        assert figures["t2i_r1"] == figures["t2i_r10"] == pytest.approx(100 * 11 / 12)
        # i2t: images 4..7 have caption 3 at 1 before their own at 0.5; image 3 has 0 everywhere: 12 ties.
        assert figures["i2t_r1"] == pytest.approx(100 * 7 / 12)
        assert figures["i2t_r5"] == figures["i2t_r10"] == pytest.approx(100 * 11 / 12)

    def test_best_ranks__tied_captions_of_ones_own_and_fewer_captions_than_others(self) -> None:
        # Image 0 has two equal captions, which are not in each other's way; image 1 has one, behind both of these.
        captions = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.5]])
        assert best_ranks(torch.eye(2), captions, torch.tensor([[0, 1], [2, -1]])).tolist() == [1, 3]

    @settings(max_examples=80, deadline=None)
    @given(splits())
    def test_compute__equals_the_oracle(self, split: tuple[Tensor, Tensor, Tensor]) -> None:
        images, texts, text_image = split
        expected = oracle(images.numpy(), texts.numpy(), text_image.numpy())
        assert measure(images, texts, text_image) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("captions", [5, 6])
    def test_compute__equals_the_oracle_over_several_blocks(self, captions: int) -> None:
        generator = torch.Generator().manual_seed(captions)
        images = torch.nn.functional.normalize(torch.randn(300, 16, generator=generator), dim=1)
        text_image = torch.arange(300).repeat_interleave(captions)
        texts = images[text_image] + 0.4 * torch.randn(300 * captions, 16, generator=generator)
        texts = torch.nn.functional.normalize(texts, dim=1)
        figures = measure(images, texts, text_image)
        assert 10 < figures["i2t_r1"] < 90
        assert figures == pytest.approx(oracle(images.numpy(), texts.numpy(), text_image.numpy()), abs=1e-9)

    def test_compute__fewer_candidates_than_k(self) -> None:
        figures = measure(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))
        assert figures["i2t_r1"] == figures["t2i_r1"] == 0
        assert figures["i2t_r5"] == figures["t2i_r10"] == 100


class TestTies:
    @pytest.mark.parametrize("width", [3, 48, 257])
    def test_compute__collapsed_embeddings_find_nothing(self, width: int) -> None:
        one = torch.nn.functional.normalize(torch.randn(1, width, generator=torch.Generator().manual_seed(0)), dim=1)
        figures = measure(one.repeat(300, 1), one.repeat(1500, 1), torch.arange(300).repeat_interleave(5))
        assert all(value == 0 for value in figures.values())

    def test_compute__equal_images_tie_exactly(self) -> None:
        # Each image comes twice, far apart and with captions of its own: no caption can tell the two.
        generator = torch.Generator().manual_seed(0)
        half = torch.nn.functional.normalize(torch.randn(333, 61, generator=generator), dim=1)
        images = torch.cat([half, half])
        figures = measure(images, images.clone(), torch.arange(666))
        assert figures["i2t_r1"] == figures["t2i_r1"] == 0
        assert figures["i2t_r5"] == figures["t2i_r5"] == 100

    def test_best_ranks__last_bits_of_the_product_break_no_tie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def product(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
            # As hardware may have it: equal columns with different last bits.
            return out.copy_(left @ right).sub_(1e-6 * torch.arange(out.shape[1]))

        monkeypatch.setattr(torch, "matmul", product)
        candidates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert best_ranks(torch.tensor([[1.0, 0.0]]), candidates, torch.tensor([[0]])).tolist() == [2]

    def test_best_ranks__zeros_of_both_signs_are_equal(self) -> None:
        candidates = torch.tensor([[1.0, 0.0], [1.0, -0.0]])
        assert recall._distinct(candidates)[1].tolist() == [0, 0]
        assert best_ranks(torch.tensor([[1.0, 1.0]]), candidates, torch.tensor([[0]])).tolist() == [2]

    def test_distinct__colliding_hashes_stay_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recall, "_hash", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
        distinct, group = recall._distinct(rows)
        assert distinct.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert group.tolist() == [0, 1, 0]

    def test_best_ranks__reduced_precision_of_the_hardware_is_off(self) -> None:
        generator = torch.Generator().manual_seed(1)
        queries, candidates = (
            torch.randn(64, 96, generator=generator),
            torch.randn(512, 96, generator=generator),
        )
        right = torch.arange(64).unsqueeze(1)
        expected = best_ranks(queries, candidates, right)
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(best_ranks(queries, candidates, right), expected)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")


class TestOrder:
    @settings(max_examples=25, deadline=None)
    @given(splits(), st.integers(0, 2**32), st.integers(1, 9))
    def test_compute__order_batches_and_duplicates_do_not_matter(
        self, split: tuple[Tensor, Tensor, Tensor], seed: int, batch: int
    ) -> None:
        images, texts, text_image = split
        generator = np.random.default_rng(seed)
        metric = RetrievalRecall(keep=True)
        # A third of the texts and one image come twice, as where a sampler fills up the last batch.
        text_order = generator.permutation(np.r_[np.arange(len(texts)), np.arange(len(texts) // 3)])
        image_order = generator.permutation(np.r_[np.arange(len(images)), 0])
        for rows in torch.from_numpy(text_order).split(batch):
            metric.update_texts(texts[rows], rows, text_image[rows])
        for rows in torch.from_numpy(image_order).split(batch):
            metric.update_images(images[rows], rows)
        figures = {name: value.item() for name, value in metric.compute().items()}
        assert figures == measure(images, texts, text_image)
        assert metric.embedded is not None
        for kept, original in zip(metric.embedded, (images, texts, text_image), strict=True):
            assert torch.equal(kept, original)

    def test_compute__numbers_need_not_begin_at_zero(self) -> None:
        images, text_image = torch.eye(4), torch.tensor([0, 1, 2, 3])
        metric = RetrievalRecall()
        metric.update_images(images, torch.tensor([17, 40, 2, 9]))
        metric.update_texts(images, torch.tensor([5, 1, 8, 3]), torch.tensor([17, 40, 2, 9])[text_image])
        assert metric.compute()["mean_recall"] == 100

    def test_compute__half_precision_embeddings_are_taken_as_fp32(self) -> None:
        metric = RetrievalRecall(keep=True)
        metric.update_images(torch.eye(3, dtype=torch.bfloat16), torch.arange(3))
        metric.update_texts(torch.eye(3, dtype=torch.float16), torch.arange(3), torch.arange(3))
        assert metric.compute()["i2t_r1"].dtype == torch.float64
        assert metric.embedded is not None
        assert metric.embedded.images.dtype == metric.embedded.texts.dtype == torch.float32


class TestThousands:
    def test_compute__mean_over_consecutive_folds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recall, "FOLD_IMAGES", 8)
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(43, 5, generator=generator)
        text_image = torch.arange(43).repeat_interleave(5)[torch.randperm(215, generator=generator)]
        texts = images[text_image] + torch.randn(215, 5, generator=generator)
        figures = measure(images, texts, text_image, one_k=True)
        folds = []
        for begin in range(0, 40, 8):
            inside = (text_image >= begin) & (text_image < begin + 8)
            parts = images[begin : begin + 8], texts[inside], text_image[inside] - begin
            folds.append(oracle(*(part.numpy() for part in parts)))
        for name in folds[0]:
            assert figures[f"1k/{name}"] == pytest.approx(np.mean([fold[name] for fold in folds]), abs=1e-9)
        assert figures["1k/mean_recall"] > figures["mean_recall"]

    @pytest.mark.parametrize(("images", "there"), [(39, False), (40, True)])
    def test_compute__left_out_below_five_folds(
        self, images: int, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recall, "FOLD_IMAGES", 8)
        figures = measure(torch.eye(images), torch.eye(images), torch.arange(images), one_k=True)
        names = {*FIGURES, "mean_recall"}
        assert figures.keys() == names | ({f"1k/{name}" for name in names} if there else set())

    def test_folds__are_five_thousands(self) -> None:
        assert (recall.FOLDS, recall.FOLD_IMAGES) == (5, 1000)


class TestErrors:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("what", ["image", "caption"])
    def test_compute__not_finite(self, value: float, what: str) -> None:
        images, texts = torch.eye(6), torch.eye(6)
        broken = images if what == "image" else texts
        broken[4, 2] = value
        with pytest.raises(NotFinite, match=rf"1 of 6 {what} embeddings is not finite, the first of {what} 4"):
            measure(images, texts, torch.arange(6))

    def test_compute__image_without_caption(self) -> None:
        with pytest.raises(DataError, match="image 2 has no caption"):
            measure(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))

    @pytest.mark.parametrize("stray", [-1, 3, 99])
    def test_compute__caption_without_image(self, stray: int) -> None:
        with pytest.raises(DataError, match="caption 1 belongs to an image"):
            measure(torch.eye(3), torch.eye(4)[:, :3], torch.tensor([0, stray, 1, 2]))

    def test_compute__nothing(self) -> None:
        metric = RetrievalRecall()
        metric.update_images(torch.eye(3), torch.arange(3))
        with pytest.raises(DataError, match="no captions were embedded"):
            metric.compute()
        metric.update_texts(torch.empty(0, 3), torch.arange(0), torch.arange(0))
        with pytest.raises(DataError, match="no captions were embedded"):
            metric.compute()


MEMORY_SCRIPT = """
import torch
from mwa_lightning.metrics.recall import RetrievalRecall
images, texts, width = {images}, {texts}, 768
owner = torch.arange(texts) % images
metric = RetrievalRecall()
rows = torch.randn(images, width)
metric.update_images(rows, torch.arange(images))
metric.update_texts(rows[owner] + 0.1 * torch.randn(texts, width), torch.arange(texts), owner)
torch.randn(256, 256) @ torch.randn(256, 256)
open("/proc/self/clear_refs", "w").write("5")
def of(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
before = of("VmRSS")
metric.compute()
print(of("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from /proc")
def test_compute__memory_of_the_coco_test_set() -> None:
    """5,000 images x 25,000 captions of the width of BEiT-3 base."""
    script = MEMORY_SCRIPT.format(images=5000, texts=25000)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert float(result.stdout) < 400
