"""Whole training runs at a tiny size: files, figures, determinism, continuation, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file

from mwa_lightning.adapters.files.adapter_file import read_metadata, trained_state
from mwa_lightning.errors import CheckpointError, ConfigError, DataError, NotFinite, TrainingError, UserError
from mwa_lightning.system.code_version import commit
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.training import fit as fit_module
from mwa_lightning.training.assembly.build import build_model
from mwa_lightning.training.callbacks.coordinator import CoordinatorFigures
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit
from mwa_lightning.training.optim import GatedAdamW

MakeConfig = Callable[..., DictConfig]

RECALLS = {"i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall"}


def rows_of(path: Path) -> list[tuple[str, str, str]]:
    with path.open() as file:
        rows = [(row["step"], row["name"], row["value"]) for row in csv.DictReader(file)]
    return [row for row in rows if not row[1].startswith("time/")]


def without_time(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not name.startswith("time/")}


@pytest.mark.parametrize(("algorithm", "largest"), [("norm", 1e-6), ("value", 1e-7)])
def test_fit__clips_gradients_in_bfloat16(
    algorithm: str, largest: float, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step = GatedAdamW.step

    def watched(self: GatedAdamW, closure: Any = None) -> Any:
        result = step(self, closure)
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        every = torch.cat(gradients)
        seen.append((every.norm() if algorithm == "norm" else every.abs().max()).item())
        return result

    monkeypatch.setattr(GatedAdamW, "step", watched)
    config = make_config("trainer.precision=bf16-mixed", f"trainer.gradient_clip_val={largest}", "trainer.max_steps=2")
    OmegaConf.update(config, "trainer.gradient_clip_algorithm", algorithm, force_add=True)
    fit(config)
    assert seen == pytest.approx([largest] * 2, rel=0.1)


def test_fit__leaves_a_complete_run_directory(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("training.zero_shot=true", "save_predictions=true", "training.ema_decay=0.5")
    before, _ = build_model(config)
    backbone_bytes = {name: tensor.clone() for name, tensor in before.backbone.state_dict().items()}
    figures = fit(config)

    run = tmp_path / "run"
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        "config.yaml",
        "adapter.safetensors",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "checkpoints/best.ckpt",
        "checkpoints/sha256.txt",
        "metrics.csv",
        "metrics.json",
        "provenance.json",
        "predictions.safetensors",
        "train.log",
    }
    assert json.loads((run / "metrics.json").read_text()) == figures
    expected = {f"{prefix}/{name}" for prefix in ("test", "zero_shot") for name in RECALLS}
    expected |= {"params/trainable", "params/total", "params/adapter_share", "time/fit_s", "time/step_s"}
    expected |= {"train/spread", "train/gradient_norm", "train/loss_of_knowing_nothing"}
    expected |= {"random_order/mean_recall", "gain/mean_recall"}
    assert set(figures) == expected | {f"val/{name}" for name in RECALLS}  # of the best epoch
    saved = OmegaConf.load(run / "config.yaml")
    assert saved.pop("mwa_lightning_version")
    assert saved.pop("mwa_lightning_commit") == commit()
    assert saved.pop("chosen") == {"threads": 1, "num_workers": 0, "processes": 1}
    assert saved == config

    with safe_open(run / "predictions.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["image_names"]) == [f"test_{number}.jpg" for number in range(6)]

    trained = trained_state(before)
    assert load_file(run / "adapter.safetensors").keys() == trained.keys()
    metadata = read_metadata(run / "adapter.safetensors")
    assert metadata["method"] == "MultiWayAdapter"
    assert metadata["fingerprint"] == before.backbone.fingerprint
    assert metadata["image_size"] == "16"
    assert figures["params/trainable"] == sum(tensor.numel() for tensor in trained.values())

    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == {f"model.{name}" for name in trained}
    assert checkpoint["callbacks"]["WeightAverage"]["average"].keys() == trained.keys()
    steps = [row for row in rows_of(run / "metrics.csv") if row[1] == "train/loss"]
    assert [row[0] for row in steps] == ["0", "1", "2", "3", "4", "5"]

    shown, logged = capsys.readouterr().out, (run / "train.log").read_text()
    for text in (shown, logged):
        assert text.index("What trains") < text.index("epoch 1 of 2") < text.index("Retrieval on the test")
        assert "Tip" not in text
        assert "GPU available" not in text
    after, _ = build_model(config)
    assert all(torch.equal(after.backbone.state_dict()[name], value) for name, value in backbone_bytes.items())


def test_fit__closing_table_that_cannot_be_printed_costs_the_loggers_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(fit_module, "conclude", lambda loggers, outcome: told.append(outcome.run.path.name))

    def full(table: Table) -> None:
        if table.title != "What trains":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_module, "show", full)
    with pytest.raises(OSError, match="No space left"):
        fit(make_config("trainer.max_steps=1"))
    assert told == ["run"]


def test_fit__frozen_bytes_stay_and_the_rest_moves(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[RetrievalModel, dict[str, torch.Tensor]]] = []
    attach = fit_module.attach

    def spy(*arguments: object, **options: bool) -> RetrievalModel:
        model = attach(*arguments, **options)
        seen.append((model, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
        return model

    monkeypatch.setattr(fit_module, "attach", spy)
    fit(make_config("trainer.max_epochs=1"))
    model, before = seen[0]
    trained = trained_state(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name


def test_fit__every_callback_once(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[pl.Trainer] = []
    begin = pl.Trainer.fit
    monkeypatch.setattr(pl.Trainer, "fit", lambda self, *args, **rest: (seen.append(self), begin(self, *args, **rest)))
    fit(make_config("trainer.max_steps=1"))
    (trainer,) = seen
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert CoordinatorFigures in kinds
    assert len(kinds) == len(set(kinds))


def test_fit__same_seed_same_bytes_another_seed_others(make_config: MakeConfig, tmp_path: Path) -> None:
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(make_config(f"seed={seed}", "trainer.max_epochs=1", run=run))
    a, b, c = ((tmp_path / run / "adapter.safetensors").read_bytes() for run in "abc")
    assert a == b
    assert a != c


def test_fit__zero_shot_does_not_change_the_training(make_config: MakeConfig, tmp_path: Path) -> None:
    fit(make_config("trainer.max_epochs=1", run="without"))
    fit(make_config("trainer.max_epochs=1", "training.zero_shot=true", run="with"))
    a, b = ((tmp_path / run / "adapter.safetensors").read_bytes() for run in ("without", "with"))
    assert a == b


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize(
    ("kill_after_saves", "options"),
    [
        (1, ()),
        (2, ("training.ema_decay=0.9",)),
        (3, ()),
        (4, ()),
        (2, ("trainer.accumulate_grad_batches=2", "training.checkpoint_every_n_steps=1")),
        (1, ("trainer.precision=bf16-true",)),
        (1, ("trainer.precision=64-true",)),
    ],
)
def test_fit__killed_after_a_save_and_started_again(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_after_saves: int,
    options: tuple[str, ...],
) -> None:
    """The same bytes and figures as a run that nothing happened to, from mid-epoch and from an epoch's end."""
    arguments = ["training.checkpoint_every_n_steps=2", *options]
    whole = fit(make_config(*arguments, run="whole"))
    saves = 0
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: object, **position: int) -> None:
        nonlocal saves
        save(self, trainer, **position)
        saves += 1
        if saves == kill_after_saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            fit(make_config(*arguments, run="killed"))
    again = fit(make_config(*arguments, run="killed"))
    assert without_time(again) == without_time(whole)
    weights = [(tmp_path / run / "adapter.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    tables = [rows_of(tmp_path / run / "metrics.csv") for run in ("whole", "killed")]
    assert tables[0] == tables[1]
    states = [torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "killed")]
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name
    assert (
        states[0]["loops"]["fit_loop"]["epoch_progress"]["current"]
        == (states[1]["loops"]["fit_loop"]["epoch_progress"]["current"])
    )


@pytest.mark.parametrize(
    ("precision", "kind", "least"), [("bf16-true", torch.bfloat16, 0.9), ("64-true", torch.float64, 0.9999)]
)
def test_fit__weights_of_another_type_move_as_those_of_float32(
    make_config: MakeConfig, tmp_path: Path, precision: str, kind: torch.dtype, least: float
) -> None:
    options = ["trainer.max_steps=3", "optim.warmup_epochs=0", "optim.lr=1e-2"]
    start = trained_state(build_model(make_config())[0])
    moves = []
    for name in ("32", precision):
        fit(make_config(f"trainer.precision={name}", *options, run=name))
        weights = load_file(tmp_path / name / "adapter.safetensors")
        moves.append(torch.cat([(weights[key].double() - start[key]).flatten() for key in start]))
    assert {tensor.dtype for tensor in weights.values()} == {kind}
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > least
    adapter = f"adapter.checkpoint={tmp_path / precision / 'adapter.safetensors'}"
    measured = evaluate(make_config(adapter, command="evaluate", run="measured"))
    assert measured["test/mean_recall"] > 0


def test_fit__names_of_lightning_resume_runs_of_ours(make_config: MakeConfig, tmp_path: Path) -> None:
    first = fit(make_config("trainer.precision=32", "trainer.max_epochs=1"))
    again = fit(make_config("trainer.precision=32-true", "trainer.max_epochs=1"))
    assert without_time(again) == without_time(first)
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").trainer.precision == "32"


def test_fit__finished_run_started_again_is_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    first = fit(make_config("trainer.max_epochs=1"))
    bytes_before = (tmp_path / "run" / "adapter.safetensors").read_bytes()
    again = fit(make_config("trainer.max_epochs=1"))
    assert without_time(again) == without_time(first)
    assert again["time/step_s"] == first["time/step_s"]
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == bytes_before


def test_fit__run_dir_with_other_settings_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    fit(make_config("trainer.max_epochs=1"))
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.5 \(there: auto\)"):
        fit(make_config("trainer.max_epochs=1", "optim.lr=0.5"))
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("steps", [2, 4])
def test_fit__max_steps_ends_with_a_validation(make_config: MakeConfig, tmp_path: Path, steps: int) -> None:
    figures = fit(make_config(f"trainer.max_steps={steps}"))
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    assert len([row for row in rows if row[1] == "train/loss"]) == steps
    assert "val/mean_recall" in figures


def test_fit__early_stopping_also_after_a_restart(make_config: MakeConfig, tmp_path: Path) -> None:
    options = ("optim.lr=1e-12", "callbacks.early_stopping_patience=1", "trainer.max_epochs=9")
    fit(make_config(*options))
    losses = [row for row in rows_of(tmp_path / "run" / "metrics.csv") if row[1] == "train/loss"]
    assert len(losses) == 2 * 3
    fit(make_config(*options))
    again = [row for row in rows_of(tmp_path / "run" / "metrics.csv") if row[1] == "train/loss"]
    assert again == losses


def test_fit__diverging_run_stops_and_names_the_samples(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the (loss|gradient of \S+) is not finite; samples: train_"):
        fit(make_config("adapter=full", "optim.lr=1e30", "optim.weight_decay=0"))
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("adapter=none",), ConfigError, "mwa-eval"),
        (("backbone.checkpoint=null",), CheckpointError, "official|weights"),
        (("backbone.tokenizer=null",), CheckpointError, "tokenizer"),
        (("backbone.vocabulary_size=900",), ConfigError, "rows"),
        (("data.root=/nowhere",), DataError, "/nowhere"),
        (("data.annotations=other.json",), DataError, "other.json"),
        (("adapter.checkpoint=/nowhere.safetensors",), CheckpointError, "nowhere"),
        (("trainer=gpu",), ConfigError, "GPU"),
    ],
)
def test_fit__refuses_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path, arguments: tuple[str, ...], error: type[UserError], message: str
) -> None:
    if arguments == ("trainer=gpu",) and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is no mistake")
    with pytest.raises(error, match=message) as caught:
        fit(make_config(*arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adapter", ["full", "head_only"])
def test_fit__baselines(make_config: MakeConfig, tmp_path: Path, adapter: str) -> None:
    figures = fit(make_config(f"adapter={adapter}", "trainer.max_epochs=1", "trainer.precision=bf16-mixed"))
    assert figures["params/adapter_share"] == 0
    assert (tmp_path / "run" / "adapter.safetensors").is_file()


def test_fit__unknown_monitor(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"training\.monitor=val/accuracy.*val/mean_recall"):
        fit(make_config("training.monitor=val/accuracy", "trainer.max_epochs=1"))


def test_fit__a_score_that_is_no_number_is_never_the_best_and_a_tie_keeps_the_first(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, kept, save = iter([float("nan"), 3.0, float("nan"), 3.0, 2.0]), [], RunKeeper.save_adapter

    def scored(self: RunKeeper, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._score = next(scores)

    def saved(self: RunKeeper, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kept.append(trainer.current_epoch)
        save(self, trainer, pl_module)

    monkeypatch.setattr(RunKeeper, "on_validation_end", scored)
    monkeypatch.setattr(RunKeeper, "save_adapter", saved)
    fit(make_config("trainer.max_epochs=5"))
    assert kept == [1]
    scores = iter([float("nan"), float("nan")])
    with pytest.raises(NotFinite, match=r"training\.monitor=val/mean_recall: was not a number at any validation"):
        fit(make_config("trainer.max_epochs=2", run="other"))
