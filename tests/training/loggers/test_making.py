"""The table of figures, and the other loggers beside it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer import event_file_writer

import mwa_lightning
from mwa_lightning.adapters.files.adapter_file import read_metadata
from mwa_lightning.cli import train
from mwa_lightning.report.examples import Drawing
from mwa_lightning.system.code_version import commit
from mwa_lightning.training import fit as fit_module
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.fit import fit
from mwa_lightning.training.loggers.base import Outcome
from mwa_lightning.training.loggers.making import TableLogger, close, make_loggers
from mwa_lightning.training.loggers.tensorboard_logger import LosableTensorBoardLogger
from mwa_lightning.training.runs.run_directory import RunDirectory
from mwa_lightning.training.runs.run_lock import LOCK

MakeConfig = Callable[..., DictConfig]
Records = Callable[[Path], Iterator[Any]]
Figures = Callable[[Path], list[tuple[int, str, float]]]


def test_table__rows_repetition_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = TableLogger(path=path)
    table.log_metrics({"a": 0.1, "b": 2.0, "epoch": 0}, step=0)
    size = table.size
    table.log_metrics({"a": 0.1, "b": 2.0, "epoch": 0}, step=0)
    assert table.size == size
    table.log_metrics({"a": float("nan")}, step=1)
    assert path.read_text() == "step,epoch,name,value\n0,0,a,0.1\n0,0,b,2\n1,,a,nan\n"
    table.cut(size)
    TableLogger(path=path).log_metrics({"a": 1e-9, "epoch": 3}, step=7)
    assert path.read_text() == "step,epoch,name,value\n0,0,a,0.1\n0,0,b,2\n7,3,a,1e-09\n"


def test_make_loggers__tensorboard_beside_the_table(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    loggers = make_loggers(make_config("logger=tensorboard"), run)
    for logger in loggers:
        logger.log_metrics({"val/mean_recall": 50.0}, 0)
        logger.finalize("success")
    assert run.metrics_table.is_file()
    assert list((run.path / "tensorboard").glob("events.*"))


@pytest.fixture(autouse=True, scope="module")
def _numbers_of_one_length() -> Iterator[None]:
    """TensorBoard reads files by their names, of one process and second by their numbers, of which 10 is before 9."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))
        yield


