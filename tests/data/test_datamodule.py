"""What the loaders give, and what is refused before a run begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.samples.records import ImageBatch, TextBatch, TrainBatch
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import ConfigError, DataError

Write = Callable[..., Path]


def _module(root: Path | None, tokenizer: SentencePieceTokenizer, **options: Any) -> RetrievalDataModule:
    options = {"layout": "karpathy", "batch_size": 4, "eval_batch_size": 3, "seed": 1, **options}
    return RetrievalDataModule(root=root, tokenizer=tokenizer, image_size=8, **options)


def test_train_dataloader__batches(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    module = _module(write_karpathy(), tokenizer)
    module.setup("fit")
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    for batch in batches:
        assert isinstance(batch, TrainBatch)
        assert batch.images.shape == (4, 3, 8, 8)
        assert batch.images.dtype is torch.uint8
        assert batch.image_ids.dtype is torch.int64
    names = sorted(name for batch in batches for name in batch.sample_ids)
    assert names == sorted(f"{i:03}.png#{100 + 2 * i + j}" for i in range(8) for j in range(2))
    assert sorted(i for batch in batches for i in batch.image_ids.tolist()) == sorted(2 * list(range(10, 18)))
    assert module.sampler is not None
    module.sampler.set_epoch(1)
    again = list(loader)
    assert [batch.sample_ids for batch in again] != [batch.sample_ids for batch in batches]


def test_first_batches__are_those_of_training_and_move_nothing(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer
) -> None:
    module = _module(write_karpathy(), tokenizer)
    module.setup("fit")
    loader = module.train_dataloader()
    for samples, count in ((1, 1), (5, 2), (100, 4)):
        first = module.first_batches(loader, samples=samples)
        assert len(first) == count
        assert module.sampler is not None
        assert module.sampler.next_batch == 0
        assert not module.ledger.truncated
        for ours, batch in zip(first, loader, strict=False):
            assert ours.sample_ids == batch.sample_ids
            assert ours.shares == batch.shares == (4,)
            assert torch.equal(ours.images, batch.images)
            assert torch.equal(ours.ids, batch.ids)
        module.sampler.next_batch = 0
        module.ledger.truncated.clear()


def test_test_dataloader__file_order(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    module = _module(write_karpathy(), tokenizer)
    module.setup("test")
    images, texts = (list(loader) for loader in module.test_dataloader())
    assert all(isinstance(batch, ImageBatch) for batch in images)
    assert all(isinstance(batch, TextBatch) for batch in texts)
    assert torch.cat([batch.image_index for batch in images]).tolist() == [0, 1, 2, 3]
    assert torch.cat([batch.text_index for batch in texts]).tolist() == list(range(8))
    assert torch.cat([batch.image_index for batch in texts]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    split = module.split("test")
    pixels = torch.cat([batch.images for batch in images])
    for picture, tensor in zip(split.pictures, pixels, strict=True):
        with Image.open(picture.path) as image:
            expected = np.asarray(image.resize((8, 8), resample=Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.array_equal(tensor.numpy(), expected)


def test_setup__batch_larger_than_the_split(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    module = _module(write_karpathy(), tokenizer, batch_size=100)
    module.setup("fit")
    assert [len(batch.images) for batch in module.train_dataloader()] == [16]


def test_setup__other_split_to_test(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    module = _module(write_karpathy(splits={"train": 2, "val": 1, "extra": 3}), tokenizer, split="extra")
    module.setup("test")
    assert sum(len(batch.images) for batch in module.test_dataloader()[0]) == 3
    with pytest.raises(ConfigError, match=r"'none' has no items in .*: it has train \(2 images\), val"):
        _module(module.root, tokenizer, split="none").setup("test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"'test' has no items in .*dataset.json: it has train"):
        _module(module.root, tokenizer).setup("test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 1}, "global batches of one"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"max_bad_images": -1}, "data.max_bad_images=-1"),
        ({"crop_scale": [0.5]}, "data.crop_scale"),
        ({"crop_scale": [0.5, 2]}, "data.crop_scale"),
        ({"seed": -1}, "seed=-1"),
        ({"layout": "coc"}, "data.layout='coc' is unknown: choose one of scenes, coco"),
    ],
)
def test_setup__out_of_range(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, options: dict[str, Any], says: str
) -> None:
    def load() -> None:
        module = _module(write_karpathy(), tokenizer, **options)
        module.setup("fit")
        module.train_dataloader()

    with pytest.raises(ConfigError) as caught:
        load()
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [None, b""])
def test_setup__image_missing_or_empty(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, content: bytes | None
) -> None:
    root = write_karpathy()
    for number, stage in ((3, "fit"), (12, "test")):
        path = root / "pictures" / f"{number:03}.png"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match="is missing" if content is None else "has 0 bytes") as caught:
            _module(root, tokenizer).setup(stage)
        assert str(path) in str(caught.value)
    module = _module(root, tokenizer, max_bad_images=1)
    module.setup("fit")
    assert len(list(module.train_dataloader())) == 4
    assert list(module.bad_images) == [str(root / "pictures" / "003.png")]


def test_setup__image_that_does_not_decode(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    """In what is evaluated it is found at once, in training when it comes up: there some may be bad."""
    root = write_karpathy()
    for number, stages in ((3, ()), (9, ("fit",)), (12, ("test",))):
        path = root / "pictures" / f"{number:03}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        for stage in ("fit", "test"):
            if stage in stages:
                with pytest.raises(DataError, match="does not decode") as caught:
                    _module(root, tokenizer).setup(stage)
                assert str(path) in str(caught.value)
            else:
                _module(root, tokenizer).setup(stage)
        path.write_bytes(whole)


def test_setup__decodes_2000_of_a_large_split_once(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reader(self: ImageReader, path: str) -> None:
        read.append(path)

    monkeypatch.setattr(ImageReader, "__call__", reader)
    monkeypatch.setattr("mwa_lightning.data.first_look._CHECKED_FILES", 3)
    module = _module(write_karpathy(splits={"train": 4, "val": 2, "test": 9}), tokenizer)
    for _ in range(2):
        module.setup("test")
    assert [Path(path).name for path in read] == ["006.png", "010.png", "014.png"]


class _Recorder(lightning.LightningModule):
    """Trains nothing much, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[str]]] = []
        self.evaluated = [0, 0]

    def training_step(self, batch: TrainBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch_idx, batch.sample_ids))
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluated[dataloader_idx] += len(batch.image_index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Saver(lightning.Callback):
    """Saves after every second step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step % 2 == 0:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def _fit(root: Path, tokenizer: SentencePieceTokenizer, *, checkpoint: Path | None = None) -> _Recorder:
    model = _Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        callbacks=[_Saver(root)] if checkpoint is None else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=_module(root, tokenizer), ckpt_path=checkpoint)
    return model


@pytest.mark.filterwarnings("ignore")
def test_datamodule__with_a_trainer(write_karpathy: Write, tokenizer: SentencePieceTokenizer) -> None:
    root = write_karpathy()
    whole = _fit(root, tokenizer)
    assert len(whole.seen) == 12
    assert whole.evaluated == [9, 18]
    assert len({name for _, names in whole.seen[:4] for name in names}) == 16
    assert [names for _, names in whole.seen[:4]] != [names for _, names in whole.seen[4:8]]
    for steps in (2, 4, 6):
        rest = _fit(root, tokenizer, checkpoint=root / f"{steps}.ckpt")
        assert rest.seen == whole.seen[steps:], steps


def test_setup__images_of_two_splits_are_warned_of_once(
    write_karpathy: Write, tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_karpathy()
    (annotations,) = root.glob("*.json")
    content = json.loads(annotations.read_text())
    again = next(image for image in content["images"] if image["split"] == "train")
    numbered = [{**sentence, "sentid": 9000 + n} for n, sentence in enumerate(again["sentences"])]
    content["images"].append({**again, "split": "val", "sentences": numbered, "imgid": 9000, "cocoid": 9000})
    annotations.write_text(json.dumps(content))
    module = _module(root, tokenizer)
    module.setup("fit")
    module.setup("fit")
    said = [record.getMessage() for record in caplog.records if "also in the train split" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("split val: 1 of 4 images is also in the train split, so its metrics will be too high")
