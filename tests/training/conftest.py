"""A tiny data set of real JPEG files, a tokenizer for it, and configurations of a tiny random backbone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
from omegaconf import DictConfig
from PIL import Image

from mwa_lightning.cli.composing import apply, compose_groups, read_request
from mwa_lightning.cli.schema import check_values

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "grey": (120, 120, 120)}
SIZES = {"train": 12, "val": 6, "test": 6}
PIECES = 40

MakeConfig = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of one colour with two captions each, in the layout of Karpathy's data sets."""
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


@pytest.fixture
def make_config(data_root: Path, tokenizer_file: Path, tmp_path: Path) -> MakeConfig:
    """Composes as the command line does: two layers of width 16, 8 captions a batch, three steps an epoch."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file)).get_piece_size()

    def make(*arguments: str, command: str = "train", run: str = "run") -> DictConfig:
        base = [
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
            f"run_dir={tmp_path / run}",
        ]
        if not any(argument.startswith("adapter=") and argument != "adapter=mwa" for argument in arguments):
            base += ["adapter.mid_dim=4", "adapter.enhancer_dim=4"]
        request = read_request([*base, *arguments], config_name=command)
        config = compose_groups(command, request.choices)
        apply(config, request)
        check_values(config)
        return config

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are faster on one thread, by far where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
