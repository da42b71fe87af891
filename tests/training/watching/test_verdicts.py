"""Each way of not learning, and what looks like one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from mwa_lightning.training.watching.step_signs import Step
from mwa_lightning.training.watching.verdicts import Finding, described, figures, is_over, judge, kept

NOTHING = math.log(64)


def course(
    losses: Sequence[float],
    *,
    images: Sequence[float] | float = 0.8,
    texts: float = 0.8,
    adapter: float = 1.0,
    heads: float = 1.0,
    nothing: float = NOTHING,
) -> list[Step]:
    """So many steps."""
    spreads = [images] * len(losses) if isinstance(images, float) else images
    return [
        Step(
            number,
            {"contrast": loss},
            {"contrast": nothing},
            {"images": spread, "texts": texts},
            {"adapter": adapter, "heads": heads},
        )
        for number, (loss, spread) in enumerate(zip(losses, spreads, strict=True))
    ]


def found(steps: list[Step], *, warm_from: int = 0) -> Finding | None:
    return judge(kept(steps), warm_from=warm_from)


FALLING = [NOTHING * (1 - number / 100) for number in range(60)]
# As measured with the pretrained scale on images of another kind.
FALLEN = [0.73, 0.70, 0.6, 0.5, 0.4, 0.3, 0.23, 0.2, 0.16, 0.13, 0.1, 0.09, 0.08] + [0.05] * 27
AS_FALLEN = [10.6, 9.0, 7.0, 5.3, 4.8, 4.4, 4.2] + [NOTHING] * 33


def test_judge__healthy() -> None:
    assert found(course(FALLING)) is None
    # Far above knowing nothing at first, and on its way down.
    assert found(course([19.5 - number / 5 for number in range(50)])) is None
    # A plateau before it learns, in a long warm-up or shortly after.
    assert found(course([NOTHING] * 400), warm_from=300) is None
    # So little at the start that no less can be told: captions of a batch that are equal, a fresh head.
    assert found(course([NOTHING] * 100, texts=0.0)) is None


def test_judge__too_few_steps() -> None:
    assert found(course([NOTHING] * 22, images=[0.8] * 3 + [0.0] * 19)) is None
    assert found(course([NOTHING] * 23, images=[0.8] * 3 + [0.0] * 20)) is not None


def test_judge__collapsed() -> None:
    finding = found(course(AS_FALLEN, images=FALLEN))
    assert finding is not None
    assert described(finding) == (
        "the embeddings have collapsed: all images look the same to the model since about step 13 (spread 0.05, at the "
        "start 0.73; loss 4.16, that of knowing nothing is 4.16)"
    )
    assert figures(course(AS_FALLEN, images=FALLEN), finding)["train/collapsed_at_step"] == 13
    # All embeddings lie near each other, and yet tell what belongs together.
    assert found(course([loss - 1 for loss in AS_FALLEN], images=FALLEN)) is None


def test_judge__collapsed_statements() -> None:
    steps = [
        Step(number, {"classes": 0.69}, {"classes": 0.69}, {"statements": 0.5 if number < 9 else 0.001}, {"heads": 1.0})
        for number in range(30)
    ]
    finding = found(steps)
    assert finding is not None
    assert described(finding) == (
        "the answers have collapsed: the model says the same of all statements since about step 9 (spread 0.00, at the "
        "start 0.50; loss 0.69, that of knowing nothing is 0.69)"
    )


@pytest.mark.parametrize(
    ("adapter", "heads", "of"), [(0.0, 1.0, "adapter"), (0.0, 0.0, "adapter"), (1.0, 0.0, "heads")]
)
def test_judge__dead(adapter: float, heads: float, of: str) -> None:
    finding = found(course([NOTHING] * 30, adapter=adapter, heads=heads))
    assert finding is not None
    assert described(finding) == f"nothing trains in {of}: its gradients are zero since about step 0"
    assert not is_over(finding, course([NOTHING] * 30, adapter=adapter, heads=heads))
    assert is_over(finding, course([NOTHING] * 30))


def test_judge__dead_from_a_step_on() -> None:
    """A step that was too long has thrown the weights where nothing flows any more."""
    steps = course([NOTHING] * 30)
    steps = [*steps[:12], *(step._replace(gradients={"adapter": 1e-20, "heads": 0.0}) for step in steps[12:])]
    finding = found(steps)
    assert finding is not None
    assert described(finding) == "nothing trains in adapter: its gradients are zero since about step 12"


def test_judge__since_when_with_steps_that_were_skipped() -> None:
    """Steps that were not finite are left out; of those that are not kept nothing is said."""
    steps = course([NOTHING] * 200, adapter=0.0)
    skipped = [step for step in steps[:30] if step.number not in (1, 2, 9, 20)]
    for given, since in ((skipped, 0), (steps, 150)):
        finding = found(given)
        assert finding is not None
        assert (finding.kind, finding.since) == ("dead", since)


def test_judge__collapsed_in_the_first_step() -> None:
    finding = found(course([NOTHING] * 30, images=[0.8, 0.05, 0.01, *([0.04] * 27)]))
    assert finding is not None
    assert (finding.kind, finding.since, finding.spread_at_start) == ("collapsed", 1, 0.8)


def test_judge__gradients_of_zero_where_all_is_learned() -> None:
    assert found(course([0.0] * 30, adapter=0.0, heads=0.0)) is None


def test_judge__nothing_to_tell_apart() -> None:
    """A batch of one pair, or training labels of one class."""
    finding = found(course([0.0] * 30, images=math.nan, texts=math.nan, nothing=0.0, adapter=0.0, heads=0.0))
    assert finding is not None
    assert finding.kind == "dead"
    assert found(course([0.001] * 300, nothing=0.0)) is None
    assert "train/spread" not in figures(course([0.0] * 30, images=math.nan, texts=math.nan), None)


def test_judge__diverging() -> None:
    finding = found(course([3.5, 3.6, 3.4, *(5 + number / 2 for number in range(27))]))
    assert finding is not None
    assert described(finding) == (
        "the run diverges: loss 16.75 since about step 3, 3.50 at the start, that of knowing nothing is 4.16"
    )
    # A step that was far too long spoils the next two as well, which tell nothing of the start.
    finding = found(course([3.5, 90.0, 60.0, *([8.0] * 27)]))
    assert finding is not None
    assert (finding.kind, finding.since, finding.loss_at_start) == ("diverging", 1, 3.5)
    # High, and on its way down.
    assert found(course([3.5, 3.6, 3.4, *(8 - number / 10 for number in range(27))])) is None
    # So far above that a little less is no way down.
    assert found(course([3.5, 3.6, 3.4, *(30 - number / 10 for number in range(27))])) is not None


def test_judge__stuck() -> None:
    finding = found(course([NOTHING] * 200))
    assert finding is not None
    assert described(finding) == (
        "the run learns nothing: loss 4.16, that of knowing nothing is 4.16, and it has not fallen since step 150"
    )
    assert found(course([NOTHING] * 200), warm_from=60) is None


def test_is_over__once_it_is_better_than_knowing_nothing() -> None:
    finding = found(course(AS_FALLEN, images=FALLEN))
    assert finding is not None
    assert not is_over(finding, course([NOTHING * 0.95] * 60))
    assert is_over(finding, course([NOTHING * 0.85] * 60))


def test_kept__enough_to_judge_the_last() -> None:
    steps = course(FALLING * 3)
    assert [step.number for step in kept(steps)] == [0, 1, 2, *range(130, 180)]
    assert kept([*kept(steps[:100]), *steps[100:]]) == kept(steps)


def test_figures__of_the_last_steps() -> None:
    assert figures([], None) == {}
    assert figures(course([4.0] * 30, images=0.5, adapter=3.0, heads=4.0), None) == pytest.approx(
        {"train/spread": 0.5, "train/gradient_norm": 5.0, "train/loss_of_knowing_nothing": NOTHING}
    )
