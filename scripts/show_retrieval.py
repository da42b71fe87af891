"""Draws what a caption finds before and after adaptation: the picture of the README.

    python scripts/show_retrieval.py RUN_DIR docs/images/retrieval.png

RUN_DIR is a finished run on the scenes (`mwa-train`). For a few captions of the test split, at even distances, the
five best pictures of the pretrained backbone and of the adapted one; the right picture has a green frame.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path, PurePath

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

import mwa_lightning
from mwa_lightning.data.built_in import prepare_scenes, scenes_root
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.sources import find_source

FIRST = 5  # pictures shown for each caption and model


@torch.inference_mode()
def best_pictures(adapter: Path | None, split: RetrievalSplit, captions: list[str], folder: PurePath) -> Tensor:
    """The best pictures of the split for each caption, best first: rows of the split (n, FIRST)."""
    model, tokenizer, transform = mwa_lightning.load("beit3_tiny", adapter=adapter)
    pictures = [transform(Image.open(folder / picture.path).convert("RGB")) for picture in split.pictures]
    scores = model.encode_text(*tokenizer(captions)) @ model.encode_image(torch.stack(pictures)).T
    return scores.topk(FIRST).indices


def main() -> None:
    """Rank, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with adapter.safetensors")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--captions", type=int, default=4, help="how many captions")
    arguments = parser.parse_args()

    root = scenes_root(domain="target")
    prepare_scenes(root, domain="target")
    source = find_source(layout="scenes", root=root)
    split = source.read(Problems())["test"]
    assert isinstance(split, RetrievalSplit)
    chosen = [
        len(split.captions) * (2 * number + 1) // (2 * arguments.captions) for number in range(arguments.captions)
    ]
    captions = [split.captions[row].text for row in chosen]
    adapter = arguments.run / "adapter.safetensors"
    found = [
        best_pictures(None, split, captions, source.folder),
        best_pictures(adapter, split, captions, source.folder),
    ]

    widths = [2.2] + [1.0] * 2 * FIRST
    figure, axes = plt.subplots(
        arguments.captions, len(widths), figsize=(12, 1.2 * arguments.captions), width_ratios=widths
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, row in enumerate(chosen):
        axes[line, 0].text(1, 0.5, textwrap.fill(captions[line], 24), ha="right", va="center", fontsize=9)
        right = split.captions[row].image_index
        for side, ranking in enumerate(found):
            for place, picture in enumerate(ranking[line].tolist()):
                axis = axes[line, 1 + side * FIRST + place]
                axis.axis("on")
                axis.set(xticks=[], yticks=[])
                axis.imshow(Image.open(source.folder / split.pictures[picture].path))
                for edge in axis.spines.values():
                    edge.set(color="tab:green" if picture == right else "white", linewidth=4)
    axes[0, 1 + FIRST // 2].set_title("pretrained (zero-shot)", fontsize=10)
    axes[0, 1 + FIRST + FIRST // 2].set_title("with MultiWay-Adapter", fontsize=10)
    figure.tight_layout(pad=0.3)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=90)


if __name__ == "__main__":
    main()
