"""What the wheel carries, and that its commands work where nothing but it is at hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages__are_all_named() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "mwa_lightning").rglob("__init__.py")}
    named = set(project()["tool"]["setuptools"]["packages"])
    assert named == {".".join(folder.parts) for folder in folders} | {"mwa_lightning.configs"}


def test_dependencies__lightning_excludes_the_malicious_uploads() -> None:
    (lightning,) = (Requirement(each) for each in project()["project"]["dependencies"] if each.startswith("lightning"))
    assert not {"2.6.2", "2.6.3", "2.7.0"} & set(lightning.specifier.filter(["2.6.2", "2.6.3", "2.7.0"]))
    assert {"2.5.0", "2.6.4"} == set(lightning.specifier.filter(["2.4.0", "2.5.0", "2.6.4"]))


def asked() -> set[str]:
    """All requirements with a bound, but for those of the site."""
    extras = project()["project"]["optional-dependencies"]
    return {
        *project()["project"]["dependencies"],
        *extras["slurm"],
        *extras["tune"],
        *extras["tables"],
        *extras["test"],
    } - {"mwa-lightning[slurm,tune,tables]"}


def pinned(file: str) -> dict[str, str]:
    """Names and versions of a file of constraints."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_constraints__satisfy_what_the_package_asks_for() -> None:
    tested = pinned("constraints.txt")
    docs = project()["project"]["optional-dependencies"]["docs"]
    for name, bound in (requirement.partition(",")[0].split(">=") for requirement in (*asked(), *docs)):
        assert Version(tested[name]) >= Version(bound), name


def test_lowest__are_the_oldest_that_the_package_allows() -> None:
    lowest = pinned("lowest.txt")
    assert {name: Version(lowest[name]) for name in (each.partition(">=")[0] for each in asked())} == {
        name: Version(bound) for name, bound in (each.partition(",")[0].split(">=") for each in asked())
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel__installed_into_an_empty_environment(tmp_path: Path) -> None:
    """The commands answer from an empty folder; libraries come from the environment that runs the tests."""
    wheels, environment, empty = tmp_path / "wheels", tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    call([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source_copy(tmp_path / "source"))], cwd=empty)
    (wheel,) = wheels.glob("mwa_lightning-*.whl")
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    call([str(python), *pip[1:], "install", "--no-deps", str(wheel)], cwd=empty)
    libraries = next(path for path in sys.path if Path(path, "omegaconf").is_dir())
    (site,) = environment.glob("lib/python*/site-packages")
    # Packages are found through it; .pth files in it, such as an editable installation's, are not run.
    (site / "libraries.pth").write_text(f"{libraries}\n")
    where = call([str(python), "-c", "import mwa_lightning; print(mwa_lightning.__file__)"], cwd=empty)
    assert Path(where.strip()).is_relative_to(environment)
    for command in ("mwa-train", "mwa-eval", "mwa-prepare", "mwa-tune", "mwa-compare"):
        text = call([str(environment / "bin" / command), "--help"], cwd=empty)
        assert text.startswith(command)
    assert "name: scenes_mwa" in call([str(environment / "bin" / "mwa-train"), "--cfg", "job"], cwd=empty)
    shipped = {path.relative_to(site / "mwa_lightning").as_posix() for path in (site / "mwa_lightning").rglob("*.*")}
    configs = {
        f"configs/{path.relative_to(ROOT / 'configs').as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assets = {path.relative_to(ROOT / "mwa_lightning").as_posix() for path in (ROOT / "mwa_lightning/assets").glob("*")}
    assert (configs | assets) - shipped == set()
    assert list(empty.iterdir()) == []


def source_copy(to: Path) -> Path:
    """What a wheel is built from, so that building leaves nothing in the checkout."""
    to.mkdir()
    for part in ("mwa_lightning", "configs"):
        shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("LICENSE*")):
        shutil.copy(file, to)
    return to


def call(command: list[str], *, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
