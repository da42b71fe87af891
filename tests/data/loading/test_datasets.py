"""A bad image is replaced by a rule and counted, an error arrives as one line, with any number of workers."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.loading.datasets import TrainCollate
from mwa_lightning.data.loading.sampling import epoch_order
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import DataError

Write = Callable[..., Path]


def _module(root: Path, tokenizer: SentencePieceTokenizer, **options: Any) -> RetrievalDataModule:
    options = {"batch_size": 4, "eval_batch_size": 3, "seed": 1, **options}
    module = RetrievalDataModule(layout="karpathy", root=root, tokenizer=tokenizer, image_size=8, **options)
    module.setup("fit")
    return module


def _spoil(root: Path, *numbers: int) -> list[str]:
    """Damage images so that only decoding tells."""
    paths = [root / "pictures" / f"{number:03}.png" for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-200])
    return [str(path) for path in paths]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader__replaces_bad_images(
    write_karpathy: Write,
    tokenizer: SentencePieceTokenizer,
    caplog: pytest.LogCaptureFixture,
    num_workers: int,
) -> None:
    root = write_karpathy()
    intact = list(_module(root, tokenizer).train_dataloader())
    bad = _spoil(root, 2, 5)
    module = _module(root, tokenizer, max_bad_images=2, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = list(module.train_dataloader())
    order = epoch_order(seed=1, epoch=0, length=16)
    split = module.split("train")
    image_of = split.captions.image_index
    replaced = 0
    for i, (before, after) in enumerate(zip(intact, batches, strict=True)):
        for j in range(4):
            position = i * 4 + j
            if image_of[order[position]] not in (2, 5):
                assert before.sample_ids[j] == after.sample_ids[j]
                assert torch.equal(before.images[j], after.images[j])
                continue
            replaced += 1
            outside = [(position + 4 + k) % 16 for k in range(16) if (position + 4 + k) % 16 // 4 != i]
            wanted = next(int(order[p]) for p in outside if image_of[order[p]] not in (2, 5))
            assert after.sample_ids[j] == split.sample_id(wanted)
            assert after.image_ids[j] == split.pictures[image_of[wanted]].image_id
    assert replaced == 4
    assert sorted(module.bad_images) == sorted(bad)
    assert len(caplog.records) == 2
    assert all(any(path in record.getMessage() for record in caplog.records) for path in bad)
    list(module.train_dataloader())  # the same images again are not counted again
    assert len(module.bad_images) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader__every_kind_of_bad_image_counts(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    """No kind of damage, and nothing that is no picture or no file, gets past what may be bad, or hangs."""
    root = write_karpathy(splits={"train": 12, "val": 2})
    module = _module(root, tokenizer, max_bad_images=8, num_workers=num_workers)
    bad = [root / "pictures" / f"{number:03}.png" for number in range(8)]
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(whole, "WEBP")
    for path, content in zip(
        bad[:4], (b"%!PS-Adobe", whole.getvalue()[:60], b"<html>", b"\x89PNG\r\n\x1a\n\0\0"), strict=True
    ):
        path.write_bytes(content)
    for path in bad[4:]:
        path.unlink()
    os.mkfifo(bad[4])
    bad[5].symlink_to("/dev/zero")
    bad[6].mkdir()
    list(module.train_dataloader())
    assert sorted(module.bad_images) == sorted(map(str, bad))
    with pytest.raises(DataError, match=r"data.max_bad_images=7: mwa-prepare"):
        list(_module(root, tokenizer, max_bad_images=7, num_workers=num_workers).train_dataloader())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader__too_many_bad_images(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    root = write_karpathy()
    bad = _spoil(root, 2, 5)
    for allowed in (0, 1):
        module = _module(root, tokenizer, max_bad_images=allowed, num_workers=num_workers)
        with pytest.raises(DataError, match=f"data.max_bad_images={allowed}") as caught:
            list(module.train_dataloader())
        assert any(path in str(caught.value) for path in bad)
        assert "\n" not in str(caught.value)


def test_loader__no_image_decodes(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_karpathy(splits={"train": 3, "val": 2})
    _spoil(root, 0, 1, 2)
    module = _module(root, tokenizer, max_bad_images=100)
    with pytest.raises(DataError, match="does not decode"):
        list(module.train_dataloader())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader__evaluation_drops_none(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    root = write_karpathy()
    module = _module(root, tokenizer, max_bad_images=5, num_workers=num_workers)
    (path,) = _spoil(root, 9)  # after the look at the start
    images, texts = module.val_dataloader()
    with pytest.raises(DataError, match="does not decode") as caught:
        list(images)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sum(len(batch.ids) for batch in texts) == 6


def test_loader__same_batches_with_workers(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_karpathy()
    alone, helped = (
        list(_module(root, tokenizer, num_workers=workers, randaugment=True).train_dataloader()) for workers in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        assert one.sample_ids == other.sample_ids


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader__goes_on_within_an_epoch(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    root = write_karpathy()
    whole = list(_module(root, tokenizer).train_dataloader())
    first = _module(root, tokenizer, num_workers=num_workers)
    batches = iter(first.train_dataloader())
    for _ in range(3):
        next(batches)
    state = first.state_dict()
    assert state["sampler"]["next_batch"] == 3  # though workers have fetched more
    second = _module(root, tokenizer, num_workers=num_workers)
    second.load_state_dict(state)
    loader = second.train_dataloader()
    assert len(loader) == 4
    (rest,) = list(loader)
    assert rest.sample_ids == whole[3].sample_ids
    assert torch.equal(rest.images, whole[3].images)
    assert len(list(loader)) == 4  # and from the start again


def test_loader__notes_cut_captions(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    def lengthen(data: dict[str, Any]) -> None:
        data["images"][0]["sentences"][0]["raw"] = "star " * 40

    module = _module(write_karpathy(change=lengthen), tokenizer, num_workers=1)
    list(module.train_dataloader())
    assert tokenizer.truncated == 1
    assert module.ledger.truncated == {"train": 1}


def test_train_collate__rank_without_samples(tokenizer: SentencePieceTokenizer) -> None:
    outcome = TrainCollate(tokenizer=tokenizer, image_size=8)([])
    assert isinstance(outcome.batch, TrainBatch)
    assert outcome.batch.images.shape == (0, 3, 8, 8)
    assert outcome.batch.ids.shape == outcome.batch.mask.shape == (0, 2)
    assert outcome.batch.sample_ids == []
