"""--config-dir, --config-name and hydra.searchpath=: what Hydra finds there is chosen, listed and proposed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mwa_lightning.cli import evaluate, train
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.cli.config.search_path import OURS, current, search_path_of, using
from mwa_lightning.cli.config.trusted import targets_of
from tests.cli.conftest import Refuses

MINE = "_target_: my_module.MyAdapter\nwidth: 3\nkind: wide\n"


PLAIN = "mwa_beit3_tiny_scenes"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder with an adapter of somebody's own."""
    return with_file(tmp_path / "my configs", "adapter/mine.yaml", MINE)


def with_file(folder: Path, name: str, content: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


def composed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert train.main([*words, "--cfg", "job"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("form", ["--config-dir {}", "-cd {}", "--config-dir={}", "hydra.searchpath=['file://{}']"])
def test_config_dir__its_choice_composes(form: str, configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.format(configs) for word in form.split(" ")]
    config = composed(capsys, *words, "adapter=mine", "adapter.width=5")
    assert config["adapter"] == {"_target_": "my_module.MyAdapter", "width": 5, "kind": "wide", "checkpoint": None}
    assert config["name"] == "mine_beit3_tiny_scenes"
    assert config["hydra"] == {"searchpath": [str(configs)]}
    assert current() is OURS


def test_config_dir__relative_to_the_current_folder(
    configs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(configs.parent)
    assert composed(capsys, "--config-dir", "my configs", "adapter=mine")["hydra"]["searchpath"] == [str(configs)]


def test_search_path__packages_and_folders(
    configs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package in the current folder is found."""
    home = with_file(configs.parent / "home", "their_configs/data/theirs.yaml", "_target_: theirs.Data\n")
    (home / "their_configs" / "__init__.py").touch()
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = [f"--config-dir={configs}", 'hydra.searchpath=["pkg://their_configs"]']
    search = search_path_of([configs], ["pkg://their_configs"])
    assert search.words() == words
    with using(search):
        assert "mine" in group_options("adapter")
        assert "theirs" in group_options("data")
        assert targets_of("adapter")["my_module.MyAdapter"] == "mine"
    assert "mine" not in group_options("adapter")
    assert sys.path[-1] == str(home)


def test_config_name__a_primary_config_that_lists_ours(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = with_file(configs.parent / "other", "data/further.yaml", "_target_: theirs.Data\n")
    primary = (
        f"defaults:\n  - train\n  - override adapter: mine\n  - _self_\nseed: 7\nhydra:\n  searchpath: ['{other}']\n"
    )
    with_file(configs, "project.yaml", primary)
    config = composed(capsys, "--config-dir", str(configs), "--config-name", "project", "trainer.max_steps=3")
    assert (config["seed"], config["adapter"]["width"], config["trainer"]["max_steps"]) == (7, 3, 3)
    assert config["hydra"] == {"searchpath": [str(configs), str(other)]}
    assert composed(capsys, "-cd", str(configs), "-cn", "project.yaml", "adapter=mwa")["adapter"]["mid_dim"] == 64


def test_config_name__that_lacks_a_part(configs: Path, refuses: Refuses) -> None:
    with_file(configs, "poor.yaml", "defaults:\n  - adapter: mine\n")
    words = ["--config-dir", str(configs), "--config-name", "poor"]
    refuses("mwa-train", train.main, words, ["poor: has no backbone; name train in its list of defaults"])


def test_help_and_messages__name_what_is_found(
    configs: Path, capsys: pytest.CaptureFixture[str], refuses: Refuses
) -> None:
    assert train.main(["--config-dir", str(configs), "--help"]) == 0
    assert "  adapter    full, head_only, mine, modex, mwa (default), none" in capsys.readouterr().out
    words = ["there is no adapter=mime. Did you mean mine?", "full, head_only, mine, modex, mwa, none"]
    refuses("mwa-train", train.main, ["--config-dir", str(configs), "adapter=mime"], words)
    refuses(
        "mwa-train", train.main, ["adapter=mine"], ["there is no adapter=mine.", "full, head_only, modex, mwa, none"]
    )


def test_config_dir__an_option_that_is_none_of_its_own(configs: Path, refuses: Refuses) -> None:
    words = ["--config-dir", str(configs), "adapter=mine", "adapter.widht=3"]
    refuses("mwa-train", train.main, words, ["there is no key 'adapter.widht'", "Did you mean adapter.width?"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapters/mine.yaml", MINE, "holds no group of configs, such as adapter/NAME.yaml"),
        ("adapters/mine.yaml", MINE, "it has adapters. Did you mean adapter?"),
        ("adapter/mwa.yaml", MINE, "its adapter/mwa.yaml would not be found"),
    ],
)
def test_config_dir__that_cannot_be_used(name: str, content: str, said: str, tmp_path: Path, refuses: Refuses) -> None:
    folder = with_file(tmp_path, name, content)
    refuses("mwa-train", train.main, ["--config-dir", str(folder)], [f"--config-dir={folder}", said])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("width: 3\n", "adapter=broken: its file names no class; write _target_: MODULE.CLASS"),
        ("", "adapter=broken: its file names no class"),
        ("_target_: a.B\n  width: 3\n", "adapter=broken: mapping values are not allowed here"),
        ("_target_: a.B\nwidth: ${nowhere}\n", "the ${...} of adapter.width cannot be resolved"),
        ("_target_: a.B\nwidth: ???\n", "adapter.width=???: stands for a value that is still missing"),
    ],
)
def test_config_dir__a_file_that_is_no_part(content: str, said: str, tmp_path: Path, refuses: Refuses) -> None:
    folder = with_file(tmp_path, "adapter/broken.yaml", content)
    refuses("mwa-train", train.main, ["--config-dir", str(folder), "adapter=broken"], [said])


def test_keys__added_forced_and_removed(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-dir", str(configs), "adapter=mine", "+adapter.depth=2", "++adapter.width=4", "++adapter.new=[1]"]
    config = composed(capsys, *words, "~adapter.kind", "+notes.of=me", "run_dir=${notes.of}")
    assert config["adapter"] == {
        "_target_": "my_module.MyAdapter", "width": 4, "depth": 2, "new": [1], "checkpoint": None,
    }  # fmt: skip
    assert config["notes"] == {"of": "me"}
    assert Path(config["run_dir"]).name == "me"
    assert composed(capsys, "~experiment")["name"] == composed(capsys, "experiment=null")["name"] == PLAIN
    assert composed(capsys, "adapter=mwa", "+adapter@further=full")["further"]["checkpoint"] is None
    assert composed(capsys, "adapter=mwa", "+recipe=mwa_coco")["optim"]["warmup_epochs"] == 3


def test_info__as_hydra_prints_it(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    assert train.main(["--config-dir", str(configs), "--info", "searchpath"]) == 0
    assert logging.getLogger().handlers == handlers
    assert f"| command-line | file://{configs}" in capsys.readouterr().out
    assert train.main(["--config-dir", str(configs), "adapter=mine", "--info", "defaults"]) == 0
    assert "| adapter/mine" in capsys.readouterr().out
    assert train.main(["--info", "config", "data.root=my data (v1)"]) == 0
    assert "root: my data (v1)" in capsys.readouterr().out
    assert train.main(["--info=defaults"]) == 0
    assert "| experiment/scenes_mwa" in capsys.readouterr().out


def test_evaluate__composes_along_the_path(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["-cd", str(configs), "adapter=mine", "--cfg", "job", "--resolve"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["adapter"]["kind"] == "wide"
