"""easy-VQA: simple shapes with questions about their form and colour, for `task=entailment data=statements`.

    pip install easy-vqa
    python scripts/datasets/easy_vqa.py --output DIR

13 answers: yes and no, three shapes, eight colours. Licence of the package: MIT. What comes out: `images/`, and
`train.jsonl`, `val.jsonl` and `test.jsonl` of image, text and label. The test split is the package's, of which 450
images are taken by the default limit; val is taken from its train split by a hash of the images' names.
"""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from common import TRAIN_SHARE, VAL_SHARE, arguments_of, installed, share, write_statements
from PIL import Image

SOURCE = "Made of the Python package easy-vqa (MIT) by scripts/datasets/easy_vqa.py."


def package_folder() -> Path | None:
    """Returns the folder of the package's data, or None where it is not installed; this script has the same name."""
    try:
        return Path(str(distribution("easy-vqa").locate_file("easy_vqa/data")))
    except PackageNotFoundError:
        return None


def statements(data: Path, *, size: int, limit: int) -> tuple[dict[str, Image.Image], list[dict[str, str]]]:
    """Returns the images by their paths in the data set, and a row of image, text, label and split for each question.

    Args:
        data: folder of the package's data.
        size: pixels along the side of an image.
        limit: most images, of which `TRAIN_SHARE` and `VAL_SHARE` are of the package's train split; 0 = all.
    """
    images: dict[str, Image.Image] = {}
    rows: list[dict[str, str]] = []
    seen = set[bytes]()
    for part, part_share in (("train", TRAIN_SHARE + VAL_SHARE), ("test", 1 - TRAIN_SHARE - VAL_SHARE)):
        questions = defaultdict(list)
        for text, answer, number in json.loads((data / part / "questions.json").read_text(encoding="utf-8")):
            questions[f"images/{part}-{number}.png"].append((text, answer))
        files = sorted(questions, key=lambda file: share(file, "order"))
        for file in files[: round(part_share * limit)] if limit else files:
            with Image.open(data / part / "images" / file.split("-")[-1]) as image:
                square = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
            if square.tobytes() in seen:  # an image in two splits would be no test
                continue
            seen.add(square.tobytes())
            images[file] = square
            in_val = part == "train" and share(file, "split") < VAL_SHARE / (TRAIN_SHARE + VAL_SHARE)
            split = "val" if in_val else part
            rows += [{"image": file, "text": text, "label": answer, "split": split} for text, answer in questions[file]]
    return images, rows


def main() -> None:
    arguments = arguments_of(__doc__, size=64, limit=3000).parse_args()
    data = installed(package_folder(), "easy-vqa", "pip install easy-vqa")
    images, rows = statements(data, size=arguments.size, limit=arguments.limit)
    write_statements(arguments.output, images, rows, source=SOURCE)


if __name__ == "__main__":
    main()
