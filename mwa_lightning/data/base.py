"""What the data of every task has in common: it is found, checked as far as can be at once, and loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning
from PIL import Image

from mwa_lightning.data.built_in import BUILT_IN, prepare_scenes, scenes_root
from mwa_lightning.data.first_look import look_at_images, look_at_texts, look_at_training
from mwa_lightning.data.images.randaugment import USUAL_MAGNITUDE
from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.images.transforms import EvaluationTransform, Interpolation, Resize, TrainTransform
from mwa_lightning.data.layouts import layout_named
from mwa_lightning.data.loading.datasets import Loader, ReplacingDataset
from mwa_lightning.data.loading.global_batch import kept_global_batch
from mwa_lightning.data.loading.ledger import Ledger, Outcome
from mwa_lightning.data.loading.sampling import GlobalBatchSampler, ShardSampler
from mwa_lightning.data.loading.worker_processes import WorkerContext, begin
from mwa_lightning.data.samples.identity import SplitIdentity, split_identity, tokenizer_identity
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.sources import Source, find_source
from mwa_lightning.data.storage.stores import DamagedShard
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import ConfigError, DataError, counted

SplitT = TypeVar("SplitT", RetrievalSplit, StatementSplit)


class SplitDataModule(lightning.LightningDataModule, Generic[SplitT]):
    """Finds a data set, checks what can be checked at once, and makes the loaders.

    Args:
        layout: How the data set lies on disk: one of the names in `sources.LAYOUTS`.
        tokenizer: Turns texts into ids.
        image_size: Side of the square that images are resized to.
        resize: What evaluation makes of images that are no squares (see `EvaluationTransform`).
        interpolation: How images are resized: bicubic or bilinear.
        batch_size: Samples in a training batch of one process; the global batch is that of all together.
        eval_batch_size: Images, texts or samples encoded at once by one process in evaluation.
        seed: Seed of the order and the augmentation.
        root: Folder of the data set (see `find_source`); for the built-in sets None is the user's cache folder.
        annotations: Another name of the annotations; relative to `root`.
        images: Another folder of the images; relative to `root`.
        shards: Folder of its shards, which takes the place of all three.
        columns: Which columns of a table hold image, caption and split; None = found by their names.
        val_share: How much of train becomes val, by a hash of its images, where there is no val.
        skip_bad_rows: Rows of annotations that cannot be used, and are left out: of train only.
        skip_bad_rows_in_eval: Leave such rows out of the other splits too.
        num_workers: Processes that decode images; 0 = decode where the training runs.
        max_bad_images: Images that may be unreadable in training, each replaced by another; evaluation
            allows none.
        exif: Turn images as the camera noted; None = as is right for the layout.
        background: Colour on which transparent images are laid, None for none; "auto" = as is right for the layout.
        randaugment: Apply the official RandAugment in training.
        randaugment_magnitude: How much it does, of 10.
        horizontal_flip: Mirror every second image in training.
        crop_scale: Least and largest area of the random crop, as shares of the image's.
        drop_last: Leave out a last training batch that is not full.
        split: The split that `test_dataloader` gives.
        domain: For the built-in sets: source or target.

    Raises:
        ConfigError: A value is out of range.
    """

    split_type: type[SplitT]
    smallest_batch = 2  # fewest samples of a global batch that can be trained on
    given_classes: tuple[str, ...] | None = None  # what labels may say, where there are any and the user says

    def __init__(
        self,
        *,
        layout: str,
        tokenizer: Tokenizer,
        image_size: int,
        batch_size: int,
        eval_batch_size: int,
        seed: int = 42,
        root: str | Path | None = None,
        annotations: str | Path | Sequence[str] | Mapping[str, Any] | None = None,
        images: str | Path | None = None,
        shards: str | Path | None = None,
        columns: Mapping[str, Any] | None = None,
        val_share: float | None = None,
        skip_bad_rows: int = 0,
        skip_bad_rows_in_eval: bool = False,
        num_workers: int = 0,
        max_bad_images: int = 0,
        exif: bool | None = None,
        background: str | Sequence[int] | None = "auto",
        randaugment: bool = False,
        randaugment_magnitude: int = USUAL_MAGNITUDE,
        horizontal_flip: bool = True,
        crop_scale: Sequence[float] = (0.5, 1.0),
        drop_last: bool = True,
        split: str = "test",
        domain: str = "target",
        resize: Resize = "stretch",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        if layout_named(layout).split_type is not self.split_type:
            raise ConfigError(f"data.layout={layout!r} holds no {self.split_type.samples_are}: choose another data=")
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _at_least(0, num_workers=num_workers, max_bad_images=max_bad_images, skip_bad_rows=skip_bad_rows)
        if seed < 0:
            raise ConfigError(f"seed={seed}: give 0 or more")
        if len(crop_scale) != 2:
            raise ConfigError(
                f"data.crop_scale={list(crop_scale)}: give two shares of an image's area, the lesser first, such as "
                "[0.5,1.0]"
            )
        self.layout = layout
        self.root = root
        if root is None and layout in BUILT_IN:
            self.root = scenes_root(domain=domain, layout=layout)
        self.annotations = annotations
        self.images = images
        self.shards = shards
        self.columns = columns
        self.val_share = val_share
        self.skip_bad_rows = skip_bad_rows
        self.skip_bad_rows_in_eval = skip_bad_rows_in_eval
        self.skipped_rows = 0  # known after `setup`
        self.only_first: int | None = None  # set before `setup`: how many images or statements are evaluated, to try
        self.domain = domain
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.exif = exif
        self.background = background
        self.drop_last = drop_last
        self.test_split = split
        self.train_transform = TrainTransform(
            image_size=image_size,
            seed=seed,
            crop_scale=(float(crop_scale[0]), float(crop_scale[1])),
            horizontal_flip=horizontal_flip,
            randaugment=randaugment,
            randaugment_magnitude=randaugment_magnitude,
            interpolation=interpolation,
        )
        self.transform = EvaluationTransform(image_size=image_size, resize=resize, interpolation=interpolation)
        self.ledger = Ledger(max_bad_images=max_bad_images, tokenizer=tokenizer)
        self.sampler: GlobalBatchSampler | None = None
        self._sampler_state: dict[str, Any] | None = None
        self._kept_global_batch: int | None = None
        self._source: Source | None = None
        self._splits: dict[str, SplitT] = {}
        self._looked_at: set[tuple[str, bool]] = set()

    @property
    def bad_images(self) -> dict[str, str]:
        """Path and reason of every image that was replaced in training, as far as this process knows."""
        return self.ledger.bad_images

    def prepare_data(self) -> None:
        """Make the built-in data set unless it is there."""
        if self.layout in BUILT_IN and self.shards is None:
            assert self.root is not None
            prepare_scenes(Path(self.root).expanduser(), domain=self.domain, layout=self.layout)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations, and look at the images: whether they are there, and to evaluate, whether they decode.

        Raises:
            ConfigError: The split to test does not exist, or the global batch is too small.
            DataError: Something is missing, damaged or empty.
        """
        if self._source is None:
            self._source = self._find_source()
            for problem in self._source.store.damage(thorough=False):
                raise DamagedShard(problem)
            self.ledger.storage = self._source.storage
            problems = self._source.problems(
                skip_rows=self.skip_bad_rows, skip_in_evaluation=self.skip_bad_rows_in_eval
            )
            splits = self._source.read(problems)
            self.skipped_rows = len(problems.skipped)
            self._splits = {name: split for name, split in splits.items() if isinstance(split, self.split_type)}
            if self.only_first is not None:
                self._splits |= {
                    name: split.first(self.only_first) for name, split in self._splits.items() if name != "train"
                }
        if stage == "fit" and ("train", False) not in self._looked_at:
            look_at_training(self.split("train"), self._splits.values(), self._source.store)
        needed = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": (self.test_split,),
            "predict": (self.test_split,),
        }
        for name in needed[stage] if stage is not None else ("train", "val", self.test_split):
            look_at_texts(self.split(name), self.tokenizer)
            look = (name, name in ("val", self.test_split))
            if look not in self._looked_at:
                allowed = self.ledger.max_bad_images if name == "train" else 0
                look_at_images(self.split(name), self._reader, decode=look[1], allowed=allowed)
                self._looked_at.add(look)
            if name == "train" and (self.trainer is not None or self.batch_size > 1):
                self._make_sampler()  # refuses a global batch of one; how many processes there are, a trainer tells

    def split(self, name: str) -> SplitT:
        """A split of the data set.

        Raises:
            ConfigError: No split has this name.
        """
        assert self._source is not None, "setup comes first"
        if name in self._splits:
            return self._splits[name]
        there = ", ".join(f"{split.name} ({counted(len(split.pictures), 'image')})" for split in self._splits.values())
        file = self._source.file_of(name)
        missing = "" if file.exists() else "there is no such file; the data set has "
        problem = f"the split {name!r} has no items in {file}: {missing or 'it has '}{there or 'none'}"
        if name in ("train", "val", "test"):
            raise DataError(f"{problem}; {self._source.without(name, self._splits)}")
        raise ConfigError(f"{problem}; set split to one of these")

    def identity(self, name: str) -> SplitIdentity:
        """What a split is, wherever it lies (see `split_identity`). Raises ConfigError or DataError as `split`."""
        assert self._source is not None, "setup comes first"
        return split_identity(self.split(name), self._source.store)

    def tokenizer_identity(self, name: str) -> str:
        """What the tokenizer makes of the texts of a split, as a SHA-256."""
        return tokenizer_identity(self.tokenizer, self.split(name))

    @property
    def figures(self) -> dict[str, float]:
        """What `metrics.json` says of the data: rows that were left out, where some may be."""
        return {"data/skipped_rows": float(self.skipped_rows)} if self.skip_bad_rows else {}

    def picture(self, split: str, place: int) -> Image.Image:
        """An image of a split as it lies on the disk, for people to look at. Raises DataError if it cannot be read."""
        return self._reader(self.split(split).pictures[place].path)

    def evaluation_dataloaders(self, name: str) -> list[Loader]:
        """All that is in a split once, in file order."""
        raise NotImplementedError

    def val_dataloader(self) -> list[Loader]:
        """The loaders of the validation split."""
        return self.evaluation_dataloaders("val")

    def test_dataloader(self) -> list[Loader]:
        """The loaders of the split to test."""
        return self.evaluation_dataloaders(self.test_split)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data, how its batches came about, and what was not used as it is so far."""
        sampler = self.sampler.state_dict() if self.sampler is not None else self._sampler_state
        return {
            "sampler": sampler,
            "batch_size": self.batch_size,
            "processes": self._ranks[1],
            "bad_images": dict(self.ledger.bad_images),
            "truncated": dict(self.ledger.truncated),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved place, at once or when the training loader is made; the number of ranks may differ.

        Raises:
            ConfigError: `batch_size` was set to something that does not make the same global batches.
        """
        self.ledger.bad_images = dict(state_dict["bad_images"])
        self.ledger.truncated = Counter(state_dict["truncated"])
        if state_dict["sampler"] is not None:
            self._kept_global_batch = kept_global_batch(
                state_dict, batch_size=self.batch_size, processes=self._ranks[1]
            )
        if self.sampler is not None and state_dict["sampler"] is not None:
            self.sampler.load_state_dict(state_dict["sampler"])
        else:
            self._sampler_state = state_dict["sampler"]

    def _find_source(self) -> Source:
        return find_source(
            layout=self.layout,
            root=self.root,
            annotations=self.annotations,
            images=self.images,
            classes=self.given_classes,
            shards=self.shards,
            columns=self.columns,
            val_share=self.val_share,
        )

    def _training_loader(
        self, dataset: Callable[..., ReplacingDataset[Any]], *, collate: Callable[..., Outcome], **options: Any
    ) -> Loader:
        """Batches of the training split, from the place of a loaded state on.

        Args:
            dataset: Makes the dataset of the split, what ReplacingDataset takes, and `options`.
            collate: Makes a batch of its samples.
            options: Further options of the dataset.
        """
        sampler = self.sampler = self._make_sampler()
        if self._sampler_state is not None:
            sampler.load_state_dict(self._sampler_state)
            self._sampler_state = None
        samples = dataset(
            split=self.split("train"),
            reader=self._reader,
            transform=self.train_transform,
            batch_size=sampler.batch_size,
            max_bad_images=self.ledger.max_bad_images,
            **options,
        )
        return self._loader("train", dataset=samples, batch_sampler=sampler, collate_fn=collate)

    def first_batches(self, loader: Loader, *, samples: int) -> list[Any]:
        """This process's part of the first training batches, of `samples` samples or more; the loader does not move.

        Raises:
            DataError: A batch cannot be made; training would find the same.
        """
        sampler = self._make_sampler()
        count = min(len(sampler), max(1, math.ceil(samples / sampler.batch_size)))
        batches = []
        for place, keys in zip(range(count), sampler, strict=False):
            outcome = loader.collate_fn([loader.dataset[key] for key in keys])
            if outcome.batch is None:
                raise DataError(outcome.error)
            batches.append(loader.shared(outcome.batch, place))
        return batches

    @property
    def _reader(self) -> ImageReader:
        assert self._source is not None, "setup comes first"
        return self._source.image_reader(exif=self.exif, background=self.background)

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _make_sampler(self) -> GlobalBatchSampler:
        rank, world_size = self._ranks
        return GlobalBatchSampler(
            length=len(self.split("train")),
            batch_size=self._kept_global_batch or self.batch_size * world_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
            smallest=self.smallest_batch,
        )

    def _shard(self, length: int) -> ShardSampler:
        rank, world_size = self._ranks
        return ShardSampler(length=length, batch_size=self.eval_batch_size, rank=rank, world_size=world_size)

    def _loader(self, split: str, *, num_workers: int | None = None, **options: Any) -> Loader:
        workers = self.num_workers if num_workers is None else num_workers
        if workers:
            options |= {
                "multiprocessing_context": WorkerContext(),
                "worker_init_fn": begin,
                "persistent_workers": True,
            }
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(
            ledger=self.ledger,
            split=split,
            num_workers=workers,
            pin_memory=on_gpu,
            **options,
        )


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"data.{name}={value}: give {least} or more")
