from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import Job, SweepFolder

JOBS = [Job(0, ("optim.lr=0.001", "name='a, b'")), Job(3, ("seed=2",), {"slurm": "17_1"})]


def test_record__comes_back_as_it_was(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    assert folder.read() == []
    folder.write(JOBS)
    assert folder.read() == JOBS
    folder.note(0, pruned=4)
    assert folder.read() == [Job(0, JOBS[0].overrides, {"pruned": 4}), JOBS[1]]


@pytest.mark.parametrize("text", ["", "jobs: 3", "jobs: {0: {}}", "jobs: {0: 1}", "{", "jobs:\n  - a"])
def test_record__damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "multirun.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"multirun\.yaml cannot be read"):
        SweepFolder(tmp_path).read()


@pytest.mark.parametrize("path", ["/tmp/a b,c=[d", "/tmp/it's", "/tmp/back\\slash'", "/tmp/plain"])
def test_command__names_the_directory_in_hydras_words(path: str) -> None:
    *words, last = SweepFolder(Path(path)).command(JOBS[1])
    assert words == ["seed=2"]
    assert OverridesParser.create().parse_override(last).value() == f"{path}/3"


def test_locked__may_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.write(JOBS)
    with folder.locked(), folder.locked():
        folder.note(3, pruned=1)
    assert folder.read()[1].notes == {"slurm": "17_1", "pruned": 1}
