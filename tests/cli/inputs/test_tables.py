"""From the command line: tables and folders as people have them, each by what docs/data.md says to type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mwa_lightning.cli import prepare, train
from tests.data.conftest import write_picture

Capture = pytest.CaptureFixture[str]

ROWS = "".join(f"images/{i}.jpg,a dog number {i}\n" for i in range(8))
LISTS = "".join(json.dumps({"img": f"images/{i}.jpg", "Captions": [f"a dog {i}", "a cat"]}) + "\n" for i in range(8))
PIPES = "".join(f"{i}.jpg| {j}| a dog , number {i} .\n" for i in range(8) for j in range(2))
TOKENS = "".join(f"{i}.jpg#{j}\ta dog number {i}\n" for i in range(8) for j in range(2))
THREE = {
    "train.csv": "filepath\ttitle\n" + "".join(f"images/{i}.jpg\ta dog, a cat {i}\n" for i in range(4)),
    "val.csv": "filepath\ttitle\nimages/4.jpg\tx\nimages/5.jpg\ty\n",
    "test.csv": "filepath\ttitle\nimages/6.jpg\tx\nimages/7.jpg\ty\n",
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(8):
        write_picture(tmp_path / "images" / f"{i}.jpg", seed=i)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "typed", "captions"),
    [
        ({"pairs.csv": "image,caption\n" + ROWS}, [], (6, 1, 1)),
        ({"a.txt": "\ufeffBild;Satz\r\n" + ROWS.replace(",", ";")}, ["data.columns={image: bild, caption: Satz}"],
         (6, 1, 1)),
        ({"a.jsonl": LISTS}, [], (12, 2, 2)),
        ({"results.csv": "image_name| comment_number| comment\n" + PIPES + "9.jpg| 1 without a pipe\n"},
         ["data.images=images", "data.skip_bad_rows=1", "data.skip_bad_rows_in_eval=true"], (12, 2, 2)),
        ({"T.token.txt": TOKENS, "T.trainImages.txt": "0.jpg\n1.jpg\n", "T.devImages.txt": "2.jpg\n",
          "T.testImages.txt": "3.jpg\n"}, ["data.annotations=T.token.txt", "data.images=images"], (4, 2, 2)),
        (THREE, [], (4, 2, 2)),
        ({f"lists/my_{name}": rows for name, rows in THREE.items()},
         ["data.annotations=[lists/my_train.csv,lists/my_val.csv,lists/my_test.csv]", "data.images=."], (4, 2, 2)),
        ({"a.csv": THREE["train.csv"], "b.csv": THREE["val.csv"]},
         ["data.annotations={train: a.csv, valid: b.csv}"], (4, 2, 0)),
        ({f"images/{i}.txt": f"a dog {i}\na cat\n" for i in range(8)}, [], (12, 2, 2)),
        ({"a.csv": "image,caption,phase\n" + ROWS.replace("\n", ",TRAINING\n")}, ["data.val_share=0.3"], (7, 1, 0)),
        ({"a.csv": "image,caption,split\n" + ROWS.replace("\n", ",test2017\n")}, [], (0, 0, 8)),
    ],
)  # fmt: skip
def test_prepare__what_people_have(
    pictures: Path, files: Mapping[str, str], typed: list[str], captions: tuple[int, ...], capsys: Capture
) -> None:
    for name, content in files.items():
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_text(content)
    command = ["data=pairs", f"data.root={pictures}", "data.num_workers=0", *typed]
    assert prepare.main([*command, "check=true"]) == 0
    report = capsys.readouterr().out
    counts = dict(re.findall(r"^(train|val|test): \d+ images?, (\d+) captions?", report, re.M))
    assert tuple(int(counts.get(split, 0)) for split in ("train", "val", "test")) == captions
    assert "read as: " in report
    assert report.endswith("no problems\n")


def test_train__bad_rows_are_counted(pictures: Path, tiny_run: list[str], capsys: Capture) -> None:
    rows = ROWS.replace("a dog number 0", ".").replace("images/1", "images/gone").replace("\n", ",train\n", 6)
    rows = rows.replace("6\n", "6,val\n").replace("7\n", "7,test\n")
    (pictures / "a.csv").write_text("image,caption,split\n" + rows)
    rest = [key for key in tiny_run if not key.startswith(("data=", "data.root="))]
    command = [*rest, "data=pairs", f"data.root={pictures}", "data.batch_size=2", "data.num_workers=0",
               "trainer.max_epochs=1", f"run_dir={pictures / 'run'}"]  # fmt: skip
    assert train.main(command) == 2
    assert "data.skip_bad_rows=N leaves out up to N such rows" in capsys.readouterr().err
    assert train.main([*command, "data.skip_bad_rows=1"]) == 2
    assert "there are more such rows than data.skip_bad_rows=1 leaves out" in capsys.readouterr().err
    assert train.main([*command, "data.skip_bad_rows=2"]) == 0
    assert "left out 2 rows of no use (data.skip_bad_rows), the first: " in capsys.readouterr().out
    assert json.loads((pictures / "run" / "metrics.json").read_text())["data/skipped_rows"] == 2


def test_shards__bad_rows_stay_outside(pictures: Path, capsys: Capture) -> None:
    (pictures / "a.csv").write_text("image,caption,split\n" + ROWS.replace("\n", ",train\n") + "images/9.jpg,x,train\n")
    command = ["data=pairs", f"data.root={pictures}", f"shards={pictures / 'shards'}"]
    assert prepare.main(command) == 2
    assert prepare.main([*command, "data.skip_bad_rows=1"]) == 0
    shards = ["data=pairs", f"data.shards={pictures / 'shards'}", "data.num_workers=0", "check=true"]
    assert prepare.main(shards) == 2
    capsys.readouterr()
    assert prepare.main([*shards, "data.skip_bad_rows=1"]) == 0
    assert "train: 8 images, 8 captions" in capsys.readouterr().out
