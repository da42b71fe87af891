"""The built-in data sets: the same bytes every time, the official files, and statements that cannot be guessed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mwa_lightning.data.scenes import statements as scene_statements
from mwa_lightning.data.scenes.grammar import (
    COLOURS,
    DOMAINS,
    RELATIONS,
    SHAPES,
    WORDINGS,
    captions,
    relations_between,
    sample_scene,
)
from mwa_lightning.data.scenes.writing import folder_hash, write_scenes, write_scenes_nlvr2
from mwa_lightning.errors import ConfigError, DataError

COUNTS = {"train": 30, "val": 6, "test": 8}
NLVR2_COUNTS = {"train": 120, "dev": 8, "test": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small Karpathy data set a domain."""
    folder = tmp_path_factory.mktemp("scenes")
    for domain in DOMAINS:
        write_scenes(folder / domain, domain=domain, seed=3, **COUNTS)
    return {domain: folder / domain for domain in DOMAINS}


@pytest.fixture(scope="module")
def nlvr2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small NLVR2."""
    folder = tmp_path_factory.mktemp("nlvr2") / "scenes"
    write_scenes_nlvr2(folder, domain="source", seed=3, **NLVR2_COUNTS)
    return folder


def read_images(folder: Path) -> list[dict]:
    content = json.loads((folder / "dataset_scenes.json").read_text())
    assert content["dataset"] == "scenes"
    return content["images"]


def read_lines(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"nlvr/nlvr2/data/{split}.json").read_text().splitlines()]


def statement_pictures(folder: Path, split: str, line: dict) -> list[Path]:
    stem = line["identifier"].rsplit("-", 1)[0]
    place = folder / "images" / split / str(line.get("directory", ""))
    return [place / f"{stem}-img{side}.png" for side in (0, 1)]


# Karpathy


def test_write_scenes__same_bytes_in_another_process(folders: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from mwa_lightning.data.scenes.writing import write_scenes; import sys; "
        f"write_scenes(Path({str(tmp_path / 'again')!r}), domain='target', seed=3, **{COUNTS}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
    assert folder_hash(tmp_path / "again") == folder_hash(folders["target"])
    record = json.loads((tmp_path / "again" / "scenes.json").read_text())
    assert record["sha256"] == folder_hash(tmp_path / "again")


def test_write_scenes__layout(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        images = read_images(folder)
        assert Counter(image["split"] for image in images) == COUNTS
        assert [image["imgid"] for image in images] == list(range(len(images)))
        sentences = [sentence for image in images for sentence in image["sentences"]]
        assert [sentence["sentid"] for sentence in sentences] == list(range(5 * len(images)))
        for image in images:
            with Image.open(folder / image["filepath"] / image["filename"]) as picture:
                picture.load()
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
            assert {sentence["imgid"] for sentence in image["sentences"]} == {image["imgid"]}
            assert len({sentence["raw"] for sentence in image["sentences"]}) == 5
            for sentence in image["sentences"]:
                assert sentence["tokens"] == sentence["raw"].lower().replace(",", "").rstrip(".").split()
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) == len(images) + 2


def test_write_scenes__seeds_and_splits_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    write_scenes(tmp_path / "other", domain="source", seed=4, **COUNTS)
    assert folder_hash(tmp_path / "other") != folder_hash(folders["source"])
    contents = [path.read_bytes() for path in folders["source"].rglob("*.jpg")]
    assert len(set(contents)) == len(contents)


def test_write_scenes__larger_set_starts_with_the_smaller(folders: dict[str, Path], tmp_path: Path) -> None:
    write_scenes(tmp_path / "larger", domain="source", seed=3, train=32, val=0, test=0)
    name = "train/scene_train_000007.jpg"
    assert (tmp_path / "larger" / name).read_bytes() == (folders["source"] / name).read_bytes()


def test_domains__differ_in_words_and_look(folders: dict[str, Path]) -> None:
    words = {}
    edges = {}
    for domain, folder in folders.items():
        images = read_images(folder)
        words[domain] = {word for image in images for sentence in image["sentences"] for word in sentence["tokens"]}
        pictures = np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted(folder.rglob("*.jpg"))])
        edges[domain] = np.abs(np.diff(pictures, axis=1)).mean()
    assert len(words["target"] - words["source"]) >= 12
    assert len(words["source"] - words["target"]) >= 15
    assert edges["target"] > 1.3 * edges["source"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions__tell_the_truth(domain: str) -> None:
    wording = WORDINGS[domain]
    shapes = {word: name for name, options in wording.shapes.items() for word in options}
    colours = {word: name for name, options in wording.colours.items() for word in options}
    generator = np.random.default_rng(0)
    related = 0
    for _ in range(200):
        scene = sample_scene(generator)
        kinds = {thing.kind: thing for thing in scene.things}
        for caption in captions(scene, domain=domain, count=5, generator=generator):
            # What a painter is called says nothing of the picture.
            told = re.sub(r"\bMrs? [A-Z][a-z]+( [A-Z][a-z]+)?", "", caption)
            words = told.lower().replace(",", "").rstrip(".").split()
            named = [
                (colours[colour], shapes[shape])
                for colour, shape in pairwise(words)
                if colour in colours and shape in shapes
            ]
            assert named
            assert set(named) <= set(kinds)
            for relation, phrases in wording.relations.items():
                if len(named) == 2 and any(f" {phrase} a" in caption for phrase in phrases):
                    assert relation in relations_between(kinds[named[0]], kinds[named[1]])
                    related += 1
    assert related > 200


def test_sample_scene__things_differ_and_are_within_the_picture() -> None:
    generator = np.random.default_rng(0)
    scenes = [sample_scene(generator) for _ in range(300)]
    for scene in scenes:
        assert len(scene.things) in (2, 3)
        assert len({thing.kind for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            assert thing.radius - 0.01 < thing.x < 1.01 - thing.radius
            assert thing.radius - 0.01 < thing.y < 1.01 - thing.radius
            assert all(relations_between(thing, other) for other in scene.things if other is not thing)
    assert {thing.kind for scene in scenes for thing in scene.things} == {(c, s) for c in COLOURS for s in SHAPES}


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations__mirror(relation: str) -> None:
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    generator = np.random.default_rng(0)
    for _ in range(50):
        first, second = sample_scene(generator).things[:2]
        assert (relation in relations_between(first, second)) == (
            opposite[relation] in relations_between(second, first)
        )


def test_write_scenes__complete_folder_is_kept(folders: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folders["source"].rglob("*")}
    write_scenes(folders["source"], domain="source", seed=3, **COUNTS)
    assert before == {path: path.stat().st_mtime_ns for path in folders["source"].rglob("*")}


def test_write_scenes__other_files_are_left_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        write_scenes(tmp_path, domain="source", seed=3, **COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="holds other files"):
        write_scenes(folders["source"], domain="source", seed=4, **COUNTS)


def test_write_scenes__nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mwa_lightning.data.scenes.writing.captions", fail)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", domain="source", seed=3, **COUNTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [{"domain": "sauce"}, {"seed": -1}, {"train": -1}], ids=["domain", "seed", "count"])
def test_write_scenes__bad_arguments(changed: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(changed))):
        write_scenes(tmp_path / "scenes", **{"domain": "source", "seed": 0, **COUNTS, **changed})
    assert list(tmp_path.iterdir()) == []


# NLVR2


def test_write_scenes_nlvr2__layout(nlvr2: Path) -> None:
    for split, count in (("train", 120), ("dev", 8), ("test1", 12)):
        lines = read_lines(nlvr2, split)
        assert len(lines) == count
        assert len({line["identifier"] for line in lines}) == count
        for line in lines:
            assert ("directory" in line) == (split == "train")
            for path in statement_pictures(nlvr2, split, line):
                with Image.open(path) as picture:
                    assert (picture.format, picture.mode) == ("PNG", "RGB")


def test_write_scenes_nlvr2__same_bytes(nlvr2: Path, tmp_path: Path) -> None:
    write_scenes_nlvr2(tmp_path / "again", domain="source", seed=3, **NLVR2_COUNTS)
    assert folder_hash(tmp_path / "again") == folder_hash(nlvr2)


def test_write_scenes_nlvr2__neither_text_nor_pictures_tell(nlvr2: Path) -> None:
    lines = read_lines(nlvr2, "train")
    by_sentence: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_pictures: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        by_sentence[line["sentence"]][line["label"]] += 1
        by_pictures[line["identifier"].rsplit("-", 1)[0]][line["label"]] += 1
    assert all(labels["True"] == labels["False"] > 0 for labels in by_sentence.values())
    assert all(labels == {"True": 1, "False": 1} for labels in by_pictures.values())
    assert len(by_sentence) > 40


@pytest.mark.parametrize("domain", DOMAINS)
def test_claim_of__reads_what_was_written(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = scene_statements._write

    def noting(statement: scene_statements.Statement, **options: object) -> str:
        written.append(statement.claim)
        return write(statement, **options)

    monkeypatch.setattr(scene_statements, "_write", noting)
    generator = np.random.default_rng(0)
    sentences = [
        s for _ in range(60) for s in scene_statements.sample_statement_group(domain=domain, generator=generator)[1]
    ]
    assert [scene_statements.claim_of(sentence) for sentence in sentences] == written
    assert len(set(written)) == 5
    with pytest.raises(KeyError):
        scene_statements.claim_of("Something else.")


def test_write_scenes_nlvr2__counts_of_whole_groups(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dev=6"):
        write_scenes_nlvr2(tmp_path / "scenes", domain="source", seed=0, train=4, dev=6, test=4)
