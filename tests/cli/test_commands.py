"""Flags, exit codes and the one line for every mistake, through `main(argv)`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import mwa_lightning
from mwa_lightning.cli import compare, evaluate, prepare, train, tune
from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import DataError, ExpectationMissed

CHECKOUT = Path(mwa_lightning.__file__).parents[1]
Main = Callable[[list[str]], int]
MAINS: dict[str, Main] = {"mwa-train": train.main, "mwa-eval": evaluate.main, "mwa-prepare": prepare.main}

STATEMENTS = "task=reasoning data=scenes_nlvr2 training.zero_shot=false"

# What is typed, and what the one line has to say: what is wrong, where, and what to do.
MISTAKES = [
    ("mwa-train", "lr=1", ["'lr'", "Did you mean optim.lr?"]),
    ("mwa-train", "optim.lrr=1", ["'optim.lrr'", "Did you mean optim.lr?"]),
    ("mwa-train", "zzzzzz=1", ["'zzzzzz'", "--cfg job"]),
    ("mwa-train", "seed.part=1", ["'seed.part'"]),
    ("mwa-train", "+optim.lrr=1", ["+optim.lrr", "Did you mean optim.lr?", "nothing would read it"]),
    ("mwa-train", "+optim.lr=1", ["'optim.lr' is there already", "without +"]),
    (
        "mwa-train",
        "+trainer.max_stepz=1",
        ["trainer.max_stepz", "no key of lightning's Trainer", "Did you mean trainer.max_steps?"],
    ),
    ("mwa-train", "+trainer.callbacks=1", ["trainer.callbacks", "is set by mwa_lightning itself"]),
    ("mwa-train", "+trainer.fast_dev_run=-2", ["trainer.fast_dev_run=-2", "a number of batches"]),
    ("mwa-eval", "adapter=none +trainer.fast_dev_run=true", ["fast_dev_run=True", "mwa-train takes it"]),
    ("mwa-train", "+trainer.limit_val_batches=0.5", ["limit_val_batches=0.5", "check_val_every_n_epoch"]),
    ("mwa-train", "+trainer.limit_val_batches=1", ["limit_val_batches=1", "part of the split"]),
    ("mwa-train", "+trainer.overfit_batches=1", ["overfit_batches=1", "limit_train_batches"]),
    ("mwa-eval", "adapter=none +trainer.limit_test_batches=1", ["limit_test_batches=1", "part of the split"]),
    ("mwa-eval", "adapter=none +trainer.max_stepz=1", ["trainer.max_stepz", "Did you mean trainer.max_steps?"]),
    ("mwa-train", "adapter=mwaa", ["Did you mean mwa?", "full, head_only, modex, mwa, none"]),
    ("mwa-train", "adapter=[mwa,full]", ["adapter=[mwa,full]", "not a list", "full, head_only, modex, mwa, none"]),
    ("mwa-train", "adapter={mwa:1}", ["not a list"]),
    ("mwa-train", "backbone=beit3_bse", ["Did you mean beit3_base?"]),
    ("mwa-train", "experiment=mwa_beit3_base_cocoo", ["Did you mean mwa_beit3_base_coco?", "scenes_mwa"]),
    ("mwa-train", "data=null", ["there is no data=null.", "coco, flickr30k"]),
    ("mwa-train", "adapter@adapter_2=full", ["Could not override 'adapter@adapter_2'", "use +adapter@adapter_2=full"]),
    ("mwa-train", "+adapter@adapter_2=ful", ["there is no adapter=ful. Did you mean full?"]),
    ("mwa-train", "recipe=mwa_coco", ["Could not override 'recipe'", "use +recipe=mwa_coco"]),
    ("mwa-train", "optim.lr=1,2", ["--multirun", "one value"]),
    ("mwa-train", "optim.lr=range(1,3)", ["--multirun", "one value"]),
    ("mwa-train", "~optim.lr", ["cannot be removed; set optim.lr=null where"]),
    ("mwa-train", "~optim.lrr", ["~optim.lrr: there is no such key. Did you mean optim.lr?"]),
    ("mwa-train", "~adapter._target_", ["~adapter._target_: is read in every run"]),
    ("mwa-train", "~data", ["can be removed; choose another data="]),
    ("mwa-train", "--config-dir gone", ["--config-dir=gone: there is no such folder"]),
    ("mwa-train", "-cd", ["error: -cd: a value is missing; write --config-dir=DIR"]),
    ("mwa-train", "--config-name trian", ["there is no such config", "Did you mean train?", "evaluate, multirun"]),
    ("mwa-prepare", "-cn x", ["--config-name=x: is a flag of mwa-train, mwa-eval and mwa-tune alone"]),
    ("mwa-train", "hydra.searchpath=[gone]", ["hydra.searchpath=[gone]: there is no such folder"]),
    ("mwa-train", "hydra.searchpath=[pkg://gone]", ["hydra.searchpath=[pkg://gone]: there is no such package"]),
    ("mwa-train", "hydra.searchpath=gone", ["want a list of folders and packages"]),
    ("mwa-train", "--info nothing", ["--info nothing: write --info searchpath|config|defaults"]),
    ("mwa-train", "task.blind=text", ["'task.blind'", "It is one of task=entailment, task=reasoning.\n"]),
    ("mwa-train", "--cfg=hydra", ["error: --cfg=hydra: write --cfg job"]),
    ("mwa-train", "--cfg", ["error: --cfg: write --cfg job"]),
    ("mwa-train", "trainer=ddp trainer.strategy=fsdp trainer.precision=16-mixed", ["trainer.strategy=fsdp: take bf16"]),
    ("mwa-train", "trainer.precision=16-mixed", ["needs trainer.accelerator=gpu", "bf16-mixed"]),
    ("mwa-train", "nonsense", ["'nonsense'", "key=value"]),
    ("mwa-train", "run_dir='a", ["a quote in it does not end"]),
    (
        "mwa-train",
        "backbone.patch_size=1200",
        ["less than one patch (backbone.patch_size=1200, which has to be that of the weights)"],
    ),
    ("mwa-train", "data.root=${nowhere}", ["the ${...} of data.root cannot be resolved", "nowhere"]),
    ("mwa-train", "optim.lr=-1", ["optim.lr=-1", "above 0"]),
    ("mwa-train", "optim.lr=fast", ["optim.lr=fast", "above 0"]),
    ("mwa-train", "seed=x", ["seed=x", "whole number"]),
    ("mwa-train", "training.monitor=val/recall", ["training.monitor=val/recall", "Did you mean val/mean_recall?"]),
    ("mwa-train", "training.monitor=test/mean_recall", ["Did you mean val/mean_recall?"]),
    ("mwa-train", "training.monitor=train/loss", ["training.monitor=train/loss", "val/mean_recall"]),
    ("mwa-train", f"{STATEMENTS} training.monitor=train/loss", ["training.monitor=train/loss", "val/accuracy"]),
    ("mwa-train", f"{STATEMENTS} training.monitor=lr", ["training.monitor=lr", "val/accuracy"]),
    ("mwa-train", f"{STATEMENTS} training.monitor=val/majority", ["training.monitor=val/majority", "val/accuracy"]),
    ("mwa-train", "training.monitor=val/1k/i2t_r1", ["Did you mean val/i2t_r1?"]),
    ("mwa-train", "trainer.precision=8", ["32, bf16-mixed, 16-mixed"]),
    ("mwa-train", "trainer.precision=bf16-true training.ema_decay=0.9", ["of training.ema_decay takes steps", "=null"]),
    ("mwa-train", "trainer=fsdp trainer.precision=64", ["64-true does not go with trainer.strategy=fsdp: take bf16"]),
    ("mwa-train", "data.batch_size=1", ["global batch of one", "at least 2"]),
    ("mwa-train", "data.batch_size=0", ["from 1 up"]),
    ("mwa-train", "backbone.image_size={patch_no}", ["backbone.patch_size=20", "take 40 or 60"]),
    ("mwa-train", "backbone.image_size=1", ["less than one patch", "take backbone.image_size=20 or a multiple"]),
    ("mwa-train", "backbone.heads=7", ["backbone.heads=7", "backbone.width"]),
    ("mwa-train", "adapter.first_layer=99", ["adapter.first_layer=99", "layers 0 to"]),
    ("mwa-train", "backbone.checkpoint=gone.pth", ["backbone.checkpoint=", "gone.pth", "no such file"]),
    ("mwa-train", "backbone.tokenizer=gone.spm", ["gone.spm", "no such file"]),
    ("mwa-train", "adapter.checkpoint=gone.safetensors", ["gone.safetensors", "no such file"]),
    ("mwa-train", "backbone=beit3_base", ["backbone.checkpoint=FILE", "beit3_base_itc_patch16_224.pth"]),
    ("mwa-train", "backbone=beit3_base backbone.checkpoint=random", ["backbone.tokenizer=FILE", "beit3.spm"]),
    ("mwa-train", "adapter=none", ["trains nothing", "mwa-eval"]),
    ("mwa-train", "data=coco", ["data.root=DIR"]),
    ("mwa-train", "data=coco data.root=gone", ["data.root=", "gone", "no such file or folder"]),
    ("mwa-train", "data=nlvr2", ["data=nlvr2", "labelled statements", "task=reasoning", "another"]),
    ("mwa-train", "task=reasoning", ["data=scenes", "captions without labels", "task=reasoning", "data=nlvr2"]),
    ("mwa-eval", "task=entailment adapter=none", ["data=scenes", "captions without labels", "task=entailment"]),
    (
        "mwa-train",
        "task=reasoning data=scenes_nlvr2 training.zero_shot=true",
        ["training.zero_shot=true", "head is new"],
    ),
    ("mwa-train", "task=reasoning data=scenes_nlvr2 task.blind=all", ["task.blind=all", "images, text"]),
    ("mwa-train", "task=reasoning data=scenes_nlvr2 task.label_smoothing=1", ["task.label_smoothing=1", "below 1"]),
    ("mwa-train", "task=retrievel", ["Did you mean retrieval?", "entailment, reasoning, retrieval"]),
    ("mwa-eval", "-m", ["--multirun: is a flag of mwa-train alone"]),
    ("mwa-train", "logger.name=wandb", ["logger.name=wandb", "take logger=wandb"]),
    ("mwa-train", "logger=wandb logger.project=a/b", ["logger.project=a/b", "without / "]),
    ("mwa-train", "launcher=slurm", ["launcher", "add --multirun"]),
    ("mwa-train", "launcher.jobs=2", ["launcher", "add --multirun"]),
    ("mwa-train", "--hepl", ["Did you mean --help?"]),
    ("mwa-train", "--cfg", ["--cfg job"]),
    ("mwa-train", "--cfg=hydra", ["--cfg job"]),
    ("mwa-eval", "runn=x", ["Did you mean run?"]),
    ("mwa-eval", "adapter=full", ["(FullFineTuning) has no weights", "adapter.checkpoint=FILE", "adapter=none"]),
    ("mwa-eval", "run=gone", ["run=", "gone", "no such directory"]),
    ("mwa-eval", "run=.", ["config.yaml", "mwa-train"]),
    ("mwa-eval", "run=. experiment=scenes_mwa", ["experiment=", "run="]),
    ("mwa-eval", "split=tset", ["want one of train, val, test"]),
    ("mwa-eval", "expect=beit3_base_coc", ["the nearest are beit3_base_coco, ", "assets/published.yaml\n"]),
    ("mwa-eval", "expect=vilt_nlvr2_test", ["expect=vilt_nlvr2_test", "retrieval does not give", "choose"]),
    ("mwa-prepare", "data=scense", ["Did you mean scenes?"]),
    ("mwa-prepare", "data=flickr30k check=true", ["data.root=DIR"]),
    ("mwa-prepare", "data=nlvr2 check=true", ["data.root=DIR"]),
    ("mwa-prepare", "data=nlvr2 data.root=.", ["data=nlvr2 is not made here", "data=scenes_nlvr2", "check=true"]),
    ("mwa-prepare", "data=jsonl data.classes=[a]", ["data.classes=['a']", "two classes or more"]),
    ("mwa-prepare", "check=maybe", ["true or false"]),
    ("mwa-prepare", "adapter=mwa", ["mwa-prepare looks at data alone"]),
]


@pytest.mark.parametrize(("name", "line", "words"), MISTAKES, ids=[f"{name} {line}" for name, line, _ in MISTAKES])
def test_main__mistake(name: str, line: str, words: list[str], elsewhere: Path, refuses: Callable[..., None]) -> None:
    refuses(name, MAINS[name], line.replace("{patch_no}", "51").split(), words)
    assert list(elsewhere.iterdir()) == []


def test_main__mistake_with_debug_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["optim.lr=-1", "debug=true"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("mwa-train: error: optim.lr=-1")


@pytest.mark.parametrize("name", MAINS)
def test_main__help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[name](["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(name)
    assert "coco, flickr30k, jsonl, karpathy, nlvr2, pairs, scenes (default), scenes_nlvr2, snli_ve" in text
    assert "--cfg job" in text
    assert all(f" {code} " in text.partition("Exit codes: ")[2] for code in (1, 2, 3, 4, 75, 130))
    assert max(map(len, text.splitlines())) <= 110


def test_main__help_of_training_names_the_menu(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["-h"])
    text = capsys.readouterr().out
    for words in ("beit3_base, beit3_large, beit3_tiny (default)", "full, head_only, modex, mwa (default), none"):
        assert words in text
    for words in ("scenes_mwa", "optim.lr", "peak learning rate", "trainer.precision", "adapter.first_layer"):
        assert words in text


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (tune.main, ["mwa-tune", "launcher   local (default), slurm", "tune.trials", "interval(1e-4,1e-2)"]),
        (compare.main, ["mwa-compare FOLDER...", "figures", "markdown or csv"]),
    ],
)
def test_main__help_of_the_commands_on_many_runs(
    main: Main, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("name", MAINS)
def test_main__version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[name](["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


def composed(main: Main, line: str, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main([*line.split(), "--cfg", "job"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_cfg_job__without_arguments_is_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(train.main, "", capsys)
    assert config == composed(train.main, "experiment=scenes_mwa", capsys)
    assert config["name"] == "scenes_mwa"
    assert config["training"]["zero_shot"] is True
    assert "hydra" not in config


def test_cfg_job__keys_alone_keep_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(train.main, "trainer.max_steps=3 logger=tensorboard", capsys)
    assert config["name"] == "scenes_mwa"
    assert config["trainer"]["max_steps"] == 3
    assert config["logger"]["name"] == "tensorboard"


def test_cfg_job__chosen_parts_name_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert composed(train.main, "adapter=full", capsys)["name"] == "full_beit3_tiny_scenes"


def test_cfg_job__command_line_wins_over_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    line = "experiment=full_beit3_base_coco optim.lr=1e-5 trainer=gpu backbone=beit3_large trainer.precision=32"
    config = composed(train.main, line, capsys)
    assert config["optim"]["lr"] == 1e-5
    assert config["optim"]["layer_decay"] == 0.65
    assert config["trainer"]["strategy"] == "auto"
    assert config["trainer"]["precision"] == "32"
    assert config["backbone"]["width"] == 1024
    assert config["backbone"]["image_size"] == 384


def test_cfg_job__added_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert composed(train.main, "+trainer.limit_train_batches=2", capsys)["trainer"]["limit_train_batches"] == 2


def test_cfg_job__quoted_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["run_dir='/tmp/a b,c=[d'", "--cfg=job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == "/tmp/a b,c=[d"


@pytest.mark.parametrize(
    ("raised", "code", "last_line", "with_traceback"),
    [
        (DataError("picture a.jpg\nhas 0 bytes"), 2, "mwa-test: error: picture a.jpg has 0 bytes", False),
        (ExpectationMissed("far off"), 3, "mwa-test: error: far off", False),
        (RuntimeError("no idea"), 1, "mwa-test: error: unexpected RuntimeError", True),
        (KeyboardInterrupt(), 130, "mwa-test: interrupted", False),
    ],
)
def test_run__exit_code(
    raised: BaseException, code: int, last_line: str, with_traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(_: object) -> None:
        raise raised

    command = Command(
        name="mwa-test", config_name="train", compose=lambda _: None, execute=execute, usage="", main_keys=()
    )
    assert run(command, []) == code
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(last_line)
    assert ("Traceback" in error) is with_traceback


@pytest.mark.parametrize(("error", "code"), [("RuntimeError", 1), ("ExpectationMissed", 3)])
def test_run__exit_code_of_a_process(error: str, code: int) -> None:
    script = f"""
