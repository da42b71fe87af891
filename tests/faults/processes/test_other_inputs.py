"""A run that is started again on other data, another tokenizer or other frozen weights in the same places."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mwa_lightning.cli import evaluate
from mwa_lightning.cli import train as command
from tests.faults.processes.test_resume import Stopped, files_of, only_line, stop

Train = Callable[..., int]


def other_captions(root: Path) -> None:
    file = root / "dataset.json"
    file.write_text(file.read_text().replace("a red picture", "a red photo"))


def other_images(root: Path) -> None:
    for number, file in enumerate(sorted(root.glob("*.jpg"))):
        Image.new("RGB", (24, 20), (number, 9, 9)).save(file)


def one_image_less(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    content["images"].remove(next(image for image in content["images"] if image["split"] == "test"))
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set, elsewhere."""
    return shutil.copytree(data_root, tmp_path / "moved")


@pytest.fixture
def killed(train: Train, happening: Callable[..., Any], tmp_path: Path) -> Path:
    """A run that ended in its second epoch, with checkpoints."""
    run = tmp_path / "run"
    with pytest.raises(Stopped), happening("writing last.ckpt of step 6", stop):
        train(f"run_dir={run}")
    return run


@pytest.mark.parametrize("change", [other_captions, other_images, one_image_less])
def test_resume__other_data_is_refused(
    change: Callable[[Path], None], killed: Path, root: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(killed / "checkpoints")
    change(root)
    capsys.readouterr()
    assert train(f"run_dir={killed}", f"data.root={root}") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"run_dir={killed}: holds a run on another " in line
    assert files_of(killed / "checkpoints") == before


def test_resume__checkpoint_of_a_run_on_other_data_is_refused(
    killed: Path, root: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said is of that run, and what it says to do works."""
    one_image_less(root)
    origin, new = killed / "checkpoints" / "last.ckpt", f"run_dir={tmp_path / 'new'}"
    capsys.readouterr()
    assert train(new, f"data.root={root}", f"resume={origin}") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"mwa-train: error: resume={origin}: its run was on another test split (")
    (word,) = re.findall(r"adapter\.checkpoint=[^,]+", line)
    assert train(new, f"data.root={root}", "trainer.max_epochs=1", word) == 0


def test_resume__moved_data_is_the_same(
    killed: Path, root: Path, train: Train, whole: Path, left_by: Callable[..., Any]
) -> None:
    assert train(f"run_dir={killed}", f"data.root={root}") == 0
    assert left_by(killed) == left_by(whole)


def test_resume__another_tokenizer_in_the_same_place_is_refused(
    tiny_command: list[str], happening: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentencepiece import sentencepiece_model_pb2 as format_of_file

    (given,) = (word.partition("=")[2] for word in tiny_command if word.startswith("backbone.tokenizer="))
    file, run = shutil.copy(given, tmp_path / "tiny.model"), tmp_path / "run"
    words = [*tiny_command, f"backbone.tokenizer={file}", f"run_dir={run}"]
    with pytest.raises(Stopped), happening("writing last.ckpt of step 6", stop):
        command.main(words)
    model = format_of_file.ModelProto()
    model.ParseFromString(Path(file).read_bytes())
    pieces = [piece for piece in model.pieces if piece.type == 1]
    for piece, name in zip(pieces, reversed([piece.piece for piece in pieces]), strict=True):
        piece.piece = name
    Path(file).write_bytes(model.SerializeToString())
    capsys.readouterr()
    assert command.main(words) == 2
    assert "texts of another tokenizer" in capsys.readouterr().err.splitlines()[-1]


def test_finished__other_data_is_refused_and_evaluation_measures_it(
    whole: Path, root: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    before = files_of(run)
    one_image_less(root)
    assert train(f"run_dir={run}", f"data.root={root}") == 2
    assert f"mwa-eval run={run}" in capsys.readouterr().err.splitlines()[-1]
    now = files_of(run)
    assert {path for path in before if now[path] != before[path]} <= {run / "train.log"}
    assert evaluate.main([f"run={run}", f"data.root={root}", f"run_dir={tmp_path / 'e'}"]) == 0
    measured = json.loads((tmp_path / "e" / "provenance.json").read_text())["metrics"]["test"]
    own = json.loads((run / "provenance.json").read_text())["metrics"]
    assert measured["data"]["images"] == own["test"]["data"]["images"] - 1
    assert measured["adapter_sha256"] == own["test"]["adapter_sha256"]
    assert own["val"]["data"]["split"] == "val"


def test_finished__trained_on_from_its_weights_as_the_message_says(
    whole: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert train(f"run_dir={run}", "trainer.max_epochs=4") == 2
    line = only_line(capsys)
    (word,) = (word for word in line.split() if word.startswith("adapter.checkpoint="))
    assert train(f"run_dir={tmp_path / 'new'}", "trainer.max_epochs=1", word) == 0


@pytest.mark.parametrize(
    "forged",
    [
        {"test/mean_recall": 99.9},
        {"time/fit_s": -1.0},
        {"val/mean_recall": 99.9},
        {"val/mean_recall": float("nan")},
        {"val/i2t_r1": "99.9"},
    ],
)
def test_checkpoint__metrics_that_it_has_not_from_a_validation_are_refused(
    forged: dict[str, Any], whole: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from mwa_lightning.system.whole_files import file_sha256

    run = shutil.copytree(whole, tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["callbacks"]["RunKeeper"]["best_figures"] |= forged
    torch.save(content, run / "checkpoints" / "last.ckpt")
    with (run / "checkpoints" / "sha256.txt").open("a") as sums:
        sums.write(f"{file_sha256(run / 'checkpoints' / 'last.ckpt')}  last.ckpt\n")
    capsys.readouterr()
    assert train(f"run_dir={run}") == 2
    assert "are not those of a validation" in only_line(capsys)
    assert (run / "metrics.json").read_bytes() == before


def test_finished__metrics_of_val_are_those_measured_last(whole: Path, tiny_command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command.main([*tiny_command, "split=val", f"run_dir={run}"]) == 0
    of = json.loads((run / "provenance.json").read_text())["metrics"]
    assert list(of) == ["val"]
    measured = json.loads((run / "metrics.json").read_text())
    assert {name: value for name, value in measured.items() if name.startswith("val/")} == {
        name: value
        for name, value in json.loads((whole / "metrics.json").read_text()).items()
        if name.startswith("val/")
    }


def test_evaluation__another_one_in_its_directory_is_refused(
    whole: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={whole}", f"run_dir={tmp_path / 'e'}", "save_predictions=true"]
    assert evaluate.main(words) == 0
    before = files_of(tmp_path / "e")
    one_image_less(root)
    other_adapter = shutil.copy(whole / "adapter.safetensors", tmp_path / "other.safetensors")
    for change, told in (
        (f"data.root={root}", "holds a run on another test split"),
        ("split=val", "split=val (there: test)"),
        ("save_predictions=false", "save_predictions"),
        (f"adapter.checkpoint={other_adapter}", "adapter.checkpoint"),
    ):
        capsys.readouterr()
        assert evaluate.main([*words, change]) == 2
        assert told in only_line(capsys)
        now = files_of(tmp_path / "e")
        assert {path for path in before if now[path] != before[path]} <= {tmp_path / "e" / "train.log"}
    assert evaluate.main(words) == 0


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"inputs": {}, "metrics": {"test": 3}}', '{"inputs": {"data": 3}, "metrics": {}}']
)
def test_provenance__damaged(
    content: str, whole: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "provenance.json").write_text(content)
    assert train(f"run_dir={run}") == 2
    assert f"{run / 'provenance.json'}: cannot be read" in only_line(capsys)


def test_finished__another_adapter_in_its_place_is_told(
    whole: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert train(f"run_dir={run}") == 0
    assert "is not the file that" not in capsys.readouterr().out
    tensors = load_file(run / "adapter.safetensors")
    with safe_open(run / "adapter.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, run / "adapter.safetensors", metadata=metadata)
    assert train(f"run_dir={run}") == 0
    assert f"{run / 'adapter.safetensors'} is not the file that" in capsys.readouterr().out
