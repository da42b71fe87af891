"""What the commands share: flags, the one line for a mistake, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mwa_lightning.cli.config.suggesting import did_you_mean
from mwa_lightning.errors import ConfigError, Interrupted, Stopped, UserError
from mwa_lightning.report.terminal import complain, deliver, open_streams
from mwa_lightning.system.memory import out_of_memory
from mwa_lightning.system.signals import Signals, hold_back, interruptible, put_back
from mwa_lightning.system.slurm import step
from mwa_lightning.training.distributed.cpus import wait_passively

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.cli.config.search_path import SearchPath

# Each with its short form; those of the second kind are followed by a value.
_FLAGS = {"--help": "-h", "--version": "", "--multirun": "-m", "--resolve": ""}
_WITH_VALUE = {"--cfg": "-c", "--info": "-i", "--config-dir": "-cd", "--config-name": "-cn"}
_MISSING = {"--info": "searchpath", "--config-dir": "DIR", "--config-name": "NAME"}
_INFO = ("searchpath", "config", "defaults", "defaults-tree", "plugins", "all")


@dataclass(frozen=True)
class Command:
    """One console command: how it makes its configuration, and what it does with it."""

    name: str
    config_name: str
    compose: Callable[[list[str]], DictConfig]
    execute: Callable[[DictConfig], None]
    usage: str
    main_keys: Sequence[str] = field(default=())
    listens: bool = False  # to signals, once its configuration is checked: until then they wait
    # With --multirun: gets the words, and whether only to show what would be done.
    sweep: Callable[[list[str], bool], None] | None = None
    # What the words of the command stand for, if it has groups that are chosen unless others are.
    complete: Callable[[list[str]], list[str]] = list


def run(command: Command, argv: Sequence[str] | None) -> int:
    """Run `command` and return its exit code.

    0; 1 the unexpected; 2 a user's mistake; 3 a missed expectation; 4 a number that is not finite; 5 a run that does
    not learn; 75 stopped by a signal, to be started again; 130 stopped from the keyboard.
    """
    code = _carry_out(command, argv)
    processes = sys.modules.get("mwa_lightning.training.distributed.processes")
    if argv is None and processes is not None and processes.has_met.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads of gloo let go of tensors while Python ends, and a process that has finished would abort.
        os._exit(code)
    return code


def _carry_out(command: Command, argv: Sequence[str] | None) -> int:
    """What `run` does, without ending the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    alone = argv is None  # a process of its own, which ends with the command
    if alone:
        open_streams()
        wait_passively()
    if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # where nobody catches it: also when Python ends, without a word
    if alone and command.listens:
        hold_back()
    try:
        with nullcontext() if alone else put_back(), interruptible(Signals()) as signals:
            _run(command, arguments, signals)
    except Exception as error:
        return _report(command, error, debug=debug)
    except (KeyboardInterrupt, Interrupted) as interrupted:
        if rank_of_process() == 0:
            complain(f"{command.name}: {str(interrupted) or 'interrupted'}")
        return Interrupted.exit_code
    return 0


def _report(command: Command, error: Exception, *, debug: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if short := out_of_memory(error):
        traceback.clear_frames(error.__traceback__)  # what they hold may be what there is too little of
        error = short
    rank = rank_of_process()
    if rank:
        from mwa_lightning.training.worker import report

        return report(error, rank=rank)
    if isinstance(error, UserError):
        if debug:
            complain(traceback.format_exc())
        label = "" if isinstance(error, Stopped) else "error: "
        complain(f"{command.name}: {label}{error}")
        return error.exit_code
    complain(
        f"{traceback.format_exc()}{command.name}: error: unexpected {type(error).__name__}, a defect of mwa_lightning; "
        "its traceback stands above"
    )
    return 1


def rank_of_process() -> int:
    """Which of the processes this is that srun or torchrun has started for one run."""
    task = step()
    return int(os.environ.get("RANK", 0)) if task is None else task.rank


def _run(command: Command, arguments: list[str], signals: Signals) -> None:
    flags = _take_flags(arguments)
    if "--version" in flags:
        from mwa_lightning import __version__

        deliver(__version__)
        return
    from mwa_lightning.cli.config.search_path import using

    with using(_search_path(command, flags, arguments)):
        if "--help" in flags:
            from mwa_lightning.cli.help import help_text

            deliver(help_text(command))
        elif "--info" in flags:
            _show_info(command, flags["--info"][-1], arguments)
        elif "--multirun" in flags:
            if command.sweep is None:
                raise ConfigError("--multirun: is a flag of mwa-train alone")
            command.sweep(arguments, "--cfg" in flags)
        else:
            config = command.compose(arguments)
            if "--cfg" in flags:
                from omegaconf import OmegaConf

                deliver(OmegaConf.to_yaml(config).rstrip())
            elif signals.interrupted:
                raise Interrupted  # again: a library has swallowed it
            else:
                command.execute(config)


def _search_path(command: Command, flags: dict[str, list[str]], arguments: list[str]) -> SearchPath:
    """What the flags and `hydra.searchpath=`, which is removed from the words, add to where configs are looked for."""
    from mwa_lightning.cli.config.search_path import OURS, SEARCH_PATH, search_path_of

    names = flags.get("--config-name", [])
    if names and command.config_name not in ("train", "evaluate", "tune"):
        raise ConfigError(f"--config-name={names[-1]}: is a flag of mwa-train, mwa-eval and mwa-tune alone")
    words = [word for word in arguments if word.lstrip("+").startswith(f"{SEARCH_PATH}=")]
    if not words and not names and "--config-dir" not in flags:
        return OURS
    arguments[:] = [word for word in arguments if word not in words]
    from mwa_lightning.cli.grid import parse

    further = parse(words[-1:])[0].value() if words else []
    return search_path_of(flags.get("--config-dir", []), further, config_name=names[-1] if names else None)


def _show_info(command: Command, what: str, arguments: list[str]) -> None:
    from mwa_lightning.cli.config.search_path import show_info
    from mwa_lightning.cli.grid import parse

    if what not in _INFO:
        raise ConfigError(f"--info {what}: write --info {'|'.join(_INFO)}")
    words = parse(command.complete(arguments))
    show_info(what, command.config_name, [str(word.input_line) for word in words])


def _take_flags(arguments: list[str]) -> dict[str, list[str]]:
    """Remove the flags from `arguments` and return them by their long names, with the values that they are given."""
    long = {short: flag for flag, short in (_FLAGS | _WITH_VALUE).items()} | {"--hydra-help": "--help"}
    flags: dict[str, list[str]] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            rest.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = long.get(name, name)
        if flag in _WITH_VALUE:
            value = value if equals else next(words, "")
            if flag == "--cfg" and value != "job":
                given = word if equals or not value else f"{word} {value}"
                raise ConfigError(f"{given}: write --cfg job, which prints the configuration")
            if not value:
                raise ConfigError(f"{word}: a value is missing; write {flag}={_MISSING[flag]}")
            flags.setdefault(flag, []).append(value)
        elif flag in _FLAGS and not equals:
            flags[flag] = []
        else:
            known = [*_FLAGS, "--cfg job", *_WITH_VALUE]
            raise ConfigError(f"there is no flag {word}.{did_you_mean(name, known) or ' --help lists them.'}")
    arguments[:] = rest
    return flags
