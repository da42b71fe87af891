"""Runs of two processes that read shards: as those that read files, and what a shard does that one finds bad."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import distributed

from mwa_lightning.cli import train
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.loading.sampling import GlobalBatchSampler
from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.shards.index import shard_name
from mwa_lightning.data.shards.store import open_shards
from mwa_lightning.data.sources import find_source
from mwa_lightning.training.runs.checkpointing import LAST, CheckpointFiles
from tests.distributed.conftest import COMMON, TWO, needs_fsdp
from tests.leftovers import left_by

Train = Callable[..., int]

# Two epochs: eight steps of which the last comes in the second, saved after every other.
OPTIONS = ("adapter.dropout=0.1", "trainer.max_steps=8", "training.checkpoint_every_n_steps=2")
NO_FILES = Path("no_files")


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that reads files."""
    run = tmp_path_factory.mktemp("whole") / "run"
    options = (*TWO, *COMMON, *OPTIONS, f"data.root={scenes}", "data.num_workers=0", f"run_dir={run}")
    assert train.main(list(options)) == 0
    return run


@pytest.fixture(scope="module")
def packed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in some shards."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert write_shards(find_source(layout="scenes", root=scenes), folder, shard_bytes=60_000).shards > 3
    return folder


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_train__as_from_files(workers: int, train_two: Train, whole: Path, packed: Path, tmp_path: Path) -> None:
    options = (*OPTIONS, f"data.shards={packed}", f"data.num_workers={workers}")
    assert train_two(*options, f"run_dir={tmp_path / 'run'}", root=NO_FILES) == 0
    assert left_by(tmp_path / "run") == left_by(whole)


@needs_fsdp
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train__sharded_weights_too(train_two: Train, scenes: Path, packed: Path, tmp_path: Path) -> None:
    """Of `trainer=fsdp`, from files by itself and from shards by workers."""
    options = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", *OPTIONS)
    files, shards = tmp_path / "files", tmp_path / "shards"
    assert train_two(*options, "data.num_workers=0", f"run_dir={files}") == 0
    further = (f"data.shards={packed}", "data.num_workers=2")
    assert train_two(*options, *further, f"run_dir={shards}", root=NO_FILES) == 0
    assert left_by(shards) == left_by(files)


def met_by_second_only(packed: Path, *, saved: int) -> str:
    """A picture that the second process trains on in a later step than the one after `saved`, before the first does."""
    split = find_source(layout="scenes", root=None, shards=packed).read(Problems())["train"]
    sampler = GlobalBatchSampler(length=len(split.captions), batch_size=16, seed=42)
    batches = list(sampler.global_batches(0))[saved:]
    met: set[int] = set()  # by the first, or by anybody in a batch that may be fetched already
    for number, batch in enumerate(batches):
        owners = [split.captions[int(place)].image_index for place in batch]
        met |= set(owners[:8]) if number else set(owners)
        if own := set(owners[8:]) - met:
            return split.pictures[min(own)].path
    raise AssertionError("there is none")


class Damage(logging.Handler):
    """Changes one byte of a shard as soon as the run has saved."""

    def __init__(self, shard: Path, offset: int) -> None:
        super().__init__()
        self.shard, self.offset, self.done = shard, offset, False

    def emit(self, record: logging.LogRecord) -> None:
        if "wrote last.ckpt" in record.getMessage() and not self.done:
            self.done = True
            with self.shard.open("r+b") as file:
                file.seek(self.offset)
                byte = file.read(1)[0]
                file.seek(self.offset)
                file.write(bytes([byte ^ 1]))


@pytest.mark.slow
def test_train__damage_that_one_process_meets_ends_all(
    train_two: Train, whole: Path, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The shard is named, nothing half-written is left, and with the shard copied anew the run goes on."""
    folder, run = Path(shutil.copytree(packed, tmp_path / "shards")), tmp_path / "run"
    store = open_shards(folder)
    picture = met_by_second_only(packed, saved=2)
    member = store.index.member(picture)
    assert member is not None
    place = store.index.place(member)
    shard = folder / shard_name(place.shard)
    options = (*OPTIONS, f"data.shards={folder}", "data.num_workers=0", f"run_dir={run}", "data.max_bad_images=9")
    damage = Damage(shard, place.offset + place.size // 2)
    logging.getLogger("mwa_lightning").addHandler(damage)
    try:
        assert train_two(*options, root=NO_FILES) == 2
    finally:
        logging.getLogger("mwa_lightning").removeHandler(damage)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"rank 1: error: {shard} is damaged at {member:09}, image {picture} (another CRC-32 than ")
    assert second.startswith("mwa-train: error: rank 1 ended with exit code 2, its message stands above")
    assert not distributed.is_initialized()
    assert "replaced" not in (run / "train.log").read_text()
    assert not (run / "adapter.safetensors").exists()
    assert not [path for path in run.rglob(".*") if path.is_file()]
    files = CheckpointFiles(run / "checkpoints")
    assert files.load_checkpoint(run / "checkpoints" / LAST)["global_step"] in (2, 4)

    shutil.copy(packed / shard.name, shard)
    assert train_two(*options, root=NO_FILES) == 0
    assert left_by(run) == left_by(whole)
