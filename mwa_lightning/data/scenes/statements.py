"""Statements about two pictures of `scenes`, in groups in which nothing but looking tells true from false."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mwa_lightning.data.scenes.grammar import (
    WORDINGS,
    Scene,
    Thing,
    Wording,
    choose,
    phrase,
    relations_between,
    sample_scene,
)

Pair = tuple[Scene, Scene]

# How often each kind of claim is tried first. A group that it cannot tell apart gets another.
_CLAIMS = {"side": 0.25, "both": 0.15, "one": 0.25, "relation": 0.25, "count": 0.1}
_TRIES = 20  # sets of things tried for a claim before another is drawn
_SWAPPED = 0.2  # share of the groups whose pairs differ in nothing but the side; only these need it
_NUMBERS = {2: "two", 3: "three"}

# {a} and {b}: things with their articles; {relation}: of a to b; {number}: how many things.
SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "source": {
        "side": ("There is {a} in the {side} picture.", "The {side} picture contains {a}."),
        "both": ("There is {a} in both pictures.", "Both pictures contain {a}."),
        "one": ("Exactly one picture contains {a}.", "There is {a} in only one picture."),
        "relation": ("In the {side} picture {a} is {relation} {b}.",),
        "count": ("The {side} picture contains {number} shapes.",),
    },
    "target": {
        "side": ("One can find {a} in the {side} drawing.", "The {side} drawing shows {a}."),
        "both": ("Somebody painted {a} in each drawing.", "Each drawing shows {a}."),
        "one": ("Just one drawing shows {a}.", "Somebody painted {a} in a single drawing."),
        "relation": ("In the {side} drawing {a} sits {relation} {b}.",),
        "count": ("One can find {number} figures in the {side} drawing.",),
    },
}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim about two pictures. `things` are told by colour and shape, and by size where `sized`."""

    claim: str
    side: int
    things: tuple[Thing, ...]
    sized: bool
    relation: str
    number: int

    def holds(self, pair: Pair) -> bool:
        """Whether the claim is true of these pictures."""
        if self.claim in ("side", "both", "one"):
            present = [any(self._is(thing, self.things[0]) for thing in scene.things) for scene in pair]
            return {"side": present[self.side], "both": all(present), "one": sum(present) == 1}[self.claim]
        if self.claim == "relation":
            first, second = self.things
            return any(
                self._is(a, first) and self._is(b, second) and self.relation in relations_between(a, b)
                for a in pair[self.side].things
                for b in pair[self.side].things
            )
        if self.claim == "count":
            return len(pair[self.side].things) == self.number
        return sum(len(scene.things) for scene in pair) == self.number

    def _is(self, thing: Thing, wanted: Thing) -> bool:
        return thing.kind == wanted.kind and (not self.sized or thing.size == wanted.size)


def claim_of(sentence: str) -> str:
    """The kind of claim that a written sentence makes. Raises KeyError if it is none of ours."""
    numbers = "|".join(_NUMBERS.values())
    # Claims with a number first: what is counted reads like a thing.
    ordered = sorted(_CLAIMS, key=lambda claim: claim not in ("count", "relation"))
    for claim in ordered:
        for sentences in SENTENCES.values():
            for template in sentences[claim]:
                pattern = (
                    re.escape(template).replace(r"\{number\}", f"({numbers})").replace(r"\{side\}", "(left|right)")
                )
                if re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", pattern), sentence, flags=re.IGNORECASE):
                    return claim
    raise KeyError(sentence)


def sample_statement_group(*, domain: str, generator: np.random.Generator) -> tuple[tuple[Pair, Pair], tuple[str, str]]:
    """Two pairs of pictures and two sentences: sentence i is true of pair i and false of the other.

    The second pair is the first with its sides swapped, or with one picture replaced.
    """
    first = (sample_scene(generator), sample_scene(generator))
    if generator.random() < _SWAPPED:
        second = (first[1], first[0])
    elif generator.random() < 0.5:
        second = (first[0], sample_scene(generator))
    else:
        second = (sample_scene(generator), first[1])
    sentences = tuple(
        _write(_sample_statement(true_of, false_of, generator), domain=domain, generator=generator)
        for true_of, false_of in ((first, second), (second, first))
    )
    return (first, second), (sentences[0], sentences[1])


def _sample_statement(true_of: Pair, false_of: Pair, generator: np.random.Generator) -> Statement:
    while True:
        claim = str(generator.choice(list(_CLAIMS), p=list(_CLAIMS.values())))
        for _ in range(_TRIES):
            statement = _propose(claim, true_of, false_of, generator)
            if statement.holds(true_of) and not statement.holds(false_of):
                return statement


def _propose(claim: str, true_of: Pair, false_of: Pair, generator: np.random.Generator) -> Statement:
    side = int(generator.integers(2))
    if claim == "relation":
        things = true_of[side].things
        order = generator.permutation(len(things))[:2]
        chosen = tuple(things[index] for index in order)
        relation = choose(generator, relations_between(*chosen))
    else:
        # A thing of either pair: a statement may be true because something is not there.
        chosen = (choose(generator, [thing for scene in (*true_of, *false_of) for thing in scene.things]),)
        relation = ""
    return Statement(
        claim=claim,
        side=side,
        things=chosen,
        sized=bool(generator.random() < 0.3),
        relation=relation,
        number=len(true_of[side].things),
    )


def _write(statement: Statement, *, domain: str, generator: np.random.Generator) -> str:
    wording: Wording = WORDINGS[domain]
    phrases = [
        phrase(thing, wording=wording, generator=generator, with_size=statement.sized) for thing in statement.things
    ]
    relation = choose(generator, wording.relations[statement.relation]) if statement.relation else ""
    text = choose(generator, SENTENCES[domain][statement.claim]).format(
        a=phrases[0],
        b=phrases[-1],
        side=("left", "right")[statement.side],
        relation=relation,
        number=_NUMBERS[statement.number],
    )
    return text[0].upper() + text[1:]
