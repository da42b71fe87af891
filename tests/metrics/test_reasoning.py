"""Accuracy and consistency: hand-made cases, and a brute-force oracle that follows the official script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mwa_lightning.errors import DataError, NotFinite
from mwa_lightning.metrics.reasoning import StatementAccuracy, strictly_right

ROOT = Path(__file__).parents[2]

# Two sentences of two instances each, by the third field of the official identifiers, and one of a single instance.
IDENTIFIERS = ["dev-1-0-0", "dev-1-0-1", "dev-1-1-0", "dev-1-1-1", "dev-2-0-0"]
GROUPS = np.array([0, 1, 0, 1, 2])
LABELS = torch.tensor([1, 0, 0, 1, 1])


def logits_for(answers: list[int], *, classes: int = 2) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float()


def measure(
    logits: Tensor, labels: Tensor, *, groups: np.ndarray | None = None, subsets: dict[str, np.ndarray] | None = None
) -> dict[str, float]:
    metric = StatementAccuracy()
    metric.describe(identifiers=[f"x-{i}" for i in range(len(labels))], groups=groups, subsets=subsets)
    metric.update(logits, labels, torch.arange(len(labels)))
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("answers", "accuracy", "consistency"),
    [
        ([1, 0, 0, 1, 1], 100, 100),
        ([0, 1, 1, 0, 0], 0, 0),
        ([1, 0, 0, 1, 0], 80, 200 / 3),  # the sentence of a single instance fails
        ([0, 0, 0, 1, 1], 80, 200 / 3),
        ([0, 1, 0, 1, 1], 60, 100 / 3),  # both sentences of two instances fail by one
        ([0, 0, 1, 1, 1], 60, 200 / 3),  # one fails by both
    ],
)
def test_figures__by_hand(answers: list[int], accuracy: float, consistency: float) -> None:
    figures = measure(logits_for(answers), LABELS, groups=GROUPS)
    assert figures == pytest.approx({"accuracy": accuracy, "consistency": consistency})


def test_figures__without_groups_and_with_three_classes() -> None:
    figures = measure(logits_for([2, 1, 0, 2], classes=3), torch.tensor([2, 1, 1, 0]))
    assert figures == {"accuracy": 50.0}


def test_figures__subsets() -> None:
    members = {"balanced": np.array([1, 0, 1, 0, 0], dtype=bool), "unbalanced": np.array([0, 1, 0, 1, 1], dtype=bool)}
    members["none"] = np.zeros(5, dtype=bool)
    figures = measure(logits_for([1, 0, 1, 1, 0]), LABELS, groups=GROUPS, subsets=members)
    assert figures == pytest.approx(
        {
            "accuracy": 60,
            "consistency": 100 / 3,
            "balanced/accuracy": 50,
            "balanced/consistency": 0,
            "unbalanced/accuracy": 200 / 3,
            "unbalanced/consistency": 50,
        }
    )


def test_strictly_right__ties_count_against_us() -> None:
    logits = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    assert strictly_right(logits, torch.tensor([0, 1, 1, 1])).tolist() == [False, False, True, False]
    assert measure(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) == {"accuracy": 0.0}


def oracle(logits: np.ndarray, labels: np.ndarray, identifiers: list[str]) -> dict[str, float]:
    """Sample by sample, as the official script, but that a tie is wrong."""
    consistent: dict[str, bool] = {}
    correct = 0
    for row, label, identifier in zip(logits, labels, identifiers, strict=True):
        fields = identifier.split("-")
        fields[2] = ""
        right = all(row[label] > other for place, other in enumerate(row) if place != label)
        correct += right
        consistent["-".join(fields)] = consistent.get("-".join(fields), True) and right
    return {"accuracy": 100 * correct / len(labels), "consistency": 100 * sum(consistent.values()) / len(consistent)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[str]]:
    """Logits on a coarse grid, so that ties are common."""
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = torch.from_numpy(generator.integers(0, 4, (count, classes))).float()
    labels = torch.from_numpy(generator.integers(0, classes, count))
    sets, pairs, sentences = (generator.integers(0, most, count) for most in (3, 4, 2))
    return logits, labels, [f"dev-{a}-{b}-{c}" for a, b, c in zip(sets, pairs, sentences, strict=True)]


@given(case=cases(), data=st.data())
def test_figures__equal_the_oracle_in_any_order_and_with_repeats(
    case: tuple[Tensor, Tensor, list[str]], data: st.DataObject
) -> None:
    logits, labels, identifiers = case
    groups: dict[str, int] = {}
    numbers = [groups.setdefault(f"{a}-{c}", len(groups)) for _, a, _, c in (name.split("-") for name in identifiers)]
    metric = StatementAccuracy(keep=True)
    metric.describe(identifiers=identifiers, groups=np.array(numbers))
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    repeated = torch.cat([order, order[: data.draw(st.integers(0, len(order)))]])
    for part in repeated.split(data.draw(st.integers(1, 8))):
        metric.update(logits[part], labels[part], part)
    figures = {name: value.item() for name, value in metric.compute().items()}
    assert figures == pytest.approx(oracle(logits.numpy(), labels.numpy(), identifiers))
    assert metric.classified is not None
    assert torch.equal(metric.classified.logits, logits)
    assert torch.equal(metric.classified.labels, labels)
    assert torch.equal(metric.classified.sample_index, torch.arange(len(labels)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_compute__not_finite(bad: float) -> None:
    logits = logits_for([1, 0, 0, 1, 1])
    logits[3, 0] = logits[4, 1] = bad
    metric = StatementAccuracy()
    metric.describe(identifiers=IDENTIFIERS)
    metric.update(logits, LABELS, torch.arange(5))
    with pytest.raises(NotFinite, match=r"2 of 5 statements are not finite, the first is dev-1-1-1, sample 3"):
        metric.compute()


def test_compute__nothing() -> None:
    metric = StatementAccuracy()
    with pytest.raises(DataError, match="is the split empty"):
        metric.compute()
    metric.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    with pytest.raises(DataError, match="is the split empty"):
        metric.compute()


def test_compute__half_precision_logits_and_an_empty_update() -> None:
    metric = StatementAccuracy()
    metric.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    metric.update(logits_for([1, 0, 0, 1, 0]).bfloat16(), LABELS, torch.arange(5))
    assert metric.compute()["accuracy"].item() == 80


# The samples of three processes, the middle one without any; number 2 comes twice, as padding does.
SHARES = [[3, 4, 2], [], [0, 2, 1]]

PROCESS = """
import json, sys
import numpy as np, torch
from torch import distributed
from mwa_lightning.metrics.reasoning import StatementAccuracy
rank, store, shares = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(shares))
mine = torch.tensor(shares[rank], dtype=torch.int64)
logits, labels = (torch.tensor(json.loads(text)) for text in sys.argv[4:6])
metric = StatementAccuracy(keep=True)
metric.describe(identifiers=list("abcde"), groups=np.array([0, 1, 0, 1, 2]))
metric.update(logits[mine], labels[mine], mine)
figures = {name: value.item() for name, value in metric.compute().items()}
print(json.dumps([figures, metric.classified.logits.tolist(), metric.classified.sample_index.tolist()]))
distributed.destroy_process_group()
"""


def test_compute__processes_make_up_the_split(tmp_path: Path) -> None:
    logits = [[0.5, 2.0], [1.0, 0.0], [0.0, 3.0], [4.0, 5.0], [0.0, 6.0]]
    given = [str(tmp_path / "store"), json.dumps(SHARES), json.dumps(logits), json.dumps(LABELS.tolist())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), *given], stdout=subprocess.PIPE, env=environment)
        for rank in range(len(SHARES))
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    expected = [{"accuracy": 80.0, "consistency": pytest.approx(200 / 3)}, logits, list(range(5))]
    assert [json.loads(output.splitlines()[-1]) for output in outputs] == [expected] * 3
