"""Values of the command line as people type them: paths with blanks, brackets, commas, quotes, any letters."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mwa_lightning.cli import prepare
from mwa_lightning.cli.config.composing import read_request
from mwa_lightning.cli.config.overrides import parse_override
from mwa_lightning.cli.grid import grid
from mwa_lightning.errors import ConfigError
from mwa_lightning.system.shell_words import quoted, to_type

# Taken as they are, without any quotes but those of the shell.
AS_TYPED = [
    "my data (v1)", "data=v2", "daten-für", "数据", "50%#1", "it's", "a & b; c", "[old] data", "{x}", "a|b",
    "C:\\data\\x", "данные/сет", "x (copy)/y [2]", "a  b", "say \"x\" now", "(a)", "a=b=c", "@home", "2024", "007",
    "1e3", "true", "1.10", "*", "?", "~x", "é", "a'b\"c", "#1",
]  # fmt: skip
WITH_COMMAS = ["a,b", "Meier, A., 2020", "a,b (c)", "x=1,y=2", "d'or, 1", "$HOME,`x`", "back\\slash, \\'quoted\\'"]
ANY_VALUE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


def root_of(argument: str) -> Any:
    return read_request([argument], config_name="prepare").values["data.root"]


@pytest.mark.parametrize("value", AS_TYPED)
def test_value__is_taken_as_typed(value: str) -> None:
    assert root_of(f"data.root={value}") == value
    if "," not in value and "*" not in value:
        ((word,),) = grid([f"data.root={value}"])  # of a sweep too
        assert root_of(word) == value


@given(ANY_VALUE)
def test_quoted__is_any_text(value: str) -> None:
    if "${" not in value:
        assert parse_override(quoted(f"data.root={value}")).value() == value


def test_to_type__works_when_pasted_into_a_shell() -> None:
    lines = [f"printf '%s\\0' {to_type(f'data.root={value}')}" for value in [*WITH_COMMAS, *AS_TYPED]]
    shell = shutil.which("bash") or "sh"
    printed = subprocess.run([shell, "-c", "\n".join(lines)], capture_output=True, check=True, encoding="utf-8").stdout
    for argument, value in zip(printed.split("\0")[:-1], [*WITH_COMMAS, *AS_TYPED], strict=True):
        assert root_of(argument) == value


@pytest.mark.parametrize("value", ["a,b", "Meier, A., 2020", "x,y.csv"])
def test_comma__the_message_says_how_to_quote(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_request([f"data.root={value}"], config_name="prepare")
    assert str(caught.value).endswith(f"If the comma belongs to the value, type \"data.root='{value}'\"")
    assert "multirun" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"give one value; several are a sweep, which --multirun starts"):
        read_request([f"data.root={value}"], config_name="train")


def test_sweep__commas_that_are_unclear() -> None:
    with pytest.raises(
        ConfigError, match=r"where the commas belong to one value, type \"data.root='a \(1\),b \(2\)'\""
    ):
        grid(["data.root=a (1),b (2)"])
    assert grid(["data.root='a (1)','b (2)'"]) == [("data.root='a (1)'",), ("data.root='b (2)'",)]


@pytest.mark.parametrize("argument", ["data.root='a", 'data.root="a b', "data root=x", "data.root=x\n=y"])
def test_override__that_is_none(argument: str) -> None:
    with pytest.raises(ConfigError, match="is not understood") as caught:
        read_request([argument], config_name="prepare")
    assert "\n" not in " ".join(str(caught.value).split())


def test_numbers_and_lists__stay_what_they_are() -> None:
    values = read_request(
        ["optim.lr=1e-3", "seed=7", "optim.betas=[0.9,0.99]", "debug=true", "data.max_bad_images=3", "run_dir=null"],
        config_name="train",
    ).values
    assert values == {
        "optim.lr": 1e-3, "seed": 7, "optim.betas": [0.9, 0.99], "debug": True, "data.max_bad_images": 3,
        "run_dir": None,
    }  # fmt: skip


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pictures and captions in a folder with an odd name."""
    folder = tmp_path / "Bilder für (v1) = 50% #1, it's [数据]"
    folder.mkdir()
    rows = []
    for number in range(30):
        Image.new("RGB", (20, 20), (8 * number, 99, 7)).save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "caption": f"picture number {number}"}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


def test_prepare__a_folder_with_an_odd_name(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data=pairs", "data.num_workers=0", "check=true"]
    assert prepare.main([*arguments, f"data.root={pairs}"]) == 0, capsys.readouterr().err
    assert "no problems" in capsys.readouterr().out


def test_prepare__task_as_in_training(pairs: Path, refuses: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data=pairs", "data.num_workers=0", "check=true", f"data.root={pairs}"]
    assert prepare.main([*arguments, "task=retrieval"]) == 0
    capsys.readouterr()
    refuses("mwa-prepare", prepare.main, [*arguments, "task=reasoning"], ["task=reasoning wants labelled statements"])


def test_prepare__what_belongs_to_training(refuses: Any) -> None:
    for argument in ("backbone=beit3_tiny", "adapter.mid_dim=3", "optim.lr=1", "experiment=scenes_mwa"):
        refuses(
            "mwa-prepare", prepare.main, ["data=scenes", argument], [f"{argument}: mwa-prepare looks at data alone"]
        )
    refuses("mwa-prepare", prepare.main, ["task=reasonin"], ["there is no task=reasonin. Did you mean reasoning?"])


def test_scenes__where_the_home_folder_cannot_be_written(monkeypatch: pytest.MonkeyPatch, refuses: Any) -> None:
    for name in ("MWA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    words = ["cannot be written", "data.root=DIR, or the environment variable MWA_CACHE=DIR"]
    refuses("mwa-prepare", prepare.main, ["data=scenes"], words)
