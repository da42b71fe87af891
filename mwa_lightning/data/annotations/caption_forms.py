"""The forms in which published captions come as JSON, each as a stream of images with their captions.

- Karpathy's: `{"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}`, all splits in one file;
- COCO's own: `{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}`;
- a list, as BLIP, ALBEF and LAVIS have it: `[{"image", "caption"}, ...]`, where a caption may be several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, TypeGuard

from mwa_lightning.data.files.foreign_json import what_it_is
from mwa_lightning.data.files.problems import Problems, has_words
from mwa_lightning.data.tables.splitting import split_named
from mwa_lightning.errors import counted

ID_KEYS = ("cocoid", "imgid")


class Entry(NamedTuple):
    """An image with captions, as a file lists it.

    `split` is what the file says of it, None where its form says nothing; `given_ids` and `given_labels` are its
    numbers, and its ids that are texts, by the name of the field; a caption is its text and its number.
    """

    where: str
    path: str
    name: str
    split: str | None
    given_ids: dict[str, int]
    given_labels: dict[str, str]
    captions: list[tuple[str, int | None]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Reads one file; what cannot be used is reported to `problems`, with the name of the file.

    Args:
        file: The file, for messages.
        split: The split of those of its images that do not say it themselves, if the file has one.
        problems: Where an entry that cannot be used is reported.
        official: Only a blank caption counts as one without words.
    """

    file: str
    split: str | None
    problems: Problems
    official: bool

    def entries(self, data: Any) -> Iterator[Entry]:
        """The images of a file of any of the forms that have captions."""
        reads = self._form_of(data)
        if reads is None:
            what = what_it_is(data) or (
                'no JSON of captions: give Karpathy\'s form, a list "images" of filename, split and sentences, or '
                "COCO's form, or a list of objects with image and caption"
            )
            self.problems.add("not captions", f"{self.file} is {what}")
            return
        count = len(self.problems.found)
        some = False
        for entry in reads(data):
            some = True
            yield entry
        if not some and len(self.problems.found) == count:
            self.problems.add("no images", f"{self.file} lists no images: fetch or write it again")

    def _form_of(self, data: Any) -> Callable[[Any], Iterator[Entry]] | None:
        if what_it_is(data) is not None:
            return None
        if isinstance(data, list):
            return self._listed
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            return None
        return self._coco if isinstance(data.get("annotations"), list) else self._karpathy

    def _karpathy(self, data: dict[str, Any]) -> Iterator[Entry]:
        for i, image in enumerate(data["images"]):
            where = f"{self.file}: images[{i}]"
            if not isinstance(image, dict):
                self._bad("unusable entry", f"{where} is no object: write one with filename, split and sentences")
                continue
            name, split, prefix = image.get("filename"), _split(image), image.get("filepath", "")
            if not _is_text(name) or not isinstance(prefix, str):
                self._bad("unusable entry", f"{where} lacks a filename: add it")
                continue
            where = f"{where} ({name})"
            if split is None and self.split is None:
                self._bad("unusable entry", f"{where} lacks a split: add train, val or test")
                continue
            sentences = image.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                self._bad(
                    "image without captions",
                    f"{where} has no sentences: add a caption, or leave the image out",
                    split=split,
                )
                continue
            captions = []
            for j, sentence in enumerate(sentences):
                text = sentence.get("raw") if isinstance(sentence, dict) else None
                if not isinstance(text, str):
                    self._bad("unusable entry", f'{where}: sentences[{j}] lacks the caption "raw": add it', split=split)
                elif self._worded(text, f"{where}: the caption sentences[{j}]", split=split):
                    captions.append((text, _number(sentence.get("sentid"))))
            if captions:
                numbers = {key: image[key] for key in ID_KEYS if _number(image.get(key)) is not None}
                labels = {key: image[key] for key in ID_KEYS if isinstance(image.get(key), str)}
                yield Entry(where, str(PurePath(prefix) / name), name, split or self.split, numbers, labels, captions)

    def _coco(self, data: dict[str, Any]) -> Iterator[Entry]:
        captions: dict[str, list[tuple[str, int | None]]] = {}
        for i, annotation in enumerate(data["annotations"]):
            where = f"{self.file}: annotations[{i}]"
            image_id = _key(annotation.get("image_id")) if isinstance(annotation, dict) else None
            text = annotation.get("caption") if isinstance(annotation, dict) else None
            if image_id is None or not isinstance(text, str):
                self._bad("unusable entry", f"{where} lacks an image_id or a caption: add it")
            elif self._worded(text, f"{where}: the caption"):
                captions.setdefault(image_id, []).append((text, _number(annotation.get("id"))))
        for i, image in enumerate(data["images"]):
            where = f"{self.file}: images[{i}]"
            name = image.get("file_name") if isinstance(image, dict) else None
            image_id = _key(image.get("id")) if isinstance(image, dict) else None
            if image_id is None or not _is_text(name):
                self._bad("unusable entry", f"{where} lacks a file_name or an id: add it")
                continue
            where = f"{where} ({name})"
            if image_id not in captions:
                self._bad(
                    "image without captions",
                    f"{where} has no caption: add one, or leave the image out",
                    split=_split(image),
                )
                continue
            number = _number(image["id"])
            numbers = {} if number is None else {ID_KEYS[0]: number}
            labels = {ID_KEYS[0]: image["id"]} if isinstance(image["id"], str) else {}
            yield Entry(
                where, name, PurePath(name).name, _split(image) or self.split, numbers, labels, captions.pop(image_id)
            )
        if captions:
            self._bad(
                "unusable entry",
                f"{self.file}: captions of {counted(len(captions), 'image')} that it does not list, such as image_id "
                f"{next(iter(captions))}: list what is missing, or leave these captions out",
            )

    def _listed(self, data: list[Any]) -> Iterator[Entry]:
        for i, record in enumerate(data):
            where = f"{self.file}: [{i}]"
            path = record.get("image") if isinstance(record, dict) else None
            if not _is_text(path):
                self._bad("unusable entry", f'{where} lacks the path of its image: write "image" and "caption"')
                continue
            where = f"{where} ({path})"
            given = record.get("caption")
            texts = [given] if isinstance(given, str) else given
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                wrong = f'{where} lacks a "caption", a text or a list of texts: add it'
                if "label" in record:
                    wrong = f'{where} has a label and no "caption": add one, or take data=statements for labelled texts'
                self._bad("unusable entry", wrong, split=_split(record))
                continue
            captions: list[tuple[str, int | None]] = [
                (text, None) for text in texts if self._worded(text, f"{where}: the caption", split=_split(record))
            ]
            if captions:
                yield Entry(where, path, PurePath(path).name, _split(record) or self.split, {}, {}, captions)

    def _worded(self, text: str, what: str, *, split: str | None = None) -> bool:
        if text.strip() if self.official else has_words(text):
            return True
        wrong = f"{what} has no words ({text[:40]!r}): write some, or leave it out"
        self._bad("caption without words", wrong, split=split)
        return False

    def _bad(self, kind: str, message: str, *, split: str | None = None) -> None:
        self.problems.bad_row(kind, message, split=split_named(split) or self.split)


def _split(record: dict[str, Any]) -> str | None:
    return record["split"] if _is_text(record.get("split")) else None


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _number(value: Any) -> int | None:
    """An id that may number an image or a caption."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _key(value: Any) -> str | None:
    """What an id is looked up by: 9, 9.0 and "9" are one id; None where it is none."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
