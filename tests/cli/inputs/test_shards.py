"""From the command line: a data set in shards gives the bytes and figures of the one in files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mwa_lightning.cli import evaluate, prepare, train
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2

Capture = pytest.CaptureFixture[str]

SMALL = "shard_size_mb=0.012"


def figures(run: Path) -> dict[str, float]:
    content = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in content.items() if not name.startswith("time/")}


def said(capsys: Capture) -> str:
    """The one line of an error."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def packed(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the tests' pictures."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert prepare.main(["data=karpathy", f"data.root={data_root}", f"shards={folder}", SMALL]) == 0
    assert len(list(folder.glob("*.tar"))) > 3
    return folder


@pytest.fixture
def in_shards(tiny_run: list[str], packed: Path) -> list[str]:
    """The tests' command of `mwa-train`, but for data.root."""
    rest = [argument for argument in tiny_run if not argument.startswith("data.root=")]
    return [*rest, f"data.shards={packed}"]


def test_train_and_evaluate__same_bytes(
    tiny_run: list[str], in_shards: list[str], packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Files and shards may also take turns: a run on files is evaluated from shards here."""
    for name, command, workers in (("files", tiny_run, 0), ("shards", in_shards, 1)):
        run = tmp_path / name
        options = ["callbacks.progress_bar=false", "trainer.max_epochs=1", f"data.num_workers={workers}"]
        assert train.main([*command, *options, f"run_dir={run}"]) == 0
    assert figures(tmp_path / "shards") == figures(tmp_path / "files")
    name = "adapter.safetensors"
    assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()
    for name, where in (("a", []), ("b", [f"data.shards={packed}", "data.root=/gone"])):
        options = [f"run_dir={tmp_path / name}", "save_predictions=true", "data.num_workers=0"]
        assert evaluate.main([f"run={tmp_path / 'files'}", *options, *where]) == 0
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    name = "predictions.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_evaluate__from_files_what_was_trained_from_shards(
    in_shards: list[str], data_root: Path, packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The shards of the run need not be there any more."""
    folder, run = Path(shutil.copytree(packed, tmp_path / "copy")), tmp_path / "run"
    options = ["callbacks.progress_bar=false", "trainer.max_epochs=1", f"run_dir={run}"]
    assert train.main([*in_shards, f"data.shards={folder}", *options]) == 0
    shutil.rmtree(folder)
    assert evaluate.main([f"run={run}", f"run_dir={tmp_path / 'a'}"]) == 2
    assert said(capsys).endswith(f"data.shards={folder}: there is no such folder; mwa-prepare shards=DIR makes it")
    assert evaluate.main([f"run={run}", f"run_dir={tmp_path / 'a'}", f"data.root={data_root}"]) == 0
    assert figures(tmp_path / "a").items() <= figures(run).items()


def test_prepare__says_one_line_where_nobody_looks(data_root: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "größere Stücke"
    assert prepare.main(["data=karpathy", f"data.root={data_root}", f"shards='{folder}'"]) == 0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert capsys.readouterr() == (f"data=karpathy: 24 images in 1 shard, {size:,} bytes: {folder}\n", "")


def test_prepare__statements(tmp_path: Path, capsys: Capture) -> None:
    root, folder = tmp_path / "set", tmp_path / "shards"
    write_scenes_nlvr2(root, domain="target", seed=0, train=4, dev=4, test=4)
    command = ["data=nlvr2", f"data.root={root}", "data.num_workers=0", f"shards={folder}", SMALL, "check=true"]
    for again in ("", " (there already)"):
        assert prepare.main(command) == 0
        out = capsys.readouterr().out
        shards = len(list(folder.glob("*.tar")))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert "no problems" in out
        assert f"data=nlvr2: 12 images in {shards} shards, {size:,} bytes: {folder}{again}\n" in out
    shutil.rmtree(root)
    assert prepare.main(["data=nlvr2", f"data.shards={folder}", "data.num_workers=2", "check=true"]) == 0
    assert "train: 4 images, 4 statements (False 2, True 2)" in capsys.readouterr().out


def test_prepare__built_in_data_is_not_made_where_there_are_shards(
    tmp_path: Path, elsewhere: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mwa_lightning.data import built_in

    monkeypatch.setattr(built_in, "SCENES", {"seed": 0, "train": 3, "val": 2, "test": 2})
    monkeypatch.setenv("MWA_CACHE", str(elsewhere / "cache"))
    folder = tmp_path / "shards"
    assert prepare.main(["data=scenes", "data.root=made", f"shards={folder}", SMALL]) == 0
    assert prepare.main(["data=scenes", f"data.shards={folder}", "check=true"]) == 0
    assert "no problems" in capsys.readouterr().out
    assert not (elsewhere / "cache").exists()


def test_prepare__names_each_damaged_shard(packed: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    first, second, third = (folder / f"shard-{number:05}.tar" for number in range(3))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    content = bytearray(third.read_bytes())
    content[700] ^= 1
    third.write_bytes(content)
    assert prepare.main(["data=karpathy", f"data.shards={folder}", "data.num_workers=0", "check=true"]) == 2
    out = capsys.readouterr().out
    assert "damaged shard: 3" in out
    for file, what in ((first, "missing"), (second, "cut short"), (third, "damaged (its SHA-256")):
        assert f"  {file} is {what}" in out
    assert out.endswith("3 problems\n")


@pytest.mark.parametrize("main", [prepare.main, train.main])
@pytest.mark.parametrize("layout", ["karpathy", "scenes", "jsonl"])
def test_shards_given_as_files__one_line(
    layout: str, main: Callable[[list[str]], int], packed: Path, capsys: Capture
) -> None:
    task = ["task=reasoning"] if layout == "jsonl" and main is train.main else []
    assert main([f"data={layout}", f"data.root={packed}", *task]) == 2
    assert said(capsys).endswith(f"data.root={packed} holds shards of a data set: give that folder as data.shards")


def test_prepare__a_folder_that_cannot_be(data_root: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, why in (("x" * 300, "File name too long"), ("file/shards", "Not a directory")):
        (tmp_path / "file").touch()
        assert prepare.main(["data=karpathy", f"data.root={data_root}", f"shards={tmp_path / name}"]) == 2
        assert f"shards={tmp_path / name} cannot be written ({why}): make room or choose another folder" in said(capsys)


def test_train__a_damaged_shard_ends_the_run(
    in_shards: list[str], packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Whatever `data.max_bad_images` says: no other picture stands in, or the run would be another one."""
    folder, run = Path(shutil.copytree(packed, tmp_path / "copy")), tmp_path / "run"
    shard = folder / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # of the first picture, which trains; its size says nothing
    shard.write_bytes(content)
    command = [*in_shards, f"data.shards={folder}", "data.max_bad_images=100", "callbacks.progress_bar=false"]
    assert train.main([*command, f"run_dir={run}"]) == 2
    assert said(capsys).startswith(
        f"mwa-train: error: {shard} is damaged at 000000000, image train_0.jpg (another CRC-32 than when it was made): "
    )
    assert not run.exists()


def test_train__a_missing_shard_ends_it_before_anything_is_written(
    in_shards: list[str], packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    (folder / "shard-00002.tar").unlink()
    assert train.main([*in_shards, f"data.shards={folder}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert f"{folder / 'shard-00002.tar'} is missing, it holds " in said(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (prepare.main, ["data=coco", "data.shards=none", "check=true"], "data.shards=/"),
        (
            prepare.main,
            ["data=coco", "shards=out"],
            "data=coco needs data.root=DIR, the folder of the data set, or data",
        ),
        (prepare.main, ["shards=out", "shard_size_mb=0"], "shard_size_mb=0: want a number above 0"),
        (prepare.main, ["data=coco", "data.shards=."], "shards=DIR turns it into shards"),
        (prepare.main, ["data=coco", "data.shards=.", "check=true"], "not fit to be used"),
        (prepare.main, ["data=coco", "data.shards=.", "shards=out"], "holds no shards of a data set"),
        (
            prepare.main,
            ["data=coco", "data.root=.", f"shards={'x' * 300}", "data.annotations=/proc/self/mem"],
            "(Input/",
        ),
        (train.main, ["data=coco", f"data.root={'x' * 300}"], f"{'x' * 300} cannot be read (File name too long): mend"),
        (train.main, ["data=coco", f"data.shards={'x' * 300}"], "cannot be read (File name too long): mend that"),
        (train.main, ["data=coco", "data.shards=none"], "there is no such folder; mwa-prepare shards=DIR makes it"),
    ],
)
def test_mistakes__one_line(
    main: Callable[[list[str]], int], arguments: list[str], says: str, elsewhere: Path, capsys: Capture
) -> None:
    assert main(arguments) == 2
    assert says in said(capsys)
    assert not list(elsewhere.iterdir())
