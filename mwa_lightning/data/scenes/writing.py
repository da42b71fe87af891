"""The built-in data sets: pictures of coloured shapes, in the files of a Karpathy data set or of NLVR2.

A pure function of the parameters: each picture has a random generator of its own, seeded from (seed, domain,
split, index), so a larger data set starts with the pictures of a smaller one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mwa_lightning.data.files.appearing import Files, NotEmpty, appearing
from mwa_lightning.data.scenes.drawing import draw_scene
from mwa_lightning.data.scenes.grammar import DOMAINS, captions, sample_scene
from mwa_lightning.data.scenes.statements import sample_statement_group
from mwa_lightning.errors import ConfigError, DataError
from mwa_lightning.system.file_locks import Taken

CAPTIONS_PER_PICTURE = 5
STATEMENTS_PER_GROUP = 4  # two pairs of pictures, each with a sentence that is true and one that is false

RECORD = "scenes.json"
VERSION = 4  # of the generator; raised when the same parameters give other files
_SPLITS = ("train", "val", "test")
_NLVR2_SPLITS = {"train": "train", "dev": "dev", "test": "test1"}
_NLVR2_DIRECTORIES = 100
_JPEG_QUALITY = 90
_LOOK = 0.2  # seconds


def write_scenes(root: Path, *, domain: str, seed: int, train: int, val: int, test: int) -> None:
    """Write pictures and captions in Karpathy's layout: `dataset_scenes.json`, and JPEGs in a folder a split.

    Its files appear when all are there, or not at all; a folder made with the same parameters is kept.

    Args:
        root: The folder; it must be missing, empty, or made by this function with the same parameters.
        domain: One of DOMAINS.
        seed: Any integer from 0.
        train: Number of pictures to train with; each has CAPTIONS_PER_PICTURE captions.
        val: Number of pictures to validate with.
        test: Number of pictures to test with.

    Raises:
        ConfigError: The domain is unknown, or a number is negative.
        DataError: Something else is in the folder.
    """
    counts = dict(zip(_SPLITS, (train, val, test), strict=True))
    _write_once(root, "karpathy", domain, seed, counts, lambda files: _karpathy(files, domain, seed, counts))


def write_scenes_nlvr2(root: Path, *, domain: str, seed: int, train: int, dev: int, test: int) -> None:
    """Write statements about two pictures in NLVR2's layout: `images/` and `nlvr/nlvr2/data/*.json`.

    In a group, either sentence occurs once as True and once as False, and either pair of pictures has a true
    and a false sentence: neither text nor pictures alone tell the label. The folder is handled as by
    `write_scenes`.

    Args:
        root: The folder; it must be missing, empty, or made by this function with the same parameters.
        domain: One of DOMAINS.
        seed: Any integer from 0.
        train: Number of statements to train with, a multiple of STATEMENTS_PER_GROUP as the next two.
        dev: Number of statements to validate with.
        test: Number of statements to test with, in `test1`.

    Raises:
        ConfigError: The domain is unknown, or a number is negative or not such a multiple.
        DataError: Something else is in the folder.
    """
    counts = dict(zip(_NLVR2_SPLITS, (train, dev, test), strict=True))
    for split, count in counts.items():
        if count % STATEMENTS_PER_GROUP:
            raise ConfigError(f"scenes: {split}={count} statements: give a multiple of {STATEMENTS_PER_GROUP}")
    _write_once(root, "nlvr2", domain, seed, counts, lambda files: _nlvr2(files, domain, seed, counts))


def _karpathy(files: Files, domain: str, seed: int, counts: dict[str, int]) -> None:
    images: list[dict[str, Any]] = []
    sentence_id = 0
    for split, count in counts.items():
        for index in range(count):
            generator = picture_generator(seed, domain, split, index)
            scene = sample_scene(generator)
            name = f"scene_{split}_{index:06d}.jpg"
            with files.open(f"{split}/{name}") as file:
                draw_scene(scene, domain=domain, generator=generator).save(file, format="JPEG", quality=_JPEG_QUALITY)
            sentences = []
            for caption in captions(scene, domain=domain, count=CAPTIONS_PER_PICTURE, generator=generator):
                tokens = re.findall(r"[a-z]+", caption.lower())
                sentences.append({"tokens": tokens, "raw": caption, "imgid": len(images), "sentid": sentence_id})
                sentence_id += 1
            images.append(
                {
                    "filepath": split,
                    "filename": name,
                    "imgid": len(images),
                    "split": split,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    files.write("dataset_scenes.json", json.dumps({"dataset": "scenes", "images": images}).encode())


def _nlvr2(files: Files, domain: str, seed: int, counts: dict[str, int]) -> None:
    lines: dict[str, list[str]] = {}
    for split, count in counts.items():
        official = _NLVR2_SPLITS[split]
        lines[official] = []
        for index in range(count // STATEMENTS_PER_GROUP):
            generator = picture_generator(seed, domain, f"nlvr2-{split}", index)
            pairs, sentences = sample_statement_group(domain=domain, generator=generator)
            directory = index % _NLVR2_DIRECTORIES
            place = f"images/{official}" + (f"/{directory}" if split == "train" else "")
            for pair_index, pair in enumerate(pairs):
                stem = f"{official}-{index}-{pair_index}"
                for side, scene in enumerate(pair):
                    with files.open(f"{place}/{stem}-img{side}.png") as file:
                        draw_scene(scene, domain=domain, generator=generator).save(file, format="PNG")
                for number, sentence in enumerate(sentences):
                    line: dict[str, Any] = {
                        "identifier": f"{stem}-{number}",
                        "sentence": sentence,
                        "label": str(number == pair_index),
                    }
                    if split == "train":
                        line["directory"] = directory
                    lines[official].append(json.dumps(line) + "\n")
    for official, of_split in lines.items():  # last: where they are, others take all for there
        files.write(f"nlvr/nlvr2/data/{official}.json", "".join(of_split).encode())


def picture_generator(seed: int, domain: str, split: str, index: int) -> np.random.Generator:
    """The random generator of one picture, or of one group of statements."""
    # The texts go in as bytes: Python's own hash differs from process to process.
    key = [seed, index, *domain.encode(), 0, *split.encode()]
    return np.random.Generator(np.random.PCG64(key))


def _write_once(
    root: Path, layout: str, domain: str, seed: int, counts: dict[str, int], write: Callable[[Files], None]
) -> None:
    """Write the files, with the record of what they are last, unless they are there with the same parameters."""
    if domain not in DOMAINS:
        raise ConfigError(f"data.domain={domain} is unknown: choose one of {', '.join(DOMAINS)}")
    for name, value in {"seed": seed, **counts}.items():
        if value < 0:
            raise ConfigError(f"scenes: {name}={value}: give 0 or more")
    parameters = {"version": VERSION, "layout": layout, "domain": domain, "seed": seed, **counts}
    root = Path(os.path.realpath(root))  # the end of a link, which stays
    while _recorded_parameters(root) != parameters:
        try:
            with appearing(root) as files:
                write(files)
                record = {"parameters": parameters, "sha256": _hash(files.written)}
                files.write(RECORD, json.dumps(record, indent=1).encode() + b"\n")
        except NotEmpty:
            if _recorded_parameters(root) == parameters:  # another process has just finished it
                return
            raise DataError(
                f"{root} holds other files than the scenes asked for; remove it or choose another folder"
            ) from None
        except Taken:  # another process is making it
            time.sleep(_LOOK)
        except OSError as error:
            raise DataError(f"{root} cannot be written ({error.strerror}); choose another folder") from error


def folder_hash(folder: Path) -> str:
    """SHA-256 over names and contents of all files under a folder but its record, in the order of names."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return _hash({name: path for name, path in paths.items() if name != RECORD})


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _recorded_parameters(root: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        parameters = record["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return parameters if isinstance(parameters, dict) else None
