"""Karpathy's JSON, the form of COCO and Flickr30K: one entry an image, with its split and its sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mwa_lightning.data.problems import Problems, has_words
from mwa_lightning.data.records import RetrievalSplit, SplitBuilder
from mwa_lightning.regular_files import read_file

_ID_KEYS = ("cocoid", "imgid")
_MERGED = {"restval": "train"}  # the rest of COCO's validation images, which everybody trains on


class _Entry(NamedTuple):
    path: str
    name: str
    split: str
    given_ids: dict[str, int]
    given_labels: dict[str, str]
    captions: list[tuple[str, int | None]]


def read_karpathy(
    annotations: Path, *, folder: PurePath, problems: Problems, official: bool = False
) -> dict[str, RetrievalSplit]:
    """The splits of a data set by name; `restval` belongs to `train`.

    An image's number is its `cocoid`, else its `imgid`, where every entry has one, and else its place in the
    file, with its id as text, or else its path, for a label; the same rule numbers the captions by `sentid`.

    Args:
        annotations: The JSON file.
        folder: What `filepath`/`filename` is relative to.
        problems: Where a damaged file, or an entry that cannot be used, is reported.
        official: Only a blank caption counts as one without words: what the published files hold is used as
            it is.
    """
    images = _load(annotations, problems)
    entries = list(_entries(images, annotations, problems, official))
    image_ids, labels = _image_ids(entries)
    keep_sentence_ids = _distinct([number for entry in entries for _, number in entry.captions])
    builders: dict[str, SplitBuilder] = {}
    owner: dict[int, str] = {}
    count = 0
    for entry, image_id, label in zip(entries, image_ids, labels, strict=True):
        if owner.setdefault(image_id, entry.path) != entry.path:
            problems.add(
                "image id used twice",
                f"{annotations}: {entry.path} and {owner[image_id]} have the same image id {image_id}: give "
                "each image its own, or leave the ids out",
            )
            continue
        split = _MERGED.get(entry.split, entry.split)
        builder = builders.setdefault(split, SplitBuilder(name=split, folder=folder))
        for text, sentence_id in entry.captions:
            caption_id = sentence_id if keep_sentence_ids and sentence_id is not None else count
            builder.add(
                path=entry.path, name=entry.name, image_id=image_id, text=text, caption_id=caption_id, label=label
            )
            count += 1
    return {name: builder.build() for name, builder in builders.items()}


def _load(annotations: Path, problems: Problems) -> list[Any]:
    """The list of images in the file; empty where the file is of no use."""
    try:
        data = json.loads(read_file(annotations))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}: {error.msg}"
        if not annotations.stat().st_size:
            where = "it is empty"
        problems.add("not JSON", f"{annotations} is not JSON ({where}): fetch or write it again")
        return []
    except (ValueError, RecursionError) as error:  # not UTF-8, nested too deeply, a number of too many digits
        reason = " ".join(str(error).split())
        problems.add("not JSON", f"{annotations} is not JSON ({reason}): fetch or write it again")
        return []
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        problems.add("no images", f'{annotations} is no Karpathy file: it lacks the list "images" at its top')
        return []
    if not images:
        problems.add("no images", f"{annotations} lists no images: fetch or write it again")
    return images


def _entries(images: list[Any], annotations: Path, problems: Problems, official: bool) -> Iterator[_Entry]:
    for i, image in enumerate(images):
        where = f"{annotations}: images[{i}]"
        if not isinstance(image, dict):
            problems.add("unusable entry", f"{where} is no object: write one with filename, split and sentences")
            continue
        name, split, prefix = image.get("filename"), image.get("split"), image.get("filepath", "")
        if not isinstance(name, str) or not name.strip() or not isinstance(prefix, str):
            problems.add("unusable entry", f"{where} lacks a filename: add it")
            continue
        if not isinstance(split, str) or not split.strip():
            problems.add("unusable entry", f"{where} ({name}) lacks a split: add train, val or test")
            continue
        captions = list(_captions(image.get("sentences"), f"{where} ({name})", problems, official))
        if captions:
            given = {key: image[key] for key in _ID_KEYS if _is_id(image.get(key))}
            path = str(PurePath(prefix) / name)
            named = {key: image[key] for key in _ID_KEYS if isinstance(image.get(key), str)}
            yield _Entry(path=path, name=name, split=split, given_ids=given, given_labels=named, captions=captions)


def _captions(sentences: Any, where: str, problems: Problems, official: bool) -> Iterator[tuple[str, int | None]]:
    if not isinstance(sentences, list) or not sentences:
        problems.add("image without captions", f"{where} has no sentences: add a caption, or leave the image out")
        return
    for j, sentence in enumerate(sentences):
        text = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(text, str):
            problems.add("unusable entry", f'{where}: sentences[{j}] lacks the caption "raw": add it')
        elif not (text.strip() if official else has_words(text)):
            problems.add(
                "caption without words",
                f"{where}: the caption sentences[{j}] has no words ({text!r}): write it out, or leave it out",
            )
        else:
            number = sentence.get("sentid")
            yield text, number if _is_id(number) else None


def _image_ids(entries: list[_Entry]) -> tuple[list[int], list[str] | list[None]]:
    """Number and label of each entry's image.

    The numbers are the file's, where every entry has one, and there are no labels then; else they count in file
    order, and the labels are the file's ids where they are texts that tell the images apart, else the paths.
    """
    for key in _ID_KEYS:
        if all(key in entry.given_ids for entry in entries):
            return [entry.given_ids[key] for entry in entries], [None] * len(entries)
    places: dict[str, int] = {}
    numbers = [places.setdefault(entry.path, len(places)) for entry in entries]
    for key in _ID_KEYS:
        if all(key in entry.given_labels for entry in entries):
            labels = [entry.given_labels[key] for entry in entries]
            if len(set(zip(labels, numbers, strict=True))) == len(set(labels)) == len(places):
                return numbers, labels
    return numbers, [entry.path for entry in entries]


def _distinct(numbers: list[int | None]) -> bool:
    return None not in numbers and len(set(numbers)) == len(numbers)


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63
