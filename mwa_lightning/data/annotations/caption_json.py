"""Captions in JSON, in any of the forms of `caption_forms`: the splits of COCO, Flickr30K and sets like them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath

from mwa_lightning.data.annotations.caption_forms import ID_KEYS, Entry, Form
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import encoding_of
from mwa_lightning.data.samples.records import RetrievalSplit, SplitBuilder
from mwa_lightning.data.tables.json_tables import read_json
from mwa_lightning.data.tables.splitting import assign_splits, split_named
from mwa_lightning.errors import counted, shorten


def read_caption_json(
    files: Path | Mapping[str, Path],
    *,
    folder: PurePath,
    problems: Problems,
    official: bool = False,
    val_share: float | None = None,
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
        val_share: How much of train becomes val, where there is none.
    """
    given = {None: files} if isinstance(files, Path) else files
    entries: list[Entry] = []
    for split, file in given.items():
        encoding = encoding_of(file, problems)
        data = None if encoding is None else read_json(file, encoding, problems)
        if data is not None:
            entries += Form(file=str(file), split=split, problems=problems, official=official).entries(data)
    if official and entries and all(entry.split is None for entry in entries):
        problems.add(
            "no splits",
            f"{files} does not say which images belong to train, val and test: give it the name that its authors gave "
            "it, or take data=karpathy, which splits it by a hash",
        )
        return {}
    splits = _splits(entries, problems, val_share)
    image_ids, labels = _image_ids(entries, several=len(given) > 1)
    keep_sentence_ids = _distinct([number for entry in entries for _, number in entry.captions])
    builders: dict[str, SplitBuilder] = {}
    owner: dict[int, str] = {}
    others: Counter[str] = Counter()
    count = 0
    for entry, split, image_id, label in zip(entries, splits, image_ids, labels, strict=True):
        if split is None:
            continue
        if owner.setdefault(image_id, entry.path) != entry.path:
            problems.add(
                "image id used twice",
                f"{entry.where}: {entry.path} and {owner[image_id]} have the same image id {image_id}: give "
                "each image its own, or leave the ids out",
            )
            continue
        if split_named(split) is None:
            others[split] += 1
        builder = builders.setdefault(split, SplitBuilder(name=split, folder=folder))
        for text, sentence_id in entry.captions:
            caption_id = sentence_id if keep_sentence_ids and sentence_id is not None else count
            builder.add(
                path=entry.path, name=entry.name, image_id=image_id, text=text, caption_id=caption_id, label=label
            )
            count += 1
    for split, images in others.items():
        problems.note(
            f"{shorten(map(str, given.values()))}: {counted(images, 'entry', 'entries')} of the split {split!r}, "
            "which is neither train, val nor test: not used; write one of these"
        )
    return {name: builder.build() for name, builder in builders.items()}


def _splits(entries: list[Entry], problems: Problems, val_share: float | None) -> list[str | None]:
    """The split of each entry, those of other names as they are; None where it lacks the one that others have."""
    splits = [entry.split for entry in entries]
    usual = [place for place, split in enumerate(splits) if split is None or split_named(split) is not None]
    rows = [(entries[place].where, splits[place], entries[place].path) for place in usual]
    for place, split in zip(usual, assign_splits(rows, problems, val_share=val_share), strict=True):
        splits[place] = split
    return splits


def _image_ids(entries: list[Entry], *, several: bool) -> tuple[list[int], list[str] | list[None]]:
    """Number and label of each entry's image.

    The numbers are the file's, where every entry has one (of `several` files, where no two use one for different
    images: each may count from 0), and there are no labels then; else they count in file
    order, and the labels are the file's ids where they are texts that tell the images apart, else the paths.
    """
    for key in ID_KEYS:
        if all(key in entry.given_ids for entry in entries):
            ids = [entry.given_ids[key] for entry in entries]
            if not several or len({(i, entry.path) for i, entry in zip(ids, entries, strict=True)}) == len(set(ids)):
                return ids, [None] * len(entries)
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
