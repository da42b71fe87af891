"""Captions in JSON, in any of the forms of `caption_forms`: the splits of COCO, Flickr30K and sets like them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath

from mwa_lightning.data.caption_forms import ID_KEYS, Entry, Form
from mwa_lightning.data.json_tables import read_json
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.records import RetrievalSplit, SplitBuilder
from mwa_lightning.data.splitting import SPLITS, split_by_hash
from mwa_lightning.data.text_files import encoding_of


def read_caption_json(
    files: Path | Mapping[str, Path], *, folder: PurePath, problems: Problems, official: bool = False
) -> dict[str, RetrievalSplit]:
    """The splits of a data set by name; `restval` belongs to `train`.

    An image's number is its `cocoid`, else its `imgid`, where every entry has one, and else its place in the
    file, with its id as text, or else its path, for a label; the same rule numbers the captions by `sentid`.

    Args:
        files: One file, which says what split an image belongs to (of one's own set that does not, 90 % of the
            images go to train, 5 % to val and 5 % to test by a hash of their paths), or the file of each split.
        folder: What the paths of images are relative to.
        problems: Where a damaged file, or an entry that cannot be used, is reported.
        official: Only a blank caption counts as one without words: what the published files hold is used as
            it is.
    """
    given = {None: files} if isinstance(files, Path) else files
    entries: list[Entry] = []
    splits: list[str | None] = []
    for split, file in given.items():
        encoding = encoding_of(file, problems)
        data = None if encoding is None else read_json(file, encoding, problems)
        if data is not None:
            read = list(Form(file=str(file), problems=problems, official=official).entries(data))
            entries += read
            splits += [entry.split if split is None else split for entry in read]
    if entries and all(split is None for split in splits):
        splits = _by_hash(entries, files, problems, official)
    image_ids, labels = _image_ids(entries)
    keep_sentence_ids = _distinct([number for entry in entries for _, number in entry.captions])
    builders: dict[str, SplitBuilder] = {}
    owner: dict[int, str] = {}
    others: Counter[str] = Counter()
    count = 0
    for entry, said, image_id, label in zip(entries, splits, image_ids, labels, strict=True):
        if said is None:
            problems.add("unusable entry", f"{entry.where} lacks the split that others have: add it")
            continue
        if owner.setdefault(image_id, entry.path) != entry.path:
            problems.add(
                "image id used twice",
                f"{entry.where}: {entry.path} and {owner[image_id]} have the same image id {image_id}: give "
                "each image its own, or leave the ids out",
            )
            continue
        split = SPLITS.get(said.strip().lower(), said)
        if split not in SPLITS.values():
            others[split] += 1
        builder = builders.setdefault(split, SplitBuilder(name=split, folder=folder))
        for text, sentence_id in entry.captions:
            caption_id = sentence_id if keep_sentence_ids and sentence_id is not None else count
            builder.add(
                path=entry.path, name=entry.name, image_id=image_id, text=text, caption_id=caption_id, label=label
            )
            count += 1
    for split, images in others.items():
        problems.note(f"{files}: {images:,} entries are of the split {split!r}, which is none of train, val and test")
    return {name: builder.build() for name, builder in builders.items()}


def _by_hash(
    entries: list[Entry], files: Path | Mapping[str, Path], problems: Problems, official: bool
) -> list[str | None]:
    if official:
        problems.add(
            "no splits",
            f"{files} does not say which images are to train, val and test: give it the name that its authors gave it, "
            "or take data=karpathy, which splits it by a hash",
        )
        return [None] * len(entries) if problems.collect else []
    by_hash = split_by_hash({entry.path for entry in entries})
    return [by_hash[entry.path] for entry in entries]


def _image_ids(entries: list[Entry]) -> tuple[list[int], list[str] | list[None]]:
    """Number and label of each entry's image.

    The numbers are the file's, where every entry has one, and there are no labels then; else they count in file
    order, and the labels are the file's ids where they are texts that tell the images apart, else the paths.
    """
    for key in ID_KEYS:
        if all(key in entry.given_ids for entry in entries):
            return [entry.given_ids[key] for entry in entries], [None] * len(entries)
    places: dict[str, int] = {}
    numbers = [places.setdefault(entry.path, len(places)) for entry in entries]
    for key in ID_KEYS:
        if all(key in entry.given_labels for entry in entries):
            labels = [entry.given_labels[key] for entry in entries]
            if len(set(zip(labels, numbers, strict=True))) == len(set(labels)) == len(places):
                return numbers, labels
    return numbers, [entry.path for entry in entries]


def _distinct(numbers: list[int | None]) -> bool:
    return None not in numbers and len(set(numbers)) == len(numbers)
