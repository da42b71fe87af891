"""Training splits that teach nothing, and images that are trained and evaluated on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.data.samples.learnable import check_images_differ, check_learnable, shared_images
from mwa_lightning.data.samples.records import RetrievalSplit, SplitBuilder
from mwa_lightning.data.samples.statements import StatementBuilder
from mwa_lightning.data.storage.stores import PictureFolder
from mwa_lightning.errors import DataError


def retrieval(*samples: tuple[str, str]) -> RetrievalSplit:
    builder = SplitBuilder(name="train", folder="pictures")
    for number, (path, text) in enumerate(samples):
        builder.add(path=path, name=path, image_id=number, text=text, caption_id=number)
    return builder.build()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([("a.png", "one"), ("a.png", "two")], "all 2 captions are of one image, a.png"),
        ([("a.png", "one"), ("b.png", "one"), ("c.png", "one")], "all 3 captions are 'one'"),
    ],
)
def test_check__captions(samples: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_learnable(retrieval(*samples))
    check_learnable(retrieval(*samples, ("other.png", "another")))


@pytest.mark.parametrize("other", [0, 1])
def test_check__statements_of_one_class(other: int) -> None:
    builder = StatementBuilder(name="train", folder="", classes=("no", "yes"))
    for number, label in enumerate((1, 1, other)):
        builder.add(images=[("a.png", 0)], text=f"text {number}", identifier=str(number), label=label)
    if other == 0:
        check_learnable(builder.build())
    else:
        with pytest.raises(DataError, match="all 3 statements are labelled 'yes'"):
            check_learnable(builder.build())


def test_check__one_statement_about_many_images_can_be_learned() -> None:
    builder = StatementBuilder(name="train", folder="", classes=("no", "yes"))
    for number in range(2):
        builder.add(images=[(f"{number}.png", number)], text="is it red?", identifier=str(number), label=number)
    check_learnable(builder.build())
    builder = StatementBuilder(name="train", folder="", classes=("no", "yes"))
    for number in range(2):
        builder.add(images=[("a.png", 0)], text="is it red?", identifier=str(number), label=number)
    with pytest.raises(DataError, match="all 2 statements are 'is it red\\?'"):
        check_learnable(builder.build())


def test_check__images_that_are_one_file(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(b"picture")
    names = [(str(tmp_path / f"{number}.png"), f"text {number}") for number in range(100)]
    with pytest.raises(DataError, match="the 64 of its 100 images that were compared have the same content, that of"):
        check_images_differ(retrieval(*names), PictureFolder(tmp_path))
    (tmp_path / "99.png").write_bytes(b"other")
    check_images_differ(retrieval(*names), PictureFolder(tmp_path))
    (tmp_path / "0.png").unlink()
    check_images_differ(retrieval(*names), PictureFolder(tmp_path))


def test_shared_images__by_their_paths() -> None:
    train = retrieval(("a.png", "1"), ("b.png", "2"), ("b.png", "3"))
    assert shared_images(train, retrieval(("b.png", "4"), ("c.png", "5"))) == 1
    assert shared_images(train, retrieval(("c.png", "4"))) == 0
