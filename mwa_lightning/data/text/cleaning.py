"""What the code of BLIP and of ALBEF does to a text before it is tokenised.

Both write it in small letters, take punctuation out, make one blank of several, and cut it to a number of words. They
differ in the marks: BLIP puts a blank in the place of each of `. ! " ( ) * # : ; ~` and keeps the others; ALBEF leaves
these and `, ' ?` out, puts a blank in the place of `-` and `/`, and writes `<person>` without its brackets.

Sources: salesforce/BLIP, data/utils.py (`pre_caption`), and LAVIS, processors/blip_processors.py
(`BlipCaptionProcessor`), which is also what LAVIS's ALBEF and ModeX use; salesforce/ALBEF, dataset/utils.py
(`pre_caption`). Their limits: 30 words for retrieval and entailment and for ALBEF's NLVR2, 40 for BLIP's NLVR2, 50 in
LAVIS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

CleaningForm = Literal["blip", "albef"]

_BLANKS = re.compile(r"\s{2,}")
_MARKS: dict[CleaningForm, dict[int, str]] = {
    "blip": str.maketrans(dict.fromkeys('.!"()*#:;~', " ")),
    "albef": str.maketrans(dict.fromkeys(",.'!?\"()*#:;~", "") | dict.fromkeys("-/", " ")),
}


class Cleaned(NamedTuple):
    """A text as it is tokenised, and whether words at its end were left out."""

    text: str
    cut: bool


@dataclass(frozen=True)
class TextCleaning:
    """The rule of one of the two codes. `max_words` is the number of words that a text keeps, None for all."""

    form: CleaningForm
    max_words: int | None = None

    def __call__(self, text: str) -> Cleaned:
        """Clean a text; what is left may be empty."""
        marked = text.lower().translate(_MARKS[self.form])
        if self.form == "albef":
            marked = marked.replace("<person>", "person")
        words = _BLANKS.sub(" ", marked).rstrip("\n").strip(" ").split(" ")
        kept = words[: self.max_words]
        return Cleaned(" ".join(kept), len(kept) < len(words))
