from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.comparison import as_csv, as_markdown, differing, read_runs, table

BASE: dict[str, Any] = {
    "name": "a",
    "run_dir": None,
    "seed": 42,
    "split": "test",
    "backbone": {"_target_": "mwa_lightning.backbones.multiway.Multiway", "name": "beit3_tiny", "depth": 4},
    "adapter": {"_target_": "mwa_lightning.adapters.mwa.MultiWayAdapter", "mid_dim": 16, "scale": 4.0},
    "optim": {"lr": 0.001, "betas": [0.9, 0.98]},
    "training": {"monitor": "val/mean_recall", "checkpoint_every_n_steps": None},
    "logger": {"name": "csv"},
}
# A few kilobytes that would become terabytes.
BOMB = (
    "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 25))
).encode()
MERGES = BOMB.replace(b"[", b"{<<: [").replace(b"]", b"]}")
HEAD_ONLY = {"_target_": "mwa_lightning.adapters.head_only.HeadOnly", "checkpoint": None}


def leave(path: Path, figures: dict[str, float] | None, **changes: Any) -> Path:
    path.mkdir(parents=True)
    config = {key: {**value} if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            config[part][name] = value
        else:
            config[part] = value
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config))  # as runs do
    if figures is not None:
        (path / "metrics.json").write_text(json.dumps(figures))
    return path


