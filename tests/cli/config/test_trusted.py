"""What a stranger's files name is followed only where a config or the command line names it too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mwa_lightning.cli import evaluate, train, tune
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.cli.config.trusted import TARGET, targets_of
from tests.cli.conftest import Refuses

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Make the directory of a run, with changes of its configuration by dotted keys."""

    def make(*words: str, **changes: Any) -> Path:
        assert (
            train.main(
                [*(words or ("backbone=clip_tiny", "backbone.checkpoint=random", "adapter=mwa")), "--cfg", "job"]
            )
            == 0
        )
        config = yaml.safe_load(capsys.readouterr().out)
        for key, value in changes.items():
            *parts, last = key.split(".")
            node = config
            for part in parts:
                node = node[part]
            node[last] = value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "adapter.safetensors").touch()
        return tmp_path

    return make


STRANGE = [
    ("adapter", {TARGET: "subprocess.Popen", "args": "id"}, "the class subprocess.Popen as adapter._target_"),
    ("adapter._target_", "os.system", "no config of the group adapter does: it is not followed; choose adapter="),
    ("adapter._target_", "mwa_lightning.data.datamodule.RetrievalDataModule", "no config of the group adapter does"),
    ("task._target_", "builtins.exec", "the class builtins.exec as task._target_"),
    ("data._target_", "shutil.rmtree", "the class shutil.rmtree as data._target_"),
    ("backbone.further", {TARGET: "os.system"}, "as backbone.further._target_"),
    ("trainer.callbacks", [{TARGET: "os.system"}], "as trainer.callbacks._target_"),
    ("trainer.profiler", "advanced", "adds trainer.profiler=advanced, which no config of the group trainer has"),
    ("trainer.model_registry", "theirs", "adds trainer.model_registry=theirs"),
    ("backbone.tokenizer", "hf://attacker/x", "on another machine, and no config names it"),
    ("backbone.tokenizer", "hf://attacker/${oc.env:HOME}", "in a file are not followed"),
    ("backbone.checkpoint", "https://attacker/x", "backbone.checkpoint is https://attacker/x, on another machine"),
    ("data.root", "${oc.env:HOME}", "data.root is '${oc.env:HOME}'"),
    ("data.crop_scale", ["${oc.env:HOME}", 1], "data.crop_scale is '${oc.env:HOME}'"),
    ("name", "../../elsewhere", "the name of a folder"),
    ("name", "${oc.env:HOME}", "name is '${oc.env:HOME}'"),
    ("task.name", "../../elsewhere", "there is no such config: choose task="),
    ("optim.lr", "???", "optim.lr is '???'"),
    ("data", "a word", "it has no data"),
]


@pytest.mark.parametrize(("key", "value", "said"), STRANGE, ids=[f"{key}-{n}" for n, (key, *_) in enumerate(STRANGE)])
def test_evaluate__refuses_what_only_the_file_names(
    key: str, value: Any, said: str, run: Run, refuses: Refuses
) -> None:
    refuses("mwa-eval", evaluate.main, [f"run={run(**{key: value})}", "--cfg", "job"], [said])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("adapter._target_", "os.system", ["adapter=none"]),
        ("backbone.tokenizer", "hf://attacker/x", ["backbone.tokenizer=hf://friend/y"]),
        ("backbone.tokenizer", "${oc.env:HOME}", ["backbone.tokenizer=asset://beit3_tiny.spm"]),
        ("trainer.profiler", "simple", ["+trainer.profiler=simple"]),
        ("trainer.callbacks", [{TARGET: "os.system"}], ["trainer=cpu"]),
        ("data.root", "/not/there", ["data.root=null"]),
        ("name", "a/b", ["name=ab"]),
        ("backbone.tokenizer", "/files/tokenizer.json", []),
        ("trainer.benchmark", True, []),
    ],
)
def test_evaluate__does_what_it_proposes(
    key: str, value: Any, words: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"run={run(**{key: value})}", *words, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_evaluate__makes_no_data_where_a_file_says(run: Run, refuses: Refuses, tmp_path: Path) -> None:
    directory = run(**{"data.root": str(tmp_path / "home")})
    refuses("mwa-eval", evaluate.main, [f"run={directory}"], ["home is not there", "give data.root=DIR, or"])


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "a\\b"])
def test_name__is_one_folder(name: str, refuses: Refuses) -> None:
    refuses("mwa-train", train.main, [f"name='{name}'"], ["the name of a folder"])


@pytest.mark.parametrize("word", ["optim.lr=???", "trainer.max_epochs=???", "data.root=???", "+trainer.benchmark=???"])
def test_values__that_are_missing(word: str, refuses: Refuses) -> None:
    refuses("mwa-train", train.main, [word], [word.removeprefix("+"), "still missing"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("backbone.tokenizer=hf://attacker/x", "hf://attacker/x, on another machine"),
        ("backbone.tokenizer='hf://attacker/x'", "hf://attacker/x, on another machine"),
        ("data.root=${oc.env:HOME}", "in a file are not followed: type the words of the command again"),
    ],
)
def test_multirun__goes_on_with_a_stranger_s_record(word: str, said: str, refuses: Refuses, tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"jobs": {0: {"overrides": ["seed=1", word]}}}))
    refuses("mwa-train", train.main, ["--multirun", f"run_dir={tmp_path}"], [said, "multirun.yaml"])


def test_tune__goes_on_with_a_stranger_s_record(refuses: Refuses, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for search, said in (
        ({"words": ["optim.lr=1e-3,1e-4", "data.root=${oc.env:HOME}"]}, "type the words of the command again"),
        ({"words": ["optim.lr=1e-3,1e-4"], "sampler": "${oc.env:HOME}"}, "sampler is '${oc.env:HOME}'"),
        ({"words": ["optim.lr=1e-3,1e-4"], "trials": "many"}, "tune.trials=many: want a whole number"),
    ):
        (tmp_path / "study.db").unlink(missing_ok=True)
        (tmp_path / "multirun.yaml").write_text("jobs: {}")
        study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="study")
        study.set_user_attr("search", search)
        refuses("mwa-tune", tune.main, [f"run_dir={tmp_path}"], [said])


def test_targets_of__what_the_configs_of_a_group_name() -> None:
    assert targets_of("adapter")["mwa_lightning.adapters.mwa.MultiWayAdapter"] == "mwa"
    assert sorted(targets_of("adapter").values()) == sorted(group_options("adapter"))
