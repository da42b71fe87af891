"""One override of the command line, `key=value`: by Hydra's grammar, or as it was typed where that cannot read it.

Hydra's grammar knows neither blanks before brackets nor `=`, `#` or letters beyond ASCII in a value. Paths have all of
these, and a shell has removed the quotes that somebody put around them.
"""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mwa_lightning.system.shell_words import quoted

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


def typed_value(argument: str) -> str:
    """The value as it was typed."""
    return argument.partition("=")[2]
