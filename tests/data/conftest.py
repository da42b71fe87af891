"""A tokenizer of a few words and small data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import settings
from PIL import Image

from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer

settings.register_profile("steady", deadline=None)  # machines are busy at times
settings.load_profile("steady")

WORDS = ["a", "red", "blue", "green", "circle", "square", "star", "is", "left", "right"]
WORDS += ["of", "the", "above", "below", "and", "small", "large"]


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of 40 pieces."""
    folder = tmp_path_factory.mktemp("spm")
    generator = np.random.default_rng(0)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(generator.choice(WORDS, 8)) for _ in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tiny"), vocab_size=40, minloglevel=2
    )
    return (folder / "tiny.model").rename(folder / "tiny.spm")


@pytest.fixture
def tokenizer(spm: Path) -> SentencePieceTokenizer:
    """The tokenizer of that model."""
    return SentencePieceTokenizer(spm, max_length=16)


@pytest.fixture
def write_karpathy(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Karpathy data set of small pictures, each of its own, and returns its folder."""

    def write(
        *,
        name: str = "dataset.json",
        splits: dict[str, int] | None = None,
        captions: int = 2,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        root = tmp_path / "set"
        (root / "pictures").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        for split, count in (splits or {"train": 8, "val": 3, "test": 4}).items():
            for _ in range(count):
                i = len(images)
                filename = f"{i:03}.png"
                write_picture(root / "pictures" / filename, seed=i)
                sentences = [
                    {"raw": f"a {WORDS[1 + (i + j) % 3]} star", "sentid": 100 + i * captions + j}
                    for j in range(captions)
                ]
                entry = {"filepath": "pictures", "filename": filename, "split": split, "imgid": 10 + i}
                images.append({**entry, "sentences": sentences})
        data = {"images": images}
        if change is not None:
            change(data)
        (root / name).write_text(json.dumps(data))
        return root

    return write


def write_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    """Write a picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def write_statements(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSONL of statements about small pictures, k of its own for each, and returns its folder."""

    def write(
        *,
        splits: dict[str, int] | None = None,
        images_a_sample: int = 2,
        change: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> Path:
        root = tmp_path / "set"
        (root / "pictures").mkdir(parents=True)
        samples: list[dict[str, Any]] = []
        for split, count in (splits or {"train": 8, "val": 3, "test": 5}).items():
            for _ in range(count):
                i = len(samples)
                names = [f"pictures/{i:03}-{side}.png" for side in range(images_a_sample)]
                for side, name in enumerate(names):
                    write_picture(root / name, seed=10 * i + side)
                text = f"the left {WORDS[1 + i % 3]} star is right of the circle"
                samples.append({"images": names, "text": text, "label": i % 2, "split": split})
        if change is not None:
            change(samples)
        (root / "statements.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        return root

    return write
