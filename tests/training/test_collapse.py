"""The collapse that a pretrained scale of the logits makes on images and words of another kind: caught, and cured."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mwa_lightning.cli.train import main

NOUNS = ["kettle", "anchor", "lantern", "violin", "saddle", "compass", "harbour", "thimble", "beacon", "ladder"]
ADJECTIVES = ["folded", "broken", "ancient", "narrow", "woven", "gilded", "hollow", "rusty"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line drawings, a form for each noun, with small arcs of each adjective; 32 steps of 32 captions an epoch."""
    root, draw, rows = tmp_path_factory.mktemp("foreign"), random.Random(0), []
    for number in range(1024 + 64):
        noun, adjective = draw.randrange(len(NOUNS)), draw.randrange(len(ADJECTIVES))
        colour = tuple(draw.randrange(256) for _ in range(3))
        image = Image.new("RGB", (64, 64), "white")
        pen, form, marks = ImageDraw.Draw(image), random.Random(noun), random.Random(100 + adjective)
        points = [(form.randrange(64), form.randrange(64)) for _ in range(7)]
        pen.line([(x + draw.randrange(-4, 5), y + draw.randrange(-4, 5)) for x, y in points], colour, 1 + adjective)
        for x, y in [(marks.randrange(52), marks.randrange(52)) for _ in range(3)]:
            pen.arc((x, y, x + 12, y + 12), 0, 300, colour, 2)
        image.save(root / f"{number}.png")
        split = "train" if number < 1024 else "val" if number < 1056 else "test"
        rows.append((f"{number}.png", f"{ADJECTIVES[adjective]} {NOUNS[noun]}, sketch {number % 37}", split))
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return root


def train(root: Path, run: Path, *options: str) -> int:
    return main(
        [
            "data=pairs",
            f"data.root={root}",
            "data.batch_size=32",
            "data.num_workers=0",
            "adapter=mwa",
            "optim.lr=1e-3",
            "optim.warmup_epochs=0",
            "optim.logit_scale_factor=1",
            "trainer.max_epochs=1",
            "training.collapsed=stop",
            f"run_dir={run}",
            *options,
        ]
    )


@pytest.mark.slow
def test_collapse__is_named_within_an_epoch_and_cured(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(foreign, tmp_path / "pretrained", "task.logit_scale=pretrained") == 5
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        "the embeddings have collapsed: all (images|texts) look the same to the model since about step", line
    )
    assert "that of knowing nothing is 3.47); set task.logit_scale=fitted or optim.lr=0.0003" in line
    assert train(foreign, tmp_path / "fitted", "task.logit_scale=fitted") == 0
    assert "collapsed" not in (tmp_path / "fitted/metrics.json").read_text()
