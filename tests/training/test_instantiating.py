"""Classes from elsewhere: one line says what is wrong with them, or with their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.errors import ConfigError
from mwa_lightning.training.instantiating import instantiate

OWN = """
from pathlib import Path
from typing import Annotated, Literal, Sequence
from annotated_types import Gt
from mwa_lightning.adapters.base import AdapterMethod

class Good(AdapterMethod):
    def __init__(self, *, width: int = 3, rate: Annotated[float, Gt(0)] = 0.1, kind: Literal["a", "b"] = "a",
                 names: Sequence[str] | None = None, on: bool = False, file: Path | None = None, size: int | None = 1):
        super().__init__()
        self.options = (width, rate, kind, names, on, file, size)
    def place(self, backbone, heads, streams):
        pass

class Needy(Good):
    def __init__(self, *, rank: int):
        super().__init__()
        if rank > 4:
            raise ValueError("rank is too high")

class Unfinished(AdapterMethod):
    pass

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in the current folder, one of them by the name of an installed one."""
    (tmp_path / "own_adapters.py").write_text(OWN)
    (tmp_path / "broken_adapters.py").write_text("import json\n\nnothing_of_this_name\n")
    (tmp_path / "half_adapters.py").write_text("class A(\n")
    (tmp_path / "needing_adapters.py").write_text("import no_such_library\n")
    (tmp_path / "yaml.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name in ("own_adapters", "broken_adapters"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def made(target: str, **options: Any) -> Any:
    node = OmegaConf.create({"_target_": target, "checkpoint": None, **options})
    return instantiate(node, group="adapter", base=AdapterMethod)


def test_instantiate__takes_what_the_hints_allow(tmp_path: Path) -> None:
    assert made("own_adapters.Good").options == (3, 0.1, "a", None, False, None, 1)
    good = made("own_adapters.Good", width=5, rate=1, kind="b", names=["x"], on=True, file="/a", size=None)
    assert good.options == (5, 1.0, "b", ["x"], True, Path("/a"), None)
    assert sys.path[-1] == str(tmp_path)


WRONG = [
    ("own_adapters.Good", {"widht": 3}, "adapter.widht: Good has no such option. Did you mean adapter.width? It has"),
    ("own_adapters.Good", {"width": 1.5}, "adapter.width=1.5: should be a valid integer"),
    ("own_adapters.Good", {"width": True}, "adapter.width=true: should be a valid integer"),
    ("own_adapters.Good", {"width": None}, "adapter.width=null: should be a valid integer"),
    ("own_adapters.Good", {"rate": "fast"}, "adapter.rate=fast: should be a valid number"),
    ("own_adapters.Good", {"rate": 0}, "adapter.rate=0: should be greater than 0, by the type hints of Good"),
    ("own_adapters.Good", {"kind": "c"}, "adapter.kind=c: should be 'a' or 'b'"),
    ("own_adapters.Good", {"on": 1}, "adapter.on=1: should be a valid boolean"),
    ("own_adapters.Good", {"names": ["x", 1]}, "adapter.names.1="),
    ("own_adapters.Needy", {}, "adapter.rank: Needy needs it"),
    (
        "own_adapters.Needy",
        {"rank": 5},
        "made: {here}/own_adapters.py, line 19: ValueError: rank is too high",
    ),
    ("own_adapters.Other", {}, "is no AdapterMethod; derive the class from mwa_lightning.adapters.base.AdapterMethod"),
    ("own_adapters.Unfinished", {}, "adapter._target_=own_adapters.Unfinished: lacks place"),
    ("own_adapters.Goood", {}, "own_adapters ({here}/own_adapters.py) has no Goood. Did you mean Good?"),
    ("broken_adapters.A", {}, "broken_adapters cannot be imported: {here}/broken_adapters.py, line 3: NameError: name"),
    ("half_adapters.A", {}, "half_adapters.py, line 1: SyntaxError"),
    ("needing_adapters.A", {}, "needing_adapters.py, line 1: ModuleNotFoundError: No module named 'no_such_library'"),
    ("no_such_adapters.A", {}, "there is no module no_such_adapters; start the command in the folder that holds it"),
    ("Good", {}, "adapter._target_=Good: write it as MODULE.CLASS"),
]


@pytest.mark.parametrize(("target", "options", "said"), WRONG, ids=[said[:60] for _, _, said in WRONG])
def test_instantiate__says_what_is_wrong(target: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        made(target, **options)
    assert said.format(here=tmp_path) in str(caught.value)
