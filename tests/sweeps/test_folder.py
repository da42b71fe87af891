from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"jobs: 3",
        b"jobs: {0: {}}",
        b"jobs: {0: 1}",
        b"{",
        b"jobs:\n  - a",
        b"\xff\xfe\x80",
        b"jobs: {0: {overrides: seed=1}}",
        b"jobs: {0: {overrides: [1, 2]}}",
        b"jobs: {0: {overrides: {seed: 1}}}",
        b"jobs: {0: {overrides: null}}",
    ],
)
def test_record__damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "multirun.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"multirun\.yaml cannot be read"):
        SweepFolder(tmp_path).read()


def test_record__on_a_disk_that_does_not_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*unused: object) -> str:
        raise OSError(5, "Input/output error")

    (tmp_path / "multirun.yaml").touch()
    monkeypatch.setattr(Path, "read_text", fail)
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


def test_read__of_a_folder_whose_first_record_was_cut_short(tmp_path: Path) -> None:
    """What the lock of the killed start knows as its own does not count, and the next start clears it away."""
    token = "0123456789abcdef"
    (tmp_path / ".lock").write_text(json.dumps({"token": token}))
    (tmp_path / f".multirun.yaml.{token}").touch()
    folder = SweepFolder(tmp_path)
    assert folder.read() == []
    letter = tmp_path / ".multirun.yaml.17"
    letter.touch()
    with pytest.raises(ConfigError, match=r"has files but no multirun\.yaml"):
        folder.read()
    folder.write(JOBS)
    with folder.locked():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", letter.name, "multirun.yaml"]
