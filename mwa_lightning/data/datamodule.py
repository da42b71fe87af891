"""The data of a retrieval run: finds it, checks what can be checked at once, and makes the loaders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np

from mwa_lightning.data.images import ImageReader
from mwa_lightning.data.loading import (
    ImageCollate,
    ImageDataset,
    Ledger,
    Loader,
    TextCollate,
    TextDataset,
    TrainCollate,
    TrainDataset,
)
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.records import RetrievalSplit
from mwa_lightning.data.sampling import GlobalBatchSampler, ShardSampler
from mwa_lightning.data.sources import Source, find_source, layout_named, prepare_scenes, scenes_root
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.data.transforms import EvaluationTransform, TrainTransform
from mwa_lightning.errors import ConfigError, DataError

_CHECKED_FILES = 2000  # how many images of a split are looked for at the start; slow disks have 120,000


class RetrievalDataModule(lightning.LightningDataModule):
    """Images and captions for training and evaluating retrieval.

    Args:
        layout: How the data set lies on disk: scenes, coco, flickr30k, karpathy or pairs.
        tokenizer: Turns captions into ids.
        image_size: Side of the square that images are resized to.
        batch_size: Captions in a training batch of one process; the global batch is that of all together.
        eval_batch_size: Images, and captions, encoded at once by one process in evaluation.
        seed: Seed of the order and the augmentation.
        root: Folder of the data set (see `find_source`); for scenes None is the user's cache folder.
        annotations: Another name of the file of annotations; relative to `root`.
        images: Another folder of the images; relative to `root`.
        num_workers: Processes that decode images; 0 = decode where the training runs.
        max_bad_images: Images that may be unreadable in training, each replaced by another; evaluation
            allows none.
        exif: Turn images as the camera noted; None = as is right for the layout.
        randaugment: Apply the official RandAugment in training.
        horizontal_flip: Mirror every second image in training.
        crop_scale: Least and largest area of the random crop, as shares of the image's.
        drop_last: Leave out a last training batch that is not full.
        one_k: Whether the test metric also has the mean over consecutive thousands (for the metric to read).
        split: The split that `test_dataloader` gives.
        domain: For scenes: source or target.

    Raises:
        ConfigError: A value is out of range.
    """

    def __init__(
        self,
        *,
        layout: str,
        tokenizer: SentencePieceTokenizer,
        image_size: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int = 42,
        root: str | Path | None = None,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        num_workers: int = 0,
        max_bad_images: int = 0,
        exif: bool | None = None,
        randaugment: bool = False,
        horizontal_flip: bool = True,
        crop_scale: Sequence[float] = (0.5, 1.0),
        drop_last: bool = True,
        one_k: bool = False,
        split: str = "test",
        domain: str = "target",
    ) -> None:
        super().__init__()
        layout_named(layout)
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _at_least(0, num_workers=num_workers, max_bad_images=max_bad_images)
        if seed < 0:
            raise ConfigError(f"seed={seed}: give 0 or more")
        if len(crop_scale) != 2:
            raise ConfigError(f"data.crop_scale={list(crop_scale)}: give two numbers, the least and the largest area")
        self.layout = layout
        self.root = scenes_root(domain=domain) if layout == "scenes" and root is None else root
        self.annotations = annotations
        self.images = images
        self.domain = domain
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.exif = exif
        self.drop_last = drop_last
        self.one_k = one_k
        self.test_split = split
        self.train_transform = TrainTransform(
            image_size=image_size,
            seed=seed,
            crop_scale=(float(crop_scale[0]), float(crop_scale[1])),
            horizontal_flip=horizontal_flip,
            randaugment=randaugment,
        )
        self.transform = EvaluationTransform(image_size=image_size)
        self.ledger = Ledger(max_bad_images=max_bad_images, tokenizer=tokenizer)
        self.sampler: GlobalBatchSampler | None = None
        self._sampler_state: dict[str, Any] | None = None
        self._source: Source | None = None
        self._splits: dict[str, RetrievalSplit] = {}
        self._looked_for: set[str] = set()

    @property
    def bad_images(self) -> dict[str, str]:
        """Path and reason of every image that this process replaced in training."""
        return self.ledger.bad_images

    def prepare_data(self) -> None:
        """Make the built-in data set unless it is there."""
        if self.layout == "scenes":
            assert self.root is not None
            prepare_scenes(Path(self.root).expanduser(), domain=self.domain)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations, and look whether the images are there.

        Raises:
            ConfigError: The split to test does not exist, or the global batch is too small.
            DataError: Something is missing, damaged or empty.
        """
        if self._source is None:
            self._source = find_source(
                layout=self.layout, root=self.root, annotations=self.annotations, images=self.images
            )
            self._splits = self._source.read(Problems())
        needed = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": (self.test_split,),
            "predict": (self.test_split,),
        }
        for name in needed[stage] if stage is not None else ("train", "val", self.test_split):
            self._look_for_images(self.split(name))
            if name == "train" and (self.trainer is not None or self.batch_size > 1):
                self._make_sampler()  # refuses a global batch of one; how many processes there are, a trainer tells

    def split(self, name: str) -> RetrievalSplit:
        """A split of the data set.

        Raises:
            ConfigError: No split has this name.
        """
        assert self._source is not None, "setup comes first"
        if name in self._splits:
            return self._splits[name]
        there = ", ".join(f"{split.name} ({len(split.pictures):,} images)" for split in self._splits.values())
        problem = f"the split {name!r} has no items in {self._source.annotations}: it has {there or 'none'}"
        if name in ("train", "val", "test"):
            raise DataError(f"{problem}; add some, or choose another split")
        raise ConfigError(f"{problem}; set split to one of these")

    def train_dataloader(self) -> Loader:
        """Batches of augmented image-caption pairs (TrainBatch), from the place of a loaded state on."""
        sampler = self.sampler = self._make_sampler()
        if self._sampler_state is not None:
            sampler.load_state_dict(self._sampler_state)
            self._sampler_state = None
        dataset = TrainDataset(
            split=self.split("train"),
            reader=self._reader,
            transform=self.train_transform,
            batch_size=sampler.batch_size,
            max_bad_images=self.ledger.max_bad_images,
        )
        collate = TrainCollate(tokenizer=self.tokenizer, image_size=self.train_transform.image_size)
        return self._loader(dataset=dataset, batch_sampler=sampler, collate_fn=collate)

    def val_dataloader(self) -> list[Loader]:
        """The images, then the captions, of the validation split."""
        return self.evaluation_dataloaders("val")

    def test_dataloader(self) -> list[Loader]:
        """The images, then the captions, of the split to test."""
        return self.evaluation_dataloaders(self.test_split)

    def evaluation_dataloaders(self, name: str) -> list[Loader]:
        """Every image of a split once (ImageBatch), then every caption (TextBatch), in file order."""
        split = self.split(name)
        images = self._loader(
            dataset=ImageDataset(split=split, reader=self._reader, transform=self.transform),
            batch_sampler=self._shard(len(split.pictures)),
            collate_fn=ImageCollate(image_size=self.transform.image_size),
        )
        texts = self._loader(
            dataset=TextDataset(split=split),
            batch_sampler=self._shard(len(split.captions)),
            collate_fn=TextCollate(tokenizer=self.tokenizer),
            num_workers=0,
        )
        return [images, texts]

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data, and the images that were replaced so far."""
        sampler = self.sampler.state_dict() if self.sampler is not None else self._sampler_state
        return {"sampler": sampler, "bad_images": dict(self.bad_images)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved place: at once, or when the training loader is made."""
        self.ledger.bad_images = dict(state_dict["bad_images"])
        if self.sampler is not None and state_dict["sampler"] is not None:
            self.sampler.load_state_dict(state_dict["sampler"])
        else:
            self._sampler_state = state_dict["sampler"]

    @property
    def _reader(self) -> ImageReader:
        assert self._source is not None, "setup comes first"
        return self._source.image_reader(exif=self.exif)

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _make_sampler(self) -> GlobalBatchSampler:
        rank, world_size = self._ranks
        return GlobalBatchSampler(
            length=len(self.split("train").captions),
            batch_size=self.batch_size * world_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
        )

    def _shard(self, length: int) -> ShardSampler:
        rank, world_size = self._ranks
        return ShardSampler(length=length, batch_size=self.eval_batch_size, rank=rank, world_size=world_size)

    def _loader(self, *, num_workers: int | None = None, **options: Any) -> Loader:
        workers = self.num_workers if num_workers is None else num_workers
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(
            ledger=self.ledger,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            **options,
        )

    def _look_for_images(self, split: RetrievalSplit) -> None:
        """Look whether files are there and not empty: all of a small split, some of a large one."""
        if split.name in self._looked_for:
            return
        count = len(split.pictures)
        places = np.unique(np.linspace(0, count - 1, num=min(count, _CHECKED_FILES)).astype(int))
        allowed = self.ledger.max_bad_images if split.name == "train" else 0
        for place in places:
            path = split.pictures[int(place)].path
            try:
                whole = os.stat(path).st_size > 0  # noqa: PTH116
            except OSError:
                whole = False
            if not whole:
                allowed -= 1
            if allowed < 0:
                self._reader(path)  # says what is wrong
        self._looked_for.add(split.name)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"data.{name}={value}: give {least} or more")
