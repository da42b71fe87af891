"""One override of the command line, `key=value`: by Hydra's grammar, or as it was typed where that cannot read it.

Hydra's grammar knows neither blanks before brackets nor `=`, `#` or letters beyond ASCII in a value. Paths have all of
these, and a shell has removed the quotes that somebody put around them.
"""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

_OVERRIDE = re.compile(r"(?P<key>\+{0,2}[\w./@:-]+)=(?P<value>.*)", re.DOTALL)
_BEGINS_QUOTED = ("'", '"')


def parse_override(argument: str, parser: OverridesParser | None = None) -> Override:
    """Read an override; a value that the grammar does not know is text.

    Raises HydraException if it is none, or begins with a quote that does not end.
    """
    parser = parser or OverridesParser.create()
    try:
        return parser.parse_overrides([argument])[0]
    except HydraException:
        found = _OVERRIDE.fullmatch(argument)
        if found is None or found["value"].startswith(_BEGINS_QUOTED) or "\n" in argument:
            raise
        return parser.parse_overrides([quoted(argument)])[0]


def quoted(argument: str) -> str:
    """The same override with its value in quotes, so that Hydra takes it as one text."""
    key, _, value = argument.partition("=")
    # A backslash is one but before a quote, where it has to be doubled.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def to_type(argument: str) -> str:
    """What to type in a shell for an override whose value is to be one text."""
    text = quoted(argument)
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def typed_value(argument: str) -> str:
    """The value as it was typed."""
    return argument.partition("=")[2]
