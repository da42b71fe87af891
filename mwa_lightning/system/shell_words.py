"""What to type in a shell for an override of the command line, for messages."""

from __future__ import annotations

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z0-9_./~-]+")
_PLAIN_ITEM = re.compile(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_][A-Za-z0-9_./-]*|[0-9]+")


def quoted(argument: str) -> str:
    """The override `argument` with its value in quotes, so that Hydra takes it as one text."""
    key, _, value = argument.partition("=")
    # A backslash is one but before a quote, where it has to be doubled.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def to_type(argument: str) -> str:
    """What to type in a shell for an override whose value is to be one text."""
    text = quoted(argument)
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def typed(key: str, value: object) -> str:
    """The override `key=value` as it is typed in a shell, in quotes only where the value needs them."""
    argument = f"{key}={value}"
    return argument if _PLAIN.fullmatch(str(value)) else to_type(argument)


def item(name: str) -> str:
    """A name as an entry of a list or of an object in Hydra's grammar."""
    if _PLAIN_ITEM.fullmatch(name):
        return name
    escaped = re.sub(r"(\\*)(\"|\Z)", lambda found: found[1] * 2 + ('\\"' if found[2] else ""), name)
    return f'"{escaped}"'
