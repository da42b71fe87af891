"""What the loaders of statements give, how bad images are replaced, and what is refused before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mwa_lightning.data import built_in
from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.images.transforms import EvaluationTransform
from mwa_lightning.data.loading.sampling import epoch_order
from mwa_lightning.data.loading.statement_datasets import StatementCollate, swap_sides
from mwa_lightning.data.samples.statements import StatementBatch
from mwa_lightning.data.scenes.writing import VERSION, write_scenes_nlvr2
from mwa_lightning.data.statement_datamodule import StatementDataModule
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import ConfigError, DataError

Write = Callable[..., Path]


def _module(root: Path | None, tokenizer: SentencePieceTokenizer, **options: Any) -> StatementDataModule:
    options = {"layout": "jsonl", "batch_size": 4, "eval_batch_size": 3, "seed": 1, "horizontal_flip": False, **options}
    return StatementDataModule(root=root, tokenizer=tokenizer, image_size=8, **options)


def _fitted(root: Path, tokenizer: SentencePieceTokenizer, **options: Any) -> StatementDataModule:
    module = _module(root, tokenizer, **options)
    module.setup("fit")
    return module


@pytest.mark.parametrize("k", [1, 2, 3])
def test_train_dataloader__batches(write_statements: Write, tokenizer: SentencePieceTokenizer, k: int) -> None:
    module = _fitted(write_statements(images_a_sample=k), tokenizer)
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    split = module.split("train")
    assert (module.classes, module.images_a_sample) == (("0", "1"), k)
    for batch in batches:
        assert isinstance(batch, StatementBatch)
        assert batch.images.shape == (4, k, 3, 8, 8)
        assert batch.images.dtype is torch.uint8
        assert batch.ids.shape == batch.mask.shape
        assert batch.mask.dtype is torch.bool
        assert batch.labels.tolist() == split.statements.labels[batch.sample_index.numpy()].tolist()
        assert batch.sample_ids == [split.sample_id(i) for i in batch.sample_index.tolist()]
    assert sorted(i for batch in batches for i in batch.sample_index.tolist()) == list(range(8))
    assert [i for batch in batches for i in batch.sample_index.tolist()] == epoch_order(
        seed=1, epoch=0, length=8
    ).tolist()


def test_train_dataloader__each_image_is_augmented_on_its_own(
    write_statements: Write, tokenizer: SentencePieceTokenizer
) -> None:
    module = _fitted(write_statements(), tokenizer, horizontal_flip=True)
    split, reader = module.split("train"), ImageReader(exif=True, scale_deep=True)
    epochs = []
    for epoch in range(2):
        loader = module.train_dataloader()
        assert module.sampler is not None
        module.sampler.set_epoch(epoch)
        batches = list(loader)
        epochs.append({i: batch.images[j] for batch in batches for j, i in enumerate(batch.sample_index.tolist())})
        for index, images in epochs[-1].items():
            for place, image in zip(split.statements[index].image_index, images, strict=True):
                picture = split.pictures[place]
                wanted = module.train_transform(reader(picture.path), epoch=epoch, image_id=picture.image_id)
                assert torch.equal(image, wanted)
    assert not all(torch.equal(epochs[0][i], epochs[1][i]) for i in range(8))


def test_train_dataloader__images_change_places(write_statements: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_statements(splits={"train": 40, "val": 2})
    plain, swapped, again = (
        {
            name: (images, ids)
            for batch in _fitted(root, tokenizer, swap_images=swap).train_dataloader()
            for name, images, ids in zip(batch.sample_ids, batch.images, batch.ids, strict=True)
        }
        for swap in (False, True, True)
    )
    text = _fitted(root, tokenizer).split("train").statements.texts
    number = 0
    for i in range(40):
        (images, ids), (other, other_ids) = plain[f"statements-{i + 1}"], swapped[f"statements-{i + 1}"]
        turned = not torch.equal(images, other)
        assert torch.equal(images.flip(0) if turned else images, other)
        assert torch.equal(other_ids, tokenizer([swap_sides(text[i]) if turned else text[i]])[0][0])
        assert torch.equal(other_ids, ids) != turned
        assert torch.equal(other, again[f"statements-{i + 1}"][0])
        number += turned
    assert 10 < number < 30


def test_swap_sides__whole_words_in_their_case() -> None:
    assert swap_sides("Left of the RIGHT one, leftmost; right.") == "Right of the LEFT one, leftmost; left."


def test_train_dataloader__swapping_needs_two(write_statements: Write, tokenizer: SentencePieceTokenizer) -> None:
    module = _fitted(write_statements(images_a_sample=1), tokenizer, swap_images=True)
    with pytest.raises(ConfigError, match=r"data.swap_images=true: a statement has 1 image here, and only two"):
        module.train_dataloader()


def test_train_dataloader__batches_of_one(write_statements: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_statements(splits={"train": 5, "val": 1})
    sizes = [len(batch.labels) for batch in _fitted(root, tokenizer, drop_last=False).train_dataloader()]
    assert sizes == [4, 1]
    assert [len(batch.labels) for batch in _fitted(root, tokenizer, batch_size=1).train_dataloader()] == [1] * 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_test_dataloader__file_order(
    write_statements: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    module = _module(write_statements(), tokenizer, num_workers=num_workers)
    module.setup("test")
    (loader,) = module.test_dataloader()
    batches = list(loader)
    assert torch.cat([batch.sample_index for batch in batches]).tolist() == list(range(5))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [1, 0, 1, 0, 1]
    split, transform = module.split("test"), EvaluationTransform(image_size=8)
    pixels = torch.cat([batch.images for batch in batches])
    for statement, images in zip(split.statements, pixels, strict=True):
        for place, image in zip(statement.image_index, images, strict=True):
            with Image.open(split.pictures[place].path) as picture:
                assert torch.equal(image, transform(picture))


def test_evaluation_dataloaders__ranks_share_the_split(
    write_statements: Write, tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_statements()
    seen = []
    for rank in range(3):
        module = _module(root, tokenizer, eval_batch_size=1)
        module.setup("test")
        monkeypatch.setattr(StatementDataModule, "_ranks", (rank, 3))
        batches = list(module.test_dataloader()[0])
        assert len(batches) == 2
        seen += [i for batch in batches for i in batch.sample_index.tolist()]
    assert seen == list(range(5))


def _spoil(root: Path, *names: str) -> list[str]:
    paths = [root / "pictures" / name for name in names]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-200])
    return [str(path) for path in paths]


def test_train_dataloader__replaces_bad_images(
    write_statements: Write, tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_statements()
    intact = list(_fitted(root, tokenizer).train_dataloader())
    bad = _spoil(root, "002-1.png", "005-0.png")
    module = _fitted(root, tokenizer, max_bad_images=2)
    batches = list(module.train_dataloader())
    order = epoch_order(seed=1, epoch=0, length=8).tolist()
    for i, (before, after) in enumerate(zip(intact, batches, strict=True)):
        for j in range(4):
            index = order[4 * i + j]
            if index in (2, 5):
                outside = [order[(4 * i + j + 4 + k) % 8] for k in range(8) if (4 * i + j + 4 + k) % 8 // 4 != i]
                index = next(other for other in outside if other not in (2, 5))
            else:
                assert torch.equal(before.images[j], after.images[j])
            assert after.sample_index[j] == index
            assert after.labels[j] == index % 2
    assert sorted(module.bad_images) == sorted(bad)
    assert len(caplog.records) == 2
    with pytest.raises(DataError, match=r"data.max_bad_images=1"):
        list(_fitted(root, tokenizer, max_bad_images=1).train_dataloader())


def test_val_dataloader__allows_no_bad_image(write_statements: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_statements()
    module = _fitted(root, tokenizer, max_bad_images=5)
    (path,) = _spoil(root, "009-1.png")  # after the look at the start
    with pytest.raises(DataError, match="does not decode") as caught:
        list(module.val_dataloader()[0])
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loader__cut_statements_are_counted_and_said_once_a_split(
    write_statements: Write, tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def lengthen(samples: list[dict[str, Any]]) -> None:
        for place in (0, 3, 9):
            samples[place]["text"] = "star " * 40

    module = _fitted(write_statements(change=lengthen), tokenizer, batch_size=1)
    with caplog.at_level(logging.WARNING):
        batches = list(module.train_dataloader())
        list(module.val_dataloader()[0])
    assert module.ledger.truncated == {"train": 2, "val": 1}
    assert max(batch.ids.shape[1] for batch in batches) == 16
    assert [record.getMessage().partition(" are truncated")[0] for record in caplog.records] == [
        "split train: texts of more than 16 tokens",
        "split val: texts of more than 16 tokens",
    ]


def test_statement_collate__rank_without_samples(tokenizer: SentencePieceTokenizer) -> None:
    outcome = StatementCollate(tokenizer=tokenizer, image_size=8, images_a_sample=2)([])
    assert outcome.batch.images.shape == (0, 2, 3, 8, 8)
    assert outcome.batch.labels.shape == outcome.batch.sample_index.shape == (0,)


def test_setup__refused(write_statements: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_statements(splits={"train": 2, "test": 1})
    with pytest.raises(DataError, match=r"'val' has no items in .*statements.jsonl: it has train \(4 images\), test"):
        _module(root, tokenizer).setup("fit")
    with pytest.raises(ConfigError, match=r"data.layout='coco' holds no statements"):
        _module(root, tokenizer, layout="coco")
    with pytest.raises(ConfigError, match=r"data.classes=\[a,a\]: name two classes or more, each of them once"):
        _module(root, tokenizer, classes=["a", "a"])
    with pytest.raises(DataError, match="label '0', which is none of the classes 1, 2"):
        _module(root, tokenizer, classes=[1, 2]).setup("test")
    with pytest.raises(DataError, match="does not exist"):
        _module(root / "none", tokenizer).setup("fit")
    second = root / "pictures" / "002-1.png"
    second.unlink()
    with pytest.raises(DataError, match="is missing") as caught:
        _module(root, tokenizer).setup("test")
    assert str(second) in str(caught.value)


def test_setup__nlvr2_without_a_file(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_scenes_nlvr2(tmp_path / "set", domain="source", seed=0, train=4, dev=4, test=4)
    (tmp_path / "set" / "nlvr" / "nlvr2" / "data" / "dev.json").unlink()
    module = _module(tmp_path / "set", tokenizer, layout="nlvr2")
    module.setup("test")
    with pytest.raises(DataError, match=r"'val' has no items in .*dev.json: there is no such file"):
        module.setup("fit")


def test_prepare_data__scenes_in_the_cache(
    tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MWA_CACHE", str(tmp_path))
    monkeypatch.setattr(built_in, "SCENES_NLVR2", {"seed": 0, "train": 8, "dev": 4, "test": 4})
    module = _module(None, tokenizer, layout="scenes_nlvr2", domain="source")
    module.prepare_data()
    module.setup()
    assert [path.name for path in tmp_path.iterdir()] == [f"scenes-nlvr2-v{VERSION}-source-0-8-4-4"]
    assert module.classes == ("False", "True")
    assert sum(len(batch.labels) for batch in module.train_dataloader()) == 8
    assert module.split("test").groups is not None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_datamodule__goes_on_within_an_epoch(
    write_statements: Write, tokenizer: SentencePieceTokenizer, num_workers: int
) -> None:
    root = write_statements(splits={"train": 16, "val": 2})
    whole = list(_fitted(root, tokenizer, swap_images=True).train_dataloader())
    first = _fitted(root, tokenizer, swap_images=True, num_workers=num_workers)
    batches = iter(first.train_dataloader())
    for _ in range(3):
        next(batches)
    second = _fitted(root, tokenizer, swap_images=True, num_workers=num_workers)
    second.load_state_dict(first.state_dict())
    loader = second.train_dataloader()
    (rest,) = list(loader)
    assert rest.sample_ids == whole[3].sample_ids
    assert all(torch.equal(one, other) for one, other in zip(rest[:5], whole[3][:5], strict=True))
    assert len(list(loader)) == 4  # and from the start again
