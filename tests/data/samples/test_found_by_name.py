"""Pictures of published sets are found by their names, wherever they lie under the folder of the images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source
from mwa_lightning.errors import DataError


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root: Path, layout: str, annotated: list[str], annotations: str | None = None) -> tuple[list[str], list[str]]:
    """Where the pictures are, and what is said about it, once as files and once more as what is wrong with them."""
    records = [{"image": name, "caption": "a dog"} for name in annotated]
    (root / ("coco_test.json" if layout == "coco" else "flickr30k_test.json")).write_text(json.dumps(records))
    problems = Problems(collect=True)
    splits = find_source(layout=layout, root=root, annotations=annotations).read(problems)
    paths = [str(Path(picture.path).relative_to(root)) for picture in splits["test"].pictures]
    assert [picture.name for picture in splits["test"].pictures] == [Path(name).name for name in annotated]
    return paths, [*problems.notes, *problems.read_as, *(message for _, message in problems.found)]


TRAIN, VAL = "train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg"
T, V = "COCO_train2014_000000000009.jpg", "COCO_val2014_000000000042.jpg"
AS_ANNOTATED = [TRAIN, VAL]


@pytest.mark.parametrize(
    ("layout", "annotated", "there"),
    [
        ("coco", AS_ANNOTATED, AS_ANNOTATED),
        ("coco", AS_ANNOTATED, ["train2017/000000000009.jpg", "train2017/000000000042.jpg"]),
        ("coco", AS_ANNOTATED, ["train2017/000000000009.jpg", "val2017/000000000042.jpg"]),
        ("coco", AS_ANNOTATED, ["val2017/000000000009.jpg", "train2017/000000000042.jpg"]),
        ("coco", AS_ANNOTATED, ["000000000009.jpg", "000000000042.jpg"]),
        ("coco", AS_ANNOTATED, [T, V]),
        ("coco", AS_ANNOTATED, [f"images/{T}", f"images/{V}"]),
        ("coco", AS_ANNOTATED, [f"coco/images/{TRAIN}", f"coco/images/{VAL}"]),
        ("coco", [f"/export/share/coco/images/{name}" for name in AS_ANNOTATED], AS_ANNOTATED),
        ("coco", ["000000000009.jpg", "000000000042.jpg"], AS_ANNOTATED),
        ("coco", ["000000000009.jpg", "000000000042.jpg"], ["train2017/000000000009.jpg", "val2017/000000000042.jpg"]),
        ("flickr30k", ["flickr30k-images/1.jpg", "flickr30k-images/2.jpg"], ["1.jpg", "2.jpg"]),
        ("flickr30k", ["1.jpg", "2.jpg"], ["flickr30k_images/1.jpg", "flickr30k_images/2.jpg"]),
        ("flickr30k", ["1.jpg", "2.jpg"], ["Images/1.jpg", "Images/2.jpg"]),
        ("flickr30k", ["1.jpg", "2.jpg"], ["flickr30k-images/1.jpg", "flickr30k-images/2.jpg"]),
        ("flickr30k", ["flickr30k-images/1.jpg", "flickr30k-images/2.jpg"], ["images/f/1.jpg", "images/f/2.jpg"]),
    ],
)
def test_find_by_name__folders_that_people_have(
    tmp_path: Path, layout: str, annotated: list[str], there: list[str]
) -> None:
    files(tmp_path, *there, "train2017/other.jpg", ".cache/000000000009.jpg")
    paths, said = read(tmp_path, layout, annotated)
    assert paths == there
    folder = "flickr30k-images/" if layout == "flickr30k" and there[0].startswith("flickr30k-images/") else ""
    moved = [name for name, path in zip(annotated, there, strict=True) if folder + name != path]
    assert said == (
        [f"2 of 2 images found by name, such as {there[0].removeprefix(folder)} for {annotated[0]}"] if moved else []
    )


def test_find_by_name__through_links_and_some_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    files(disk, T)
    root = tmp_path / "root"
    files(root, VAL)
    (root / "train2014_on_disk").symlink_to(disk)
    (root / "all").symlink_to(root)
    paths, said = read(root, "coco", AS_ANNOTATED)
    assert paths == [f"train2014_on_disk/{T}", VAL]
    assert said == [f"1 of 2 images found by name, such as train2014_on_disk/{T} for {TRAIN}"]


def test_find_by_name__twice(tmp_path: Path) -> None:
    """The folder that the annotations name counts; where none is named so, one has to be chosen."""
    files(tmp_path, f"a/{TRAIN}", f"b/{T}", f"b/{V}")
    assert read(tmp_path, "coco", AS_ANNOTATED)[0] == [f"a/{TRAIN}", f"b/{V}"]
    files(tmp_path, f"c/{V}")
    _, said = read(tmp_path, "coco", AS_ANNOTATED)
    assert f"image {VAL} is there more than once (b/{V}, c/{V}): set data.images to the folder that is meant" in said


def test_find_by_name__none(tmp_path: Path) -> None:
    files(tmp_path, "train2014/other.jpg")
    _, said = read(tmp_path, "coco", AS_ANNOTATED)
    assert said == [
        f"{tmp_path} holds no image of the 2 in the annotations, such as {TRAIN}: unpack them there, or set "
        "data.images to the folder that holds them"
    ]
    with pytest.raises(DataError, match="holds no image of the 2"):
        find_source(layout="coco", root=tmp_path).read(Problems())


def test_find_by_name__nlvr2(tmp_path: Path) -> None:
    line = {"identifier": "train-5-0-1", "sentence": "A dog.", "label": "True", "directory": 55}
    files(tmp_path, "nlvr/nlvr2/data/train.json")
    (tmp_path / "nlvr/nlvr2/data/train.json").write_text(json.dumps(line) + "\n")
    for folder in ("images/train/55", "train/55", "images/train", "train", "NLVR2/train", "."):
        root = tmp_path / f"in-{folder.replace('/', '-')}"
        files(root / folder, "train-5-0-img0.png", "train-5-0-img1.png")
        source = find_source(layout="nlvr2", root=root, annotations=tmp_path / "nlvr/nlvr2/data")
        pictures = source.read(Problems())["train"].pictures
        assert [Path(picture.path) for picture in pictures] == [root / folder / f"train-5-0-img{i}.png" for i in (0, 1)]


def test_find_by_name__in_shards(tmp_path: Path) -> None:
    """Shards keep the paths at which pictures were found, and give them for those in the annotations."""
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    for split, names in {"train": [T], "val": [V]}.items():
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        said = [{"id": i, "image_id": i, "caption": "a dog"} for i in range(len(names))]
        data = {"images": images, "annotations": said}
        (root / "annotations" / f"captions_{split}2014.json").write_text(json.dumps(data))
    for name, folder in (("000000000009.jpg", "val2017"), ("000000000042.jpg", "train2017")):
        files(root, f"{folder}/{name}")
        (root / folder / name).write_bytes(b"\xff\xd8\xff" + name.encode())
    write_shards(find_source(layout="coco", root=root), tmp_path / "shards", shard_bytes=10_000)
    source = find_source(layout="coco", root=None, shards=tmp_path / "shards")
    splits = source.read(Problems())
    held = {
        name: [source.store.open(picture.path).read()[3:] for picture in split.pictures]
        for name, split in splits.items()
    }
    assert {name: split.pictures.image_ids.tolist() for name, split in splits.items()} == {"train": [0], "val": [1]}
    assert held == {"train": [b"000000000009.jpg"], "val": [b"000000000042.jpg"]}


def test_find_source__tars_of_img2dataset(tmp_path: Path) -> None:
    files(tmp_path, "00000.tar", "00000.parquet", "00000_stats.json")
    for place in ({"root": tmp_path}, {"root": None, "shards": tmp_path}):
        with pytest.raises(DataError, match=r"holds tar archives, as img2dataset writes them: unpack them"):
            find_source(layout="pairs", **place)
