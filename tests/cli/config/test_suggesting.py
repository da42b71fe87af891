from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.cli.config.suggesting import did_you_mean, nearest, path_meant

KEYS = ["seed", "optim.lr", "optim.min_lr", "data.batch_size", "data.eval_batch_size", "trainer.max_epochs"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr", "optim.lr"),
        ("optim.lrr", "optim.lr"),
        ("trainer.lr", "optim.lr"),
        ("batch_size", "data.batch_size"),
        ("data.batchsize", "data.batch_size"),
        ("max_epoch", "trainer.max_epochs"),
        ("SEED", "seed"),
    ],
)
def test_nearest__misspelt(name: str, expected: str) -> None:
    assert nearest(name, KEYS) == expected


def test_nearest__nothing_alike() -> None:
    assert nearest("zzzzzz", KEYS) is None
    assert did_you_mean("zzzzzz", KEYS) == ""
    assert nearest("seed", []) is None


def test_did_you_mean__sentence() -> None:
    assert did_you_mean("sed", KEYS) == " Did you mean seed?"


def test_path_meant__the_nearest_that_exists(tmp_path: Path) -> None:
    (tmp_path / "data" / "Flickr30k" / "images").mkdir(parents=True)
    for given, wanted in (
        ("data/flickr30k", "data/Flickr30k"),
        ("dat/Flickr30k/images", "data/Flickr30k/images"),
        ("data/flikr30k/pictures", "data/Flickr30k"),
    ):
        assert path_meant(tmp_path / given) == f" Did you mean {tmp_path / wanted}?"
    assert path_meant(tmp_path / "data" / "coco") == f" {tmp_path / 'data'} has no coco"
