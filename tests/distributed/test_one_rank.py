"""What only one of two processes meets, and the run tells of as one process would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.loading.sampling import GlobalBatchSampler
from mwa_lightning.data.scenes.writing import write_scenes, write_scenes_nlvr2
from mwa_lightning.data.sources import find_source
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
from mwa_lightning.training.runs.checkpointing import LAST, CheckpointFiles
from tests.distributed.conftest import stop_after_first_save

Train = Callable[..., int]

ASSETS = Path(__file__).parents[2] / "mwa_lightning" / "assets"
LONG = "WARNING split train: texts of more than 8 tokens are truncated"
SUM = r"truncated texts, counted anew in every epoch: .*"


@pytest.fixture
def two_broken(tmp_path: Path) -> tuple[Path, list[str]]:
    """A data set with a picture that does not decode for each process: of the second in step 0, the first in step 2."""
    root = tmp_path / "scenes"
    write_scenes(root, domain="target", seed=3, train=90, val=5, test=9)
    split = find_source(layout="scenes", root=root).read(Problems())["train"]
    batches = GlobalBatchSampler(length=len(split.captions), batch_size=16, seed=42).global_batches(0)[:4]
    images = [[split.captions[int(place)].image_index for place in batch] for batch in batches]
    halves = [(set(each[:8]), set(each[8:])) for each in images]
    of_second = min(halves[0][1] - set().union(*(first for first, _ in halves)))
    of_first = min(halves[2][0] - set().union(*(second for _, second in halves)) - halves[0][0] - halves[1][0])
    paths = [Path(split.pictures[image].path) for image in (of_second, of_first)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-200])
    return root, [path.name for path in paths]


@pytest.mark.slow
def test_train__bad_images_of_all_together(
    two_broken: tuple[Path, list[str]],
    train_two: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each process meets one, before the first save and after: that is two of the run, killed in between or not."""
    root, names = two_broken
    options = ("training.checkpoint_every_n_steps=2", "training.zero_shot=false")
    for directory in ("few", "few", "few_killed"):
        run = (*options, "data.max_bad_images=1", f"run_dir={tmp_path / directory}")
        if directory == "few_killed":
            stop_after_first_save(lambda run=run: train_two(*run, root=root), monkeypatch)
        assert train_two(*run, root=root) == 2
        error = capfd.readouterr().err
        assert "(2 unreadable, data.max_bad_images=1: mwa-prepare check=true lists all)" in error
        assert any(name in error for name in names)
    run = tmp_path / "enough"
    stop_after_first_save(
        lambda: train_two(*options, "data.max_bad_images=2", f"run_dir={run}", root=root), monkeypatch
    )
    assert train_two(*options, "data.max_bad_images=2", f"run_dir={run}", root=root) == 0
    log = (run / "train.log").read_text()
    assert [log.count(f"{name} does not decode") for name in names] == [1, 1]
    files = CheckpointFiles(run / "checkpoints")
    kept = files.load_checkpoint(run / "checkpoints" / LAST)["RetrievalDataModule"]["bad_images"]
    assert [Path(path).name for path in kept] == names


def test_train__cut_texts_of_all_together(train_two: Train, train_one: Train, tmp_path: Path) -> None:
    found = []
    for train, name in ((train_two, "two"), (train_one, "one")):
        run = f"run_dir={tmp_path / name}"
        assert train("backbone.max_text_length=8", "training.zero_shot=false", run) == 0
        log = (tmp_path / name / "train.log").read_text()
        assert log.count(LONG) == 1
        found += re.findall(SUM, log)
    assert found[0] == found[1]


def test_train__bad_loss_of_the_second_process(
    train_two: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its samples are named, not those of the first; the classes of statements have a loss of each process alone."""
    root = tmp_path / "scenes_nlvr2"
    write_scenes_nlvr2(root, domain="target", seed=3, train=24, dev=8, test=12)
    split = find_source(layout="scenes_nlvr2", root=root).read(Problems())["train"]
    (batch, *_) = GlobalBatchSampler(length=len(split.texts), batch_size=16, seed=42, smallest=1).global_batches(0)
    tokenizer = SentencePieceTokenizer(ASSETS / "beit3_tiny.spm")
    tokens = [set(tokenizer([split.texts[int(place)]])[0][0].tolist()) for place in batch]
    bad = min(set().union(*tokens[8:]) - set().union(*tokens[:8]))
    weights = load_file(ASSETS / "beit3_tiny.safetensors")
    weights["beit3.text_embed.weight"][bad] = np.nan
    save_file(weights, tmp_path / "bad.safetensors")
    options = ("data=scenes_nlvr2", "task=reasoning", "training.zero_shot=false", f"run_dir={tmp_path / 'run'}")
    assert train_two(*options, f"backbone.checkpoint={tmp_path / 'bad.safetensors'}", root=root) == 4
    samples = [split.sample_id(int(place)) for place in batch[8:]]
    assert f"error: step 0: the loss is not finite; samples: {samples[0]}, {samples[1]}, " in capfd.readouterr().err
