"""The scripts that build data sets from installed packages: what they share, what each reads, and whole builds."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy
import pytest
from PIL import Image, ImageDraw

from mwa_lightning.data.inspection import inspect

FOLDER = Path(__file__).parents[2] / "scripts" / "datasets"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
Importer = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    """Imports a script as Python finds it that starts it; such common names are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {"common", *SCRIPTS}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield importlib.import_module
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


def run(script: str, *arguments: str | Path, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
    command = [sys.executable, str(FOLDER / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def slice_of(number: int, size: int = 60) -> Image.Image:
    """A slice of a disc on a transparent image, in a colour of its own."""
    image = Image.new("RGBA", (size, size))
    red, green, blue = hashlib.sha256(str(number).encode()).digest()[:3]
    box = (5, 5, size - 5, size - 5)
    ImageDraw.Draw(image).pieslice(box, number * 37 % 360, number * 37 % 360 + 200, fill=(red // 2, green, blue))
    return image


def test_split_of__seventy_fifteen_fifteen_and_for_good(module: Importer) -> None:
    split_of = module("common").split_of
    counts = Counter(split_of(f"animals/{number}") for number in range(4000))
    assert {split: round(count / 4000, 2) for split, count in counts.items()} == pytest.approx(
        {"train": 0.70, "val": 0.15, "test": 0.15}, abs=0.02
    )
    # Of these names for good: data sets of today and tomorrow have the same splits.
    assert " ".join(split_of(str(number)) for number in range(8)) == "train test train test train train train train"


def test_squared__what_is_drawn_fills_the_square(module: Importer) -> None:
    image = Image.new("RGBA", (200, 100))
    ImageDraw.Draw(image).rectangle((150, 40, 169, 49), fill="blue")
    pixels = numpy.asarray(module("common").squared(image, 100))
    blue = (pixels == (0, 0, 255)).all(axis=-1)
    assert pixels.shape == (100, 100, 3)
    assert blue[27:73, 4:96].all()  # twice as wide as high, in the middle, 4 pixels free
    assert blue.sum() == 46 * 92
    assert (pixels[~blue] == 255).all()


def test_squared__place_and_size_are_kept_where_they_tell(module: Importer) -> None:
    image = Image.new("RGBA", (92, 92))
    ImageDraw.Draw(image).rectangle((0, 82, 91, 91), fill="black")
    pixels = numpy.asarray(module("common").squared(image, 100, cropped=False))
    assert (pixels[86:96, 4:96] == 0).all()
    assert (pixels == 0).all(axis=-1).sum() == 10 * 92


@pytest.mark.parametrize("colour", ["white", "#f0f0f0", (255, 0, 0, 0), (0, 0, 0, 10)])
def test_squared__nothing_to_be_seen(colour: str | tuple[int, ...], module: Importer) -> None:
    assert module("common").squared(Image.new("RGBA", (50, 50), colour), 64) is None


def test_seen_images__same_pixels_and_nearly_the_same(module: Importer) -> None:
    common = module("common")
    seen = common.SeenImages()
    images = [common.squared(slice_of(number), 64) for number in range(300)]
    assert [seen.is_new(image) for image in images] == [True] * 300  # more than the first rows of the array
    assert not any(seen.is_new(image) for image in images)
    little_else = images[7].copy()
    ImageDraw.Draw(little_else).point((32, 32), "red")
    assert not seen.is_new(little_else)
    assert seen.is_new(images[7].rotate(90))


def test_write_pairs__what_is_left_out(
    module: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = module("common")
    monkeypatch.setattr(common, "split_of", lambda name: "test" if name.startswith("t") else "train")
    monkeypatch.setattr(common, "share", lambda name, purpose: int(name[1:]))  # taken in the order of these numbers
    candidates = [
        common.Candidate("t1", ("A cat.", "cat, animal"), partial(slice_of, 1)),
        common.Candidate("t2", ("a CAT.", "an old cat"), partial(slice_of, 2)),  # keeps what only it is called
        common.Candidate("t3", ("A cat.",), partial(slice_of, 3)),
        common.Candidate("n4", ("A cat.", "*"), partial(slice_of, 4)),  # another split; no words
        common.Candidate("n5", ("the same",), partial(slice_of, 1)),  # looks like one of the other split
        common.Candidate("n6", ("nothing",), partial(Image.new, "RGBA", (9, 9))),
        common.Candidate("n7", ("broken",), lambda: None),
        common.Candidate("n8", ("nothing", "anything"), partial(slice_of, 8)),  # a caption that nobody got is free
        common.Candidate("n9", ("beyond the limit",), partial(slice_of, 9)),
    ]
    common.write_pairs(tmp_path / "set", candidates[::-1], size=32, limit=4, source="From nowhere.")
    assert [(row["image"], row["caption"], row["split"]) for row in rows_of(tmp_path / "set")] == [
        ("images/n4.png", "A cat.", "train"),
        ("images/n8.png", "nothing", "train"),
        ("images/n8.png", "anything", "train"),
        ("images/t1.png", "A cat.", "test"),
        ("images/t1.png", "cat, animal", "test"),
        ("images/t2.png", "an old cat", "test"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "left out: 1 that look like another, 2 that show nothing, 1 whose captions other images of the split have",
        "train       2 images       3 captions       4 different words",
        "val         0 images       0 captions       0 different words, 0 of them not in train",
        "test        2 images       3 captions       5 different words, 3 of them not in train",
    ]


def test_write_pairs__same_bytes_twice_and_read_without_problems(module: Importer, tmp_path: Path) -> None:
    common = module("common")
    names = [f"A b/ü,{number}" for number in range(40)] + ["A b/u;1"]  # the last two would have the same file
    candidates = [
        common.Candidate(name, (f"number {number}", f'a "slice", {number}'), partial(slice_of, number))
        for number, name in enumerate(names)
    ]
    common.write_pairs(tmp_path / "one", candidates, size=32, limit=0, source="From nowhere.")
    common.write_pairs(tmp_path / "deep" / "two", candidates[::-1], size=32, limit=0, source="From nowhere.")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "deep" / "two")
    assert len(hashes(tmp_path / "one")) == 41 + 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"]
    report = inspect({"layout": "pairs", "root": str(tmp_path / "one")})
    assert (report.problems, report.shared_pictures) == ([], [])
    assert sum(split.images for split in report.splits) == 41
    assert sum(split.samples for split in report.splits) == 82


def test_write_pairs__one_more_moves_no_other(module: Importer, tmp_path: Path) -> None:
    common = module("common")
    candidates = [common.Candidate(str(number), (str(number),), partial(slice_of, number)) for number in range(30)]
    common.write_pairs(tmp_path / "less", candidates[:-1], size=32, limit=0, source="")
    common.write_pairs(tmp_path / "more", candidates, size=32, limit=0, source="")
    assert [row for row in rows_of(tmp_path / "more") if row["caption"] != "29"] == rows_of(tmp_path / "less")


def test_write_pairs__nothing_stays_of_a_build_that_fails(module: Importer, tmp_path: Path) -> None:
    common = module("common")

    def interrupted() -> Image.Image:
        raise KeyboardInterrupt

    candidates = [common.Candidate("1", ("one",), partial(slice_of, 1)), common.Candidate("2", ("two",), interrupted)]
    with pytest.raises(KeyboardInterrupt):
        common.write_pairs(tmp_path / "set", candidates, size=32, limit=0, source="")
    assert list(tmp_path.iterdir()) == []


def test_drawn_character__place_in_the_line(module: Importer) -> None:
    common = module("common")
    assert {ord("a"), 0x25A0} <= common.characters_of(FONT)
    low, high = (numpy.asarray(common.drawn_character(sign, FONT, 50))[..., 3] for sign in "_¯")
    assert low.shape == high.shape
    middle = low.shape[0] // 2
    assert (low[:middle].max(), high[middle:].max()) == (0, 0)
    assert min(low[middle:].max(), high[:middle].max()) > 200


def test_tuxpaint_stamps__first_line_and_raster_before_drawing(module: Importer, tmp_path: Path) -> None:
    (tmp_path / "sea").mkdir()
    for name in ("sea/gull.png", "sea/gull.svg", "sea/boat.svg", "sea/empty.png", "sea/nothing.txt"):
        (tmp_path / name).touch()
    slice_of(1).save(tmp_path / "sea" / "gull.png")
    (tmp_path / "sea/gull.txt").write_text("A  gull’s\tcry. \nfr.utf8=Une mouette.\n")
    (tmp_path / "sea/boat.txt").write_text("A boat.\n")
    (tmp_path / "sea/empty.txt").write_text("\nfr.utf8=Vide.\n")
    found = list(module("tuxpaint_stamps").candidates(tmp_path, 32))
    assert [(candidate.name, candidate.captions) for candidate in found] == [
        ("sea/boat", ("A boat.",)),
        ("sea/gull", ("A gull’s cry.",)),
    ]
    assert numpy.array_equal(found[1].draw(), slice_of(1))


SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:cc="http://web.resource.org/cc/"><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
 <dc:description>{description}</dc:description><dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
 <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
 </cc:Work></rdf:RDF></metadata></svg>"""


def svg(title: str, description: str, *keywords: str) -> str:
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return SVG.format(title=title, description=description, keywords=items)


def test_openclipart__what_drawings_say_of_themselves(module: Importer, tmp_path: Path) -> None:
    script = module("openclipart")
    drawing = tmp_path / "drawing.svg"
    for content, captions in {
        svg("Red_lamp", "A lamp\n of red glass", "lamp", "clipart", "light"): (
            "Red lamp",
            "A lamp of red glass",
            "lamp, light",
        ),
        svg("lamp", "Lamp", "lamp"): ("lamp",),  # one word is no description, one keyword no caption
        svg("Untitled", "see http://x.org/lamp there", "a", "a"): (),
        svg("untitled", "word " * 26): (),
        "<svg>": (),
        "<svg/>": (),
    }.items():
        drawing.write_text(content)
        assert script.captions_of(drawing) == captions


def test_openclipart__what_many_say_is_left_out(module: Importer, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.svg").write_text(svg(f"lamp {number // 3}", "Part of a collection"))
    (tmp_path / "large.svg").write_text(svg("large", "a large one") + " " * 300_000)
    (tmp_path / "link.svg").symlink_to("1.svg")
    found = {candidate.name: candidate.captions for candidate in module("openclipart").candidates(tmp_path, 32)}
    assert found == {"0": ("lamp 0",), "1": ("lamp 0",), "2": ("lamp 0",), "3": ("lamp 1",)}


def test_icon_theme__names_links_and_sizes(module: Importer, tmp_path: Path) -> None:
    for number, name in enumerate(
        (
            "32x32/actions/edit-copy",
            "64x64/actions/edit-copy",
            "512x512/actions/edit-copy",
            "64x64/actions/edit-copy-symbolic",
            "64x64/actions/go-next-rtl",
            "64x64/mimetypes/text-x-python",
            "64x64/nonsense/thing",
        )
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        slice_of(number).save(tmp_path / f"{name}.png")
    (tmp_path / "64x64/actions/duplicate_it.png").symlink_to("edit-copy.png")
    (tmp_path / "64x64/actions/gone.png").symlink_to("nowhere.png")
    (tmp_path / "64x64/actions/gtk-copy.png").symlink_to("edit-copy.png")
    found = list(module("icon_theme").candidates(tmp_path, 32))
    assert {candidate.name: candidate.captions for candidate in found} == {
        "actions/edit-copy": ("edit copy, action", "duplicate it"),
        "mimetypes/text-x-python": ("text x python, file type",),
    }
    assert numpy.array_equal(found[0].draw(), slice_of(1))


def test_emoji__names_and_keywords(module: Importer, tmp_path: Path) -> None:
    annotations = tmp_path / "en.xml"
    annotations.write_text(
        '<ldml><annotations><annotation cp="☀">bright | rays | sun</annotation>'
        '<annotation cp="☀" type="tts">sun</annotation><annotation cp="☎" type="tts">telephone</annotation>'
        '<annotation cp="#" type="tts">hash</annotation><annotation cp="👨‍👩" type="tts">several</annotation>'
        '<annotation cp="\U000e0041" type="tts">not in the font</annotation></annotations></ldml>'
    )
    found = list(module("emoji").candidates(FONT, annotations))
    assert [(candidate.name, candidate.captions) for candidate in found] == [
        ("02600 sun", ("sun", "bright, rays")),
        ("0260e telephone", ("telephone",)),
    ]


def test_symbols__signs_but_no_letters(module: Importer) -> None:
    found = {candidate.name: candidate for candidate in module("symbols").candidates(FONT, 32)}
    assert found["025a0 black square"].captions == ("black square",)
    assert not found["025a0 black square"].cropped
    assert not {"00041 latin capital letter a", "00031 digit one", "00021 exclamation mark"} & found.keys()
    assert not any("braille" in name for name in found)


def _easy_vqa(site: Path) -> None:
    """The package as pip lays it out, with 40 images to train on and 20 to test on; one of these is in both."""
    (site / "easy_vqa-1.0.dist-info").mkdir(parents=True)
    (site / "easy_vqa-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: easy-vqa\nVersion: 1.0\n")
    for part, first, count in (("train", 0, 40), ("test", 39, 20)):
        folder = site / "easy_vqa" / "data" / part
        (folder / "images").mkdir(parents=True)
        for number in range(count):
            slice_of(first + number).save(folder / "images" / f"{number}.png")
        questions = [["is it round?", "no" if number % 2 else "yes", number // 2] for number in range(2 * count)]
        (folder / "questions.json").write_text(json.dumps(questions))


def test_easy_vqa__whole_build(tmp_path: Path) -> None:
    _easy_vqa(tmp_path / "site")
    for name in ("one", "two"):
        done = run("easy_vqa", "--output", tmp_path / name, "--size", "32", packages=tmp_path / "site")
        assert (done.returncode, done.stderr) == (0, "")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    report = inspect({"layout": "statements", "root": str(tmp_path / "one")})
    assert (report.problems, report.shared_pictures) == ([], [])
    images = {split.name: split.images for split in report.splits}
    assert images["train"] + images["val"] == 40
    assert 3 <= images["val"] <= 12
    assert images["test"] == 19
    assert all(split.labels == {"no": split.images, "yes": split.images} for split in report.splits)


def test_easy_vqa__limit(module: Importer, tmp_path: Path) -> None:
    _easy_vqa(tmp_path)
    images, rows = module("easy_vqa").statements(tmp_path / "easy_vqa" / "data", size=16, limit=20)
    assert (len(images), len(rows)) == (20, 40)
    assert sum(row["split"] == "test" for row in rows) == 2 * 3


def test_scripts__output_that_is_there_and_wrong_numbers(tmp_path: Path) -> None:
    _easy_vqa(tmp_path / "site")
    there = run("easy_vqa", "--output", tmp_path, packages=tmp_path / "site")
    assert (there.returncode, there.stderr) == (
        2,
        f"{tmp_path} is there already: remove it, or give another --output\n",
    )
    small = run("easy_vqa", "--output", tmp_path / "set", "--size", "8", packages=tmp_path / "site")
    assert (small.returncode, "'8': a whole number of 16 or more is meant" in small.stderr) == (2, True)


def test_installed__command_that_installs_the_package(module: Importer, capsys: pytest.CaptureFixture[str]) -> None:
    common = module("common")
    for path in (None, Path("/nowhere/at/all")):
        with pytest.raises(SystemExit) as ended:
            common.installed(path, "some-package", "apt-get install some-package")
        assert ended.value.code == 2
        assert capsys.readouterr().err == "some-package is not installed: apt-get install some-package\n"


def test_rasterised__what_draws_is_not_installed(module: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    common = module("common")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        common.rasterised(Path("any.svg"), 64)
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts__of_the_package(script: str, tmp_path: Path) -> None:
    done = run(script, "--output", tmp_path / "one", "--limit", "60")
    if done.returncode == 2 and "is not installed: " in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    assert run(script, "--output", tmp_path / "two", "--limit", "60").stdout == done.stdout
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    layout = "statements" if (tmp_path / "one" / "train.jsonl").exists() else "pairs"
    report = inspect({"layout": layout, "root": str(tmp_path / "one")})
    assert (report.problems, report.shared_pictures) == ([], [])
    assert sum(split.images for split in report.splits) == 60
    assert {Image.open(path).size for path in (tmp_path / "one" / "images").iterdir()} <= {(64, 64), (96, 96)}