def figures(value: float) -> dict[str, float]:
    return {
        "val/mean_recall": value,
        "test/mean_recall": value - 1.25,
        "test/i2t_r1": 100 - value,
        "params/trainable": 32769.0,
        "time/fit_s": 7.5,
    }


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    leave(folder / "0", figures(50.0), name="b", optim__lr=0.01)
    leave(folder / "1", figures(70.123456), optim__lr=0.1, training__checkpoint_every_n_steps=3, logger={"name": "x"})
    leave(folder / "2", figures(60.0), adapter=HEAD_ONLY)
    leave(folder / "3", {"zero_shot/mean_recall": 1.0}, optim__lr=0.3)
    leave(folder / "4", None, optim__lr=0.5)
    jobs = {number: {"overrides": []} for number in range(6)} | {4: {"overrides": [], "pruned": 2}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    return folder


def test_table__best_first_and_unfinished_last(sweep: Path) -> None:
    rows = table(read_runs([sweep]))
    assert rows[0] == [
        *("run", "adapter", "optim.lr", "state"),
        *("val/mean_recall", "test/mean_recall", "params/trainable", "time/fit_s"),
    ]
    assert rows[1:4] == [
        ["1", "mwa", "0.1", "through", "70.12", "68.87", "32769", "7.50"],
        ["2", "head_only", "0.001", "through", "60.00", "58.75", "32769", "7.50"],
        ["0", "mwa", "0.01", "through", "50.00", "48.75", "32769", "7.50"],
    ]
    assert [row[:4] for row in rows[4:]] == [
        ["3", "mwa", "0.3", "not finished"],
        ["4", "mwa", "0.5", "pruned after epoch 2"],
        ["5", "", "", "not started"],
    ]


def test_table__says_which_runs_did_not_learn(sweep: Path) -> None:
    """One that went on to its end, and one that its sweep saw stop: neither looks like any other."""
    leave(sweep / "5", figures(80.0) | {"train/collapsed_at_step": 13.0, "train/spread": 0.01}, optim__lr=1.0)
    leave(sweep / "6", {"train/diverging_at_step": 40.0, "train/spread": 0.9}, optim__lr=2.0)
    jobs = yaml.safe_load((sweep / "multirun.yaml").read_text())["jobs"]
    jobs[6] = {"overrides": [], "failed": "did not learn (exit code 5)"}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    rows = table(read_runs([sweep]))
    assert rows[1][:5] == ["5", "mwa", "1.0", "through, collapsed", "80.00"]
    assert ["6", "mwa", "2.0", "did not learn (exit code 5), diverging"] in [row[:4] for row in rows]
    assert [row[3] for row in rows[2:5]] == ["through"] * 3


def test_table__settings_of_many_digits_are_shortened(tmp_path: Path) -> None:
    for number, lr in enumerate((0.00035312475617752464, 1e-05)):
        leave(tmp_path / "all" / str(number), figures(50.0 - number), optim__lr=lr)
    runs = read_runs([tmp_path / "all"])
    assert [row[1] for row in table(runs)] == ["optim.lr", "0.0003531", "1e-05"]
    assert table(runs, exact=True)[1][1] == "0.00035312475617752464"


def test_table__whole_numbers_and_names_are_not_shortened(tmp_path: Path) -> None:
    values = (1000000001, 1000000002, "12345e678", "1234567e8", "infinity", "-.inf", "1_000_000_001")
    for number, value in enumerate(values):
        leave(tmp_path / "all" / str(number), figures(50.0 - number), seed=value)
    rows = table(read_runs([tmp_path / "all"]))
    assert [row[1] for row in rows] == ["seed", *map(str, values)]


def test_table__chosen_figures_and_order(sweep: Path) -> None:
    rows = table(read_runs([sweep]), figures=["test/i2t_r1"], sort="test/i2t_r1", exact=True)
    assert [(row[0], row[-1]) for row in rows[1:4]] == [("0", "50"), ("2", "40"), ("1", repr(100 - 70.123456))]
    with pytest.raises(
        ConfigError, match="no run has the metric val/mean_recal; take one of params/trainable, test/i2t"
    ):
        table(read_runs([sweep]), figures=["val/mean_recal"])
    with pytest.raises(ConfigError, match="no run has the metric x"):
        table(read_runs([sweep]), figures=["test/i2t_r1"], sort="x")


def test_differing__keys_of_a_part_count_among_runs_with_the_same_part(tmp_path: Path) -> None:
    leave(tmp_path / "all" / "0", None, adapter__mid_dim=16)
    leave(tmp_path / "all" / "1", None, adapter__mid_dim=64, optim__betas=[0.9, 0.999])
    leave(tmp_path / "all" / "2", None, adapter=HEAD_ONLY, backbone__name="beit3_base", backbone__depth=12)
    assert differing(read_runs([tmp_path / "all"])) == {
        "backbone": ["beit3_tiny", "beit3_tiny", "beit3_base"],
        "adapter": ["mwa", "mwa", "head_only"],
        "adapter.mid_dim": ["16", "64", ""],
        "optim.betas": ["[0.9, 0.98]", "[0.9, 0.999]", "[0.9, 0.98]"],
    }


def test_read_runs__of_several_folders(sweep: Path, tmp_path: Path) -> None:
    one = leave(tmp_path / "one", figures(3.0))
    labels = [run.label for run in read_runs([sweep, one])]
    assert labels == [*(f"sweep/{number}" for number in range(6)), "one"]
    other = leave(tmp_path / "elsewhere" / "one", figures(4.0))
    assert [run.label for run in read_runs([one, other])] == [str(one), str(other)]


def test_read_runs__whatever_lies_below(sweep: Path, tmp_path: Path) -> None:
    """As in `logs/<task>/<name>/<time>`; what lies in a run directory is its own, and links lead nowhere twice."""
    run = leave(tmp_path / "retrieval" / "größe|名前\n" / "2026", figures(3.0))
    leave(run / "wandb" / "run-1" / "files", None)
    leave(tmp_path / ".trash" / "1", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "retrieval" / "back").symlink_to(tmp_path, target_is_directory=True)
    labels = [run.label for run in read_runs([tmp_path])]
    assert labels == ["retrieval/größe|名前\n/2026", *(f"sweep/{number}" for number in range(6))]


def test_table__of_different_tasks_and_evaluations(tmp_path: Path) -> None:
    """Each has its figure; who has not the one that is sorted by, or no number, comes after those who have."""
    runs = tmp_path / "runs"
    found = {"val/accuracy": 90.0, "test/accuracy": 91.0, "time/fit_s": 1.0}
    leave(runs / "a", found, training__monitor="val/accuracy")
    leave(runs / "b", figures(math.nan))
    leave(runs / "c", figures(50.0))
    leave(runs / "d", figures(60.0))
    leave(runs / "e", {"test/mean_recall": 40.0}, expect=None)
    leave(runs / "f", None, split="val")
    rows = table(read_runs([runs]), sort="val/mean_recall")
    figure_names = ["val/accuracy", "val/mean_recall", "test/accuracy", "test/mean_recall"]
    assert rows[0] == ["run", "split", "training.monitor", "state", *figure_names, "params/trainable", "time/fit_s"]
    assert [(row[0], row[3]) for row in rows[1:]] == [
        *(
            ("d", "through"),
            ("c", "through"),
            ("a", "through"),
            ("b", "through"),
            ("e", "through"),
            ("f", "not finished"),
        )
    ]
    with pytest.raises(ConfigError, match="no run has the metric val/mean_recal; take one of"):
        table(read_runs([runs]), sort="val/mean_recal")


def test_table__each_column_has_a_heading_of_its_own(tmp_path: Path) -> None:
    """The configuration of an evaluation has a key `run`."""
    runs = tmp_path / "runs"
    leave(runs / "a", figures(50.0))
    leave(runs / "b", {"test/mean_recall": 40.0}, expect=None, run="runs/a")
    rows = table(read_runs([runs]), figures=["test/mean_recall", "test/mean_recall"])
    assert rows[0] == ["run", "config.run", "state", "test/mean_recall"]
    found = list(csv.DictReader(io.StringIO(as_csv(rows), newline="")))
    assert [(row["run"], row["config.run"], row["test/mean_recall"]) for row in found] == [
        ("a", "", "48.75"),
        ("b", "runs/a", "40.00"),
    ]


@pytest.mark.parametrize(
    ("what", "message"), [("gone", "no such folder"), ("empty", "neither it nor a folder below it")]
)
def test_read_runs__refused(tmp_path: Path, what: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        read_runs([tmp_path / what])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", b'{"a": '),
        ("metrics.json", b"[1, 2]"),
        ("metrics.json", b'{"a": "b"}'),
        ("metrics.json", b'{"a": 1' + b"0" * 400 + b"}"),
        ("metrics.json", b'{"a": 1' + b"0" * 9000 + b"}"),
        ("metrics.json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("metrics.json", b'{"a": {"b": 1}}'),
        ("metrics.json", b'{"a": true}'),
        ("metrics.json", b'{"a": "1.5"}'),
        ("metrics.json", b"\x00\xff" * 50),
        ("metrics.json", b" " * (17 << 20)),
        ("config.yaml", b"a: &a\n  b: *a\n"),
        ("config.yaml", b"a: " + b"[" * 100_000 + b"]" * 100_000),
        ("config.yaml", BOMB),
        ("config.yaml", MERGES),
        ("config.yaml", b"a: !!python/object/apply:os.system [id]\n"),
        ("provenance.json", b'{"metrics": []}'),
        ("provenance.json", b'{"metrics": {"test": {"data": 3}}}'),
        ("config.yaml", b""),
        ("config.yaml", b"- a"),
        ("config.yaml", b"a: \xff"),
        ("config.yaml", b"a: {"),
    ],
)
def test_read_runs__damaged(tmp_path: Path, file: str, content: bytes) -> None:
    run = leave(tmp_path / "run", None)
    (run / file).write_bytes(content)
    (damaged,) = read_runs([run])
    assert damaged.state == f"{file} cannot be read"
    other = leave(tmp_path / "other", figures(50.0))
    assert [row[:2] for row in table(read_runs([run, other]))[1:]] == [["other", "through"], ["run", damaged.state]]


def test_table__of_settings_that_are_no_words(sweep: Path, tmp_path: Path) -> None:
    """Other programs have a config.yaml too, and people change files."""
    leave(tmp_path / "odd", figures(50.0), split=[1, 2], training__monitor=3)
    record = yaml.safe_load((sweep / "multirun.yaml").read_text())
    record["jobs"] |= {3: {"overrides": [], "failed": 3}, 4: {"overrides": [], "pruned": None}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(record))
    headings, *rows = table(read_runs([tmp_path / "odd", sweep]))
    states = {row[0]: row[headings.index("state")] for row in rows}
    assert states["odd"] == "through"
    assert (states["sweep/3"], states["sweep/4"]) == ("3", "not finished")
    assert "[1, 2]/mean_recall" not in headings


@pytest.mark.parametrize(
    "content",
    [
        "hydra: {job: {name: theirs}}\n",
        "",
        "jobs: {0:",
        'jobs: {"../x": {overrides: []}}',
        "jobs: {-1: {overrides: []}}",
        "jobs: {1.5: {overrides: []}}",
        "jobs: {true: {overrides: []}}",
    ],
)
def test_table__of_a_record_that_is_no_sweeps(tmp_path: Path, content: str) -> None:
    """Hydra leaves a multirun.yaml too; what lies below one is still in the table."""
    logs = tmp_path / "logs"
    leave(logs / "sweep" / "0", figures(50.0))
    (logs / "sweep" / "multirun.yaml").write_text(content)
    rows = table(read_runs([logs]))
    assert [row[:2] for row in rows] == [
        ["run", "state"],
        ["sweep/0", "through"],
        ["sweep", "multirun.yaml cannot be read"],
    ]
    assert read_runs([logs / "sweep"])[0].label == "sweep"


def test_table__split_that_is_no_word(tmp_path: Path) -> None:
    leave(tmp_path / "odd", None, split=[1, 2])
    assert table(read_runs([tmp_path / "odd"]))[0] == ["run", "state", "val/mean_recall", "test/mean_recall"]


def test_read_runs__a_folder_and_one_below_it(sweep: Path) -> None:
    again = read_runs([sweep, sweep / "0", sweep])
    assert [run.label for run in again] == [f"{sweep.name}/{number}" for number in range(len(read_runs([sweep])))]


def test_read_runs__a_folder_whose_runs_were_listed(sweep: Path) -> None:
    again = read_runs([sweep, sweep / "0", sweep.parent])
    assert [run.label for run in again] == [f"{sweep.name}/{number}" for number in range(len(read_runs([sweep])))]


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "provenance.json"])
def test_read_runs__what_is_no_file(name: str, tmp_path: Path) -> None:
    run = leave(tmp_path / "run", None)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert [found.state for found in read_runs([tmp_path])] == [f"{name} cannot be read"]


