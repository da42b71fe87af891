"""How `mwa-eval` stands on a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mwa_lightning.cli import evaluate, train


@pytest.fixture
def run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What a run leaves, as far as the composition looks at it."""
    directory = tmp_path / "a run"
    directory.mkdir()
    line = f"adapter.mid_dim=32 optim.lr=0.02 split=val seed=7 run_dir='{directory}'"
    assert train.main([*line.split(" ", 4), "--cfg", "job"]) == 0
    (directory / "config.yaml").write_text(capsys.readouterr().out + "mwa_lightning_version: 0.1.0\n")
    (directory / "adapter.safetensors").write_bytes(b"weights")
    return directory


def composed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert evaluate.main([*arguments, "--cfg", "job"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_run__is_the_base(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(capsys, f"run='{run_directory}'")
    assert config["adapter"]["mid_dim"] == 32
    assert config["adapter"]["checkpoint"] == str(run_directory / "adapter.safetensors")
    assert (config["name"], config["seed"], config["split"]) == ("scenes_mwa", 7, "val")
    assert config["run"] == str(run_directory)
    assert config["run_dir"] != str(run_directory)


@pytest.mark.parametrize(("choice", "task"), [("coco", "retrieval"), ("nlvr2", "reasoning")])
def test_run__has_the_defaults_of_its_own_choice(
    choice: str, task: str, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a key that its version did not have yet; one that there is no more is left as it is."""
    assert train.main(["adapter=none", f"task={task}", f"data={choice}", "--cfg", "job"]) == 0
    chosen = yaml.safe_load(capsys.readouterr().out)
    kept = {**chosen["data"], "a_key_of_old": 1}
    del kept["exif"]
    (run_directory / "config.yaml").write_text(yaml.safe_dump({**chosen, "data": kept}))
    config = composed(capsys, f"run='{run_directory}'")
    assert config["data"] == {**chosen["data"], "a_key_of_old": 1}


def test_run__classes_of_training_are_not_needed(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of callbacks and loggers an evaluation makes nothing, so it needs no config that names them."""
    saved = yaml.safe_load((run_directory / "config.yaml").read_text())
    saved["callbacks"]["mine"] = {"_target_": "nowhere.Callback"}
    saved["logger"] = {"_target_": "nowhere.Logger"}
    (run_directory / "config.yaml").write_text(yaml.safe_dump(saved))
    config = composed(capsys, f"run='{run_directory}'")
    assert "nowhere" not in yaml.safe_dump(config)
    assert config["adapter"]["mid_dim"] == 32


def test_run__keys_win(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(
        capsys,
        f"run='{run_directory}'",
        "split=test",
        "backbone.image_size=64",
        "adapter.checkpoint=/x.safetensors",
        "run_dir=/elsewhere",
    )
    assert (config["split"], config["backbone"]["image_size"]) == ("test", 64)
    assert config["adapter"]["checkpoint"] == "/x.safetensors"
    assert config["adapter"]["mid_dim"] == 32
    assert config["run_dir"] == "/elsewhere"


def test_run__groups_are_replaced_whole(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(capsys, f"run='{run_directory}'", "data=coco", "data.root=/coco")
    assert config["data"]["layout"] == "coco"
    assert "domain" not in config["data"]
    assert config["adapter"]["mid_dim"] == 32


def test_run__without_its_adapter(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(capsys, f"run='{run_directory}'", "adapter=none")
    assert config["adapter"]["checkpoint"] is None
    assert config["optim"]["lr"] == 0.02


def test_run__that_did_not_end(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_directory / "adapter.safetensors").unlink()
    assert evaluate.main([f"run='{run_directory}'"]) == 2
    assert "adapter.safetensors does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- 1\n", "not the configuration of a run"),
        ("seed: 3\n", "it has no backbone"),
        ("", "not the configuration of a run"),
    ],
)
def test_run__damaged_configuration(
    content: str, words: str, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_directory / "config.yaml").write_text(content)
    assert evaluate.main([f"run='{run_directory}'"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(run_directory / "config.yaml") in error
    assert error.count("\n") == 1