@pytest.fixture(scope="module")
def resumed(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was killed after the second validation, before it was saved, and started again; all loggers at once.

    Nothing knocked at W&B's door.
    """
    import wandb

    folder = tmp_path_factory.mktemp("loggers")
    make = fit_module.make_loggers
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{door.getsockname()[1]}")
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.5")
        patch.setenv("HOME", str(folder / "home"))
        words = ["adapter.mid_dim=4", "adapter.enhancer_dim=4", "logger.mode=offline", "logger.examples=2"]
        config = train.compose_checked([*tiny_run, *words, "logger=wandb", f"run_dir={folder / 'run'}"])
        tensorboard = OmegaConf.merge(config, {"logger": {"name": "tensorboard"}})
        patch.setattr(fit_module, "make_loggers", lambda _, run: [*make(config, run), *make(tensorboard, run)[1:]])
        with pytest.MonkeyPatch.context() as deadly:
            deadly.setattr(RunKeeper, "on_train_epoch_end", _die_in_the_second_epoch)
            with pytest.raises(Killed):
                fit(config)
        wandb.finish(exit_code=1)
        fit(config)
        with pytest.raises(BlockingIOError):
            door.accept()
    assert wandb.run is None  # closed, or the next run of this process would go on in it
    yield folder / "run"
    wandb.teardown()


class Killed(BaseException):
    """Stands for SIGKILL."""


def _die_in_the_second_epoch(
    keeper: RunKeeper, trainer: Any, task: Any, save: Any = RunKeeper.on_train_epoch_end
) -> None:
    if trainer.current_epoch == 1:
        raise Killed
    save(keeper, trainer, task)


def table_of(run: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def untimed(rows: Iterable[tuple[int, str, float]]) -> list[tuple[int, str, float]]:
    """Rows but for the times, which are others in each start, and the epoch, which is a column of the table."""
    return sorted(row for row in rows if not row[1].startswith("time/") and row[1] != "epoch")


@pytest.mark.slow
def test_pain_5__resumed_run_keeps_its_id_and_has_each_figure_once(
    resumed: Path, wandb_records: Records, wandb_figures: Figures
) -> None:
    """In W&B's two files, TensorBoard's files and the table the same names, steps and values."""
    identity = (resumed / "wandb" / "id").read_text()
    assert [record.run.run_id for record in wandb_records(resumed) if record.HasField("run")] == [identity] * 2
    table, theirs = table_of(resumed), wandb_figures(resumed)
    assert {step for step, _, _ in table} == set(range(6))
    names = {name for _, name, _ in table}
    assert {"train/loss", "lr", "time/step_s", "val/mean_recall"} <= names
    assert untimed(theirs) == untimed(table)
    places = [(step, name) for step, name, _ in table]
    assert len(set(places)) == len(places)
    epochs = [(step, name) for step, name, _ in theirs if name == "epoch"]
    assert sorted((step, name) for step, name, _ in theirs if name != "epoch") == sorted(places)
    assert {step for step, _ in epochs} == set(range(6))
    events = events_of(resumed)
    curves = [(event.step, name, event.value) for name in names for event in events.Scalars(name)]
    assert [row[:2] for row in untimed(curves)] == [row[:2] for row in untimed(table)]
    assert [row[2] for row in untimed(curves)] == pytest.approx([row[2] for row in untimed(table)], rel=1e-6)
    assert sorted(row[:2] for row in curves) == sorted(places)


@pytest.mark.slow
def test_pictures__the_same_in_wandb_and_tensorboard_with_captions(resumed: Path, wandb_records: Records) -> None:
    """Those of the second validation come from the start that was killed, and do not come twice."""
    shown: dict[str, list[tuple[int, list[str], list[str]]]] = {}
    for record in wandb_records(resumed):
        row = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = row.get(("trainer/global_step",))
        for name in ("examples/image_to_text", "examples/text_to_image"):
            if (name, "filenames") in row:
                shown.setdefault(name, []).append((step, row[name, "captions"], row[name, "filenames"]))
    assert [[step for step, _, _ in kind] for kind in shown.values()] == [[2, 5]] * 2
    events = events_of(resumed)
    for name, kind in shown.items():
        for place, (_, captions, files) in enumerate(kind):
            assert len(captions) == len(files) == 2
            for number, (caption, file) in enumerate(zip(captions, files, strict=True)):
                assert re.fullmatch(r"right (caption|image) at rank \d+[;:] .+", caption)
                (path,) = resumed.glob(f"wandb/offline-run-*/files/{file}")
                event = events.Images(f"{name}/{number}")[place]
                with Image.open(path) as image, Image.open(io.BytesIO(event.encoded_image_string)) as other:
                    assert image.convert("RGB").tobytes() == other.convert("RGB").tobytes()


@pytest.mark.slow
def test_outcome__summary_configuration_adapter_system_and_code(resumed: Path, wandb_records: Records) -> None:
    figures = json.loads((resumed / "metrics.json").read_text())
    records = list(wandb_records(resumed))
    summary: dict[str, Any] = {}
    for record in records:
        summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
    assert {name: summary[name] for name in figures} == figures
    config = yaml.safe_load((resumed / "config.yaml").read_text())
    told: dict[str, Any] = {}
    for record in records:
        for part in (record.config, record.run.config):
            told |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in part.update}
    assert {name: value for name, value in told.items() if name != "_wandb"} == config
    assert config["mwa_lightning_version"] == mwa_lightning.__version__
    assert config["mwa_lightning_commit"] == commit()

    (artifact,) = (record.artifact for record in records if record.HasField("artifact"))
    identity = (resumed / "wandb" / "id").read_text()
    assert (artifact.name, artifact.type) == (f"run-{identity}", "adapter")
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert files == {name: resumed / name for name in ("adapter.safetensors", "config.yaml", "metrics.json")}
    for entry in artifact.manifest.contents:
        digest = hashlib.md5((resumed / entry.path).read_bytes()).digest()
        assert base64.b64decode(entry.digest) == digest
    metadata = json.loads(artifact.metadata)
    assert metadata["figures"] == figures
    own = read_metadata(resumed / "adapter.safetensors")
    assert (metadata["fingerprint"], metadata["method"]) == (own["fingerprint"], "MultiWayAdapter")

    system = {item.key for record in records for item in record.stats.item}
    assert "memory_percent" in system  # a load comes with the second look, for which a short run may have no time
    axes = [(m.glob_name, m.step_metric) for m in (record.metric for record in records) if m.glob_name]
    assert set(axes) == {("*", "trainer/global_step")}
    home = resumed.parent / "home"
    kept = [path for path in home.rglob("*") if path.is_file() and path.suffix not in (".log", ".json")]
    assert kept == []  # neither figures nor the adapter


@pytest.mark.slow
def test_outcome__of_tensorboard(resumed: Path) -> None:
    """What has no curve stands there once, by its name in metrics.json, and makes the table of settings."""
    figures = json.loads((resumed / "metrics.json").read_text())
    events = events_of(resumed)
    curves = {name for _, name, _ in table_of(resumed)}
    last = {name: events.Scalars(name) for name in events.Tags()["scalars"] if name not in curves | {"epoch"}}
    assert last.keys() == figures.keys() - curves
    assert {name: event.value for name, (event,) in last.items()} == pytest.approx(
        {name: figures[name] for name in last}, rel=1e-6
    )
    settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optim/lr" in settings


def test_make_loggers__disabled_writes_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    loggers = make_loggers(make_config("logger=wandb", "logger.mode=disabled"), run)
    close(loggers)
    assert [type(logger) for logger in loggers] == [TableLogger]
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", LOCK}


def test_losable__a_logger_that_fails_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder is to be")
    logger = LosableTensorBoardLogger(run=RunDirectory(tmp_path))
    assert hasattr(logger, "experiment")  # Lightning asks for it before it logs
    logger.begin(0)
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    logger.log_drawings("b", [Drawing(Image.new("RGB", (2, 2)), "c")], step=3)
    close([logger])
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("TensorBoard takes nothing more until the next start (")
    assert "File exists" in line
    assert line.endswith("; the run goes on, and its directory has everything")


def test_tensorboard__what_a_start_makes_again_counts_once(tmp_path: Path) -> None:
    for first, last in ((0, 6), (3, 7)):
        logger = LosableTensorBoardLogger(run=RunDirectory(tmp_path))
        _ = logger.experiment  # Lightning opens it before it is known where the run goes on
        logger.begin(first)
        for step in range(first, last):
            logger.log_metrics({"a": 10.0 * first + step}, step)
            logger.log_metrics({"a": 10.0 * first + step}, step)
            logger.log_drawings("b", [Drawing(Image.new("RGB", (2, 2)), "c")] * 2, step=step)
        close([logger])
    events = events_of(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("a")] == [
        (0, 0), (1, 1), (2, 2), (3, 33), (4, 34), (5, 35), (6, 36),
    ]  # fmt: skip
    assert [event.step for event in events.Images("b/1")] == list(range(7))


def test_tensorboard__gets_what_starts_with_other_loggers_have_made(tmp_path: Path) -> None:
    """From the table, if it has no file of an earlier start: then it has them already."""
    run = RunDirectory(tmp_path)
    table = TableLogger(path=run.metrics_table)
    for first, last in ((0, 3), (3, 5), (5, 6)):
        loggers = [table] if first == 0 else [table, LosableTensorBoardLogger(run=run)]
        for logger in loggers[1:]:
            _ = logger.experiment
            logger.begin(first)
        for step in range(first, last):
            for logger in loggers:
                logger.log_metrics({"a": step / 2, "b": 1.0, "epoch": step // 2}, step)
        close(loggers)
    events = events_of(tmp_path)
    for name, values in {"a": [0, 0.5, 1, 1.5, 2, 2.5], "b": [1] * 6, "epoch": [0, 0, 1, 1, 2, 2]}.items():
        assert [(event.step, event.value) for event in events.Scalars(name)] == list(enumerate(values))
    written = sum(
        value.tag == "a"
        for file in (tmp_path / "tensorboard").iterdir()
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )
    assert written == 6


def test_losable__further_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = LosableTensorBoardLogger(run=RunDirectory(tmp_path))
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_drawings("b", [Drawing(Image.new("RGB", (2, 2)), "c")], step=0)
    logger.log_outcome(Outcome(RunDirectory(tmp_path, writes=False), {"test/a": 1.0}, {}, 0))
    close([logger])
    assert list(tmp_path.iterdir()) == []


def test_make_loggers__wandb_takes_the_id_of_its_agent(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B uses the agent's id whatever it is told, so a run that is gone on with by hand has to know it."""
    monkeypatch.setenv("WANDB_RUN_ID", "of_agent")
    runs = [RunDirectory(tmp_path / name) for name in ("alone", "swept")]
    for run in runs:
        run.create()
        make_loggers(make_config("logger=wandb", "logger.mode=offline"), run)
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    alone, swept = ((run.path / "wandb" / "id").read_text() for run in runs)
    assert swept == "of_agent" != alone


def test_make_loggers__wandb_keeps_its_id(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    identities = {make_loggers(make_config("logger=wandb", "logger.mode=offline"), run)[1].version for _ in range(2)}
    assert identities == {(run.path / "wandb" / "id").read_text()}