import sys
from mwa_lightning.cli import train
from mwa_lightning.errors import ExpectationMissed
def fails(config):
    raise {error}("no")
train._execute = fails
sys.exit(train.main([]))
"""
    assert process("-c", script).returncode == code


def test_help__reader_leaves_early() -> None:
    script = "import os, sys; from mwa_lightning.cli import train; os.close(1); r, w = os.pipe(); os.close(r); "
    result = process("-c", script + "assert w == 1 or os.dup2(w, 1) == 1; sys.exit(train.main(['--help']))")
    assert (result.returncode, result.stderr) == (0, "")


HEAVY = (
    "heavy = {'torch', 'lightning', 'numpy', 'matplotlib', 'PIL', 'optuna', 'sqlalchemy', 'submitit'}; "
    "heavy &= set(sys.modules)"
)


@pytest.mark.parametrize(
    ("module", "line", "code"),
    [
        ("train", "--help", 0),
        ("train", "--cfg job", 0),
        ("train", "adapter=mwaa", 2),
        ("train", "data=coco data.root=gone", 2),
        ("train", "backbone=beit3_base", 2),
        ("train", "-m --cfg job seed=1,2 launcher=slurm", 0),
        ("train", "-m seed=1,-1", 2),
        ("tune", "--help", 0),
        ("tune", "tune.trials=0", 2),
        ("compare", "gone", 2),
        ("evaluate", "--cfg job adapter=none", 0),
        ("evaluate", "run=gone", 2),
        ("prepare", "--help", 0),
        ("prepare", "data=coco check=true", 2),
    ],
)
def test_main__stays_light(module: str, line: str, code: int, elsewhere: Path) -> None:
    script = (
        f"import sys; from mwa_lightning.cli.{module} import main; code = main(sys.argv[1:]); {HEAVY}; "
        "print('heavy:', sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    result = process("-c", script, *line.split())
    assert result.returncode == code, result.stderr
    assert result.stderr.splitlines()[-1] == "heavy: []"


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package of this checkout, whatever the current directory is."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