def test_table__of_runs_on_other_data(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run = leave(tmp_path / name, figures(50.0), data={"layout": "pairs", "root": f"/data/{name}"})
        if name != "c":  # of a version that left none
            of_train = {"train": {"sha256": "c" * 64}}
            content = {"inputs": {"data": of_train}, "metrics": {"test": {"data": {"sha256": name * 64}}}}
            (run / "provenance.json").write_text(json.dumps(content))
    headings, *rows = table(read_runs([tmp_path]))
    assert headings[:3] == ["run", "data.root", "data.sha256"]
    assert [row[1:3] for row in rows] == [["/data/a", "a" * 12], ["/data/b", "b" * 12], ["/data/c", ""]]
    assert "data.root" not in table(read_runs([tmp_path / "a", tmp_path / "c"]))[0]


def test_read_runs__a_folder_given_twice(sweep: Path) -> None:
    assert read_runs([sweep, sweep / ".." / sweep.name]) == read_runs([sweep])


def test_formats() -> None:
    rows = [["run", "a|b"], ["0", 'x,"y\n\nz\r|é']]
    assert as_markdown(rows) == '| run | a\\|b |\n|---|---|\n| 0 | x,"y  z \\|é |\n'
    rows.append(["1", "a\rb"])
    assert list(csv.reader(io.StringIO(as_csv(rows), newline=""))) == rows
