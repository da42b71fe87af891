"""From a node of the configuration to the object of the class that it names, checked by what the class says of itself.

A class from outside the package has its options checked by the type hints of its constructor; ours have rules.
"""

from __future__ import annotations

import importlib
import inspect
import json
import traceback
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from mwa_lightning.errors import ConfigError, UserError, one_line
from mwa_lightning.own_modules import make_importable

T = TypeVar("T")
TARGET = "_target_"
# Keys of a node that are for us, not for the class that it names.
OURS = frozenset(
    {
        TARGET,
        "checkpoint",
        "checkpoint_key",
        "tokenizer",
        "tokenizer_kind",
        "text_cleaning",
        "max_words",
        "official",
        "resize",
        "interpolation",
    }
)


def instantiate(node: DictConfig, *, group: str = "", base: type = object, **further: Any) -> Any:
    """Make the object that a node's `_target_` names, from its other keys and `further`.

    Raises ConfigError where the class cannot be had, is no `base`, does not take the keys or fails to be made.
    """
    kind, options = checked(node, group=group, base=base, further=further)
    try:
        return kind(**options, **further)
    except UserError:
        raise
    except Exception as error:
        if _is_ours(kind):
            raise
        raise ConfigError(f"{_named(node, group)}: cannot be made: {first_line(error)}") from error


def class_of(node: DictConfig, *, group: str, base: type[T]) -> type[T]:
    """The class that a node's `_target_` names. Raises ConfigError if it cannot be had or is no `base`."""
    return _class_of(str(node[TARGET]), what=_named(node, group), base=base)


def checked(
    node: DictConfig, *, group: str, base: type, further: Collection[str] = ()
) -> tuple[type[Any], dict[str, Any]]:
    """The class of a node, and the options that it is made from besides `further`. Raises ConfigError."""
    kind = _class_of(str(node[TARGET]), what=_named(node, group), base=base)
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    options = {str(key): value for key, value in content.items() if key not in OURS}
    _check_names(kind, options, group=group, further=further)
    return kind, options if _is_ours(kind) else _typed(kind, options, group=group)


def first_line(error: BaseException) -> str:
    """Where an error of somebody's code was raised, and what it says."""
    said = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    inner = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parents[1])]
    return f"{inner[-1].filename}, line {inner[-1].lineno}: {said}" if inner else said


def _named(node: DictConfig, group: str) -> str:
    return f"{group}.{TARGET}={node[TARGET]}".removeprefix(".")


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _class_of(target: str, *, what: str, base: type) -> type[Any]:
    module, _, name = target.rpartition(".")
    if not module:
        raise ConfigError(f"{what}: write it as MODULE.CLASS")
    make_importable(module)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what}: {module} cannot be imported: {_see(error)}") from error
        raise ConfigError(
            f"{what}: there is no module {error.name}; start the command in the folder that holds it, install it, or "
            "name its folder in PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(f"{what}: {module} cannot be imported: {_see(error)}") from error
    kind = getattr(found, name, None)
    if kind is None:
        classes = [each for each, value in vars(found).items() if isinstance(value, type)]
        raise ConfigError(f"{what}: {module} ({found.__file__}) has no {name}.{_did_you_mean(name, classes)}")
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise ConfigError(f"{what}: is no {base.__name__}; derive the class from {base.__module__}.{base.__name__}")
    if inspect.isabstract(kind):
        missing = sorted(name for name in dir(kind) if getattr(getattr(kind, name), "__isabstractmethod__", False))
        raise ConfigError(f"{what}: lacks {', '.join(missing)}, which every {base.__name__} has")
    return kind


def _see(error: Exception) -> str:
    return f"{first_line(error)}; debug=true shows the traceback"


def _check_names(kind: type, options: Mapping[str, Any], *, group: str, further: Collection[str]) -> None:
    """Raise ConfigError for an option that the class does not have, or that it needs and does not get."""
    parameters = inspect.signature(kind).parameters.values()
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    prefix = f"{group}." if group else ""
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for name in options:
            if name not in named:
                own = [each for each in named if each not in further]
                has = f" It has {', '.join(own)}." if own else " It has none."
                raise ConfigError(
                    f"{prefix}{name}: {kind.__name__} has no such option.{_did_you_mean(name, own, prefix=prefix)}{has}"
                )
    for each in parameters:
        if each.name in named and each.default is each.empty and each.name not in (*options, *further):
            raise ConfigError(f"{prefix}{each.name}: {kind.__name__} needs it; give it in the file of the choice")


def _typed(kind: type, options: Mapping[str, Any], *, group: str) -> dict[str, Any]:
    """Options as the type hints of a constructor want them; those without a hint as they are. Raises ConfigError."""
    try:
        hints = get_type_hints(inspect.getattr_static(kind, "__init__"), include_extras=True)
    except Exception:  # names that are imported for type checkers alone
        return dict(options)
    typed = {}
    for name, value in options.items():
        try:
            # As of a JSON file: a list is a tuple too, a text a path, but no text a number.
            typed[name] = TypeAdapter(hints[name]).validate_json(json.dumps(value), strict=True)
        except (KeyError, PydanticUserError):
            typed[name] = value
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join([name, *(str(part) for part in found["loc"] if isinstance(part, int))])
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            said = str(found["msg"]).removeprefix("Input ")
            raise ConfigError(f"{group}.{place}={shown}: {said}, by the type hints of {kind.__name__}") from error
    return typed


def _did_you_mean(name: str, names: Collection[str], *, prefix: str = "") -> str:
    near = get_close_matches(name, names, n=1)
    return f" Did you mean {prefix}{near[0]}?" if near else ""
