"""What all tests share."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "grey": (120, 120, 120)}
SIZES = {"train": 12, "val": 6, "test": 6}
PIECES = 40


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """As many threads as the smallest machine of the project has cores; of runs one, whatever the load is."""
    import torch

    torch.set_num_threads(2)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """Commands that tests start hear what a terminal sends, also where the tests run in the background or by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache folder stays as it is; made data sets are shared by the tests of a session."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of one colour with two captions each, in the layout of Karpathy's data sets."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    draw = random.Random(0)
    images = []
    for split, count in SIZES.items():
        for number in range(count):
            name, rgb = draw.choice(list(COLOURS.items()))
            file = f"{split}_{number}.jpg"
            shade = tuple(min(255, value + draw.randrange(40)) for value in rgb)
            Image.new("RGB", (24, 20), shade).save(root / file)
            sentences = [{"raw": f"a {name} picture"}, {"raw": f"picture number {number} is {name}"}]
            images.append({"filename": file, "split": split, "sentences": sentences})
    (root / "dataset.json").write_text(json.dumps({"images": images}))
    return root


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of 40 pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["a", "picture", "number", "is", *COLOURS, *(str(number) for number in range(20))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 20),
        model_prefix=str(folder / "tiny"),
        vocab_size=PIECES,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return folder / "tiny.model"


@pytest.fixture(scope="session")
def tiny_run(data_root: Path, tokenizer_file: Path) -> list[str]:
    """For `mwa-train`, but for run_dir: two layers of width 16, 8 captions a batch, three steps an epoch."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file)).get_piece_size()
    return [
        "backbone.width=16",
        "backbone.depth=2",
        "backbone.heads=2",
        "backbone.ffn_width=32",
        "backbone.image_size=16",
        "backbone.patch_size=8",
        "backbone.text_positions=66",
        "backbone.checkpoint=random",
        f"backbone.tokenizer={tokenizer_file}",
        f"backbone.vocabulary_size={pieces + 2}",
        "backbone.max_text_length=16",
        "data=karpathy",
        f"data.root={data_root}",
        "data.batch_size=8",
        "data.eval_batch_size=5",
        "data.num_workers=0",
        "data.exif=false",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
    ]


def wandb_records(run: Path) -> Iterator[Any]:
    """What W&B's client has written of each start of an offline run, in order: records of the client's own protocol."""
    from mwa_lightning.training.loggers.wandb_files import records

    for file in sorted(run.glob("wandb/*run-*/run-*.wandb")):
        yield from records(file)


@pytest.fixture(name="wandb_records", scope="session")
def _wandb_records() -> Callable[[Path], Iterator[Any]]:
    return wandb_records


@pytest.fixture(name="wandb_figures", scope="session")
def _wandb_figures() -> Callable[[Path], list[tuple[int, str, float]]]:
    """The figures of an offline run as W&B has them: step, name and value, in order, each as often as it is there."""

    def figures(run: Path) -> list[tuple[int, str, float]]:
        found = []
        for record in wandb_records(run):
            if record.HasField("history"):
                names = [item.nested_key[0] if len(item.nested_key) == 1 else item.key for item in record.history.item]
                row = dict(zip(names, (json.loads(item.value_json) for item in record.history.item), strict=True))
                step = int(row.pop("trainer/global_step"))
                # Without what W&B adds, and without pictures, which are nested.
                found += [(step, name, value) for name, value in row.items() if name and not name.startswith("_")]
        return found

    return figures
