"""Judges the steps of a run: has it collapsed, is a part of it dead, does it diverge, does it learn nothing?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

from mwa_lightning.training.watching.step_signs import Step

# Steps that are kept: the first ones, and the last ones.
START, WINDOW = 3, 50
# Fewer of the last ones tell nothing; a quarter of them stands for how it is now.
_ENOUGH, _QUARTER = 20, 4

# Of a spread: what counts as none, also as a share of that at the start.
_NO_SPREAD = 0.1
# Of a gradient, as a share of that at the start: what is as good as zero.
_NO_GRADIENT = 1e-8
# Of a loss, as shares of that of knowing nothing.
_NO_BETTER, _WORSE, _LEARNS = 0.98, 1.1, 0.9
# Steps at full learning rate after which a run ought to have learned something.
_PATIENCE = 150

Kind = Literal["collapsed", "dead", "diverging", "stuck"]
T = TypeVar("T")


class Finding(NamedTuple):
    """What is wrong with a run, and the numbers that show it.

    Attributes:
        kind: `collapsed`: all samples look alike; `dead`: gradients are zero; `diverging`: the loss has grown
            beyond that of knowing nothing; `stuck`: it stays there.
        of: What looks alike, the part of the model that is dead, or the part of the loss.
        since: The step from which on it is so.
        spread: Of what looks alike, now; NaN where it is not about this.
        spread_at_start: The largest of the first steps.
        loss: Now.
        loss_at_start: In the first step, before anything has trained.
        knowing_nothing: The loss of knowing nothing.
    """

    kind: Kind
    of: str
    since: int
    spread: float
    spread_at_start: float
    loss: float
    loss_at_start: float
    knowing_nothing: float


def judge(steps: Sequence[Step], *, warm_from: int) -> Finding | None:
    """What is wrong at the last of these steps, if anything; the worst first.

    Args:
        steps: The first ones of the run, then the last ones, as `kept` gives them.
        warm_from: The step from which on the learning rate has not risen.
    """
    if len(steps) < START + _ENOUGH:
        return None
    for search in (_diverging, _collapsed, _dead, _stuck):
        finding = search(steps, warm_from)
        if finding is not None:
            return finding
    return None


def is_over(finding: Finding, steps: Sequence[Step]) -> bool:
    """Whether a run has come out of it: it is better than knowing nothing, clearly."""
    if finding.kind == "dead":
        norms = _gradients(steps)[finding.of]
        return all(norm > _NO_GRADIENT * _start(norms) for norm in _last(norms))
    return all(_now(losses) < _LEARNS * _nothing(steps, part) for part, losses in _losses(steps).items())


def kept(steps: Sequence[Step]) -> list[Step]:
    """Of all steps so far, those that are needed to judge the last."""
    return [*steps[:START], *steps[START:][-WINDOW:]]


def figures(steps: Sequence[Step], finding: Finding | None) -> dict[str, float]:
    """`train/spread` (the least), `train/gradient_norm` and `train/loss_of_knowing_nothing`, of the last steps.

    Where something is wrong, `train/<what>_at_step` says since when.
    """
    if not steps:
        return {}
    spreads = [_now(spreads) for spreads in _spreads(steps).values()]
    found = {
        "train/gradient_norm": _now([math.hypot(*step.gradients.values()) for step in steps]),
        "train/loss_of_knowing_nothing": sum(_nothing(steps, part) for part in steps[-1].losses),
    }
    known = [spread for spread in spreads if not math.isnan(spread)]
    if known:
        found["train/spread"] = min(known)
    if finding is not None:
        found[f"train/{finding.kind}_at_step"] = float(finding.since)
    return found


def described(finding: Finding) -> str:
    """What is wrong, in words and numbers."""
    loss, since = f"{finding.loss:.2f}", f"since about step {finding.since}"
    nothing = f"that of knowing nothing is {finding.knowing_nothing:.2f}"
    if finding.kind == "collapsed":
        whose, alike = ("embeddings", f"all {finding.of} look the same to the model")
        if finding.of == "statements":
            whose, alike = ("answers", "the model says the same of all statements")
        spread = f"spread {finding.spread:.2f}, at the start {finding.spread_at_start:.2f}"
        return f"the {whose} have collapsed: {alike} {since} ({spread}; loss {loss}, {nothing})"
    if finding.kind == "dead":
        return f"nothing trains in {finding.of}: its gradients are zero {since}"
    if finding.kind == "diverging":
        return f"the run diverges: loss {loss} {since}, {finding.loss_at_start:.2f} at the start, {nothing}"
    return f"the run learns nothing: loss {loss}, {nothing}, and it has not fallen since step {finding.since}"


def _diverging(steps: Sequence[Step], warm_from: int) -> Finding | None:
    """A loss beyond that of knowing nothing, beyond its start, and not on its way back."""
    for part, losses in _losses(steps).items():
        limit = _WORSE * max(losses[0], _nothing(steps, part))
        now, before = _now(losses), fmean(losses[START : -len(_last(steps))])
        if limit > 0 and now > limit and (now >= before or now > 2 * limit):
            return _finding("diverging", part, part, steps, [loss > limit for loss in losses])
    return None


def _dead(steps: Sequence[Step], warm_from: int) -> Finding | None:
    """A part of the model without any gradient, where it is not because all is learned."""
    part, losses = next(iter(_losses(steps).items()))
    learned = _now(losses) < _nothing(steps, part) / 2
    zero = {name: [norm <= _NO_GRADIENT * _start(norms) for norm in norms] for name, norms in _gradients(steps).items()}
    dead = [name for name, flags in zero.items() if all(_last(flags))]
    if not dead or (learned and len(dead) == len(zero)):
        return None
    return _finding("dead", dead[0], part, steps, zero[dead[0]])


def _collapsed(steps: Sequence[Step], warm_from: int) -> Finding | None:
    """No spread where there was some, and a loss of one who does not look."""
    part, losses = next(iter(_losses(steps).items()))
    nothing = _nothing(steps, part)
    if nothing <= 0 or _now(losses) < _NO_BETTER * nothing:
        return None
    none = {
        name: [spread < _NO_SPREAD * min(1.0, max(spreads[:START])) for spread in spreads]
        for name, spreads in _spreads(steps).items()
    }
    alike = [name for name, flags in none.items() if all(_last(flags))]
    return _finding("collapsed", alike[0], part, steps, none[alike[0]]) if alike else None


def _stuck(steps: Sequence[Step], warm_from: int) -> Finding | None:
    """A loss of one who does not look, long after the warm-up, that does not fall."""
    if steps[-1].number - warm_from < _PATIENCE or len(steps) < START + WINDOW:
        return None
    for part, losses in _losses(steps).items():
        nothing, whole = _nothing(steps, part), fmean(losses[START:])
        if nothing > 0 and whole >= _NO_BETTER * nothing and _now(losses) >= _NO_BETTER * whole:
            return _finding("stuck", part, part, steps, [True] * len(steps))
    return None


def _finding(kind: Kind, of: str, part: str, steps: Sequence[Step], holds: Sequence[bool]) -> Finding:
    """A finding that holds for the last steps; the first of these tells since when."""
    whole = len(steps) < START + WINDOW  # else steps are left out behind the first ones
    since = steps[-1].number
    for place in reversed(range(0 if whole else START, len(steps))):
        if not holds[place]:
            break
        since = steps[place].number
    spreads, losses = _spreads(steps).get(of, [math.nan]), _losses(steps)[part]
    return Finding(
        kind=kind,
        of=of,
        since=since,
        spread=_now(spreads),
        spread_at_start=max(spreads[:START]),
        loss=_now(losses),
        loss_at_start=losses[0],
        knowing_nothing=_nothing(steps, part),
    )


def _losses(steps: Sequence[Step]) -> Mapping[str, list[float]]:
    """By part of the loss, step by step."""
    return {part: [step.losses[part] for step in steps] for part in steps[-1].losses}


def _gradients(steps: Sequence[Step]) -> Mapping[str, list[float]]:
    """By part of the model, step by step."""
    return {name: [step.gradients.get(name, 0.0) for step in steps] for name in steps[-1].gradients}


def _spreads(steps: Sequence[Step]) -> Mapping[str, list[float]]:
    """By what would look alike, step by step."""
    return {name: [step.spreads[name] for step in steps] for name in steps[-1].spreads}


def _nothing(steps: Sequence[Step], part: str) -> float:
    """The loss of knowing nothing, now."""
    return _now([step.knowing_nothing[part] for step in steps])


def _last(each: Sequence[T]) -> Sequence[T]:
    """The last quarter of what there is of each step, the first ones apart."""
    return each[-max(1, (len(each) - START) // _QUARTER) :]


def _now(numbers: Sequence[float]) -> float:
    return fmean(_last(numbers))


def _start(norms: Sequence[float]) -> float:
    """Of gradients: where up-projections begin as zeros, the first step alone has none."""
    return fmean(norms[:START])
