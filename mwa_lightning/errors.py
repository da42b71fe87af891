"""The exceptions that a person is meant to read: one line each, saying what, where and what to do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; the command line prints the message and exits with `exit_code`.

    The message is one line, whatever the names of files in it: nothing of it moves the cursor of a terminal.
    """

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(UserError):
    """A configuration that cannot be run: an unknown key, a value out of range, parts that do not fit."""


class DataError(UserError):
    """A data set, file or sample that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that belongs to another model."""


class TrainingError(UserError):
    """A run that must not go on: a parameter without a gradient, a search whose trials all fail."""


class NotFinite(TrainingError):  # noqa: N818 (what the settings come to, more often than a defect)
    """A loss, gradient or score that is not finite; a search goes on with other values."""

    exit_code = 4


class NotLearning(TrainingError):  # noqa: N818 (what the settings come to, more often than a defect)
    """A run that has collapsed, is dead, diverges or learns nothing; a search goes on with other values."""

    exit_code = 5


class StorageError(UserError):
    """A disk that does not take what is written: full, over quota, read-only or gone."""


class OutOfMemory(UserError):  # noqa: N818 (a state of the machine)
    """Too little memory, of the machine or of a GPU; `wanted` is what was asked for last, if that is known."""

    def __init__(self, *, gpu: bool, wanted: str | None) -> None:
        where = "the memory of the GPU" if gpu else "memory"
        asked = "" if wanted is None else f" (the last request was for {wanted})"
        workers = "" if gpu else ", data.num_workers"
        super().__init__(
            f"{where} does not suffice{asked}: lower data.batch_size{workers} or data.eval_batch_size, or free some, "
            "and start the same command again; a training run resumes from its last checkpoint"
        )


class ProcessFailed(UserError):  # noqa: N818 (its own message was another process's)
    """Another process of the run failed, with exit code `code` (minus the signal that ended it)."""

    def __init__(self, *, rank: int, code: int) -> None:
        self.exit_code = code if code > 0 else 1
        how = f"with exit code {code}, its message stands above" if code > 0 else f"by signal {-code}"
        super().__init__(f"rank {rank} ended {how}; all processes of the run were ended")


class ConnectionLost(UserError):  # noqa: N818 (why is another process's to say)
    """Another process of the run is gone, which somebody else has started and watches over."""

    exit_code = 1

    def __init__(self) -> None:
        super().__init__(
            "another process of the run is gone: its message, or that of srun or torchrun, says why (if there is none, "
            "it was killed, as happens where memory is short)"
        )


class Stopped(UserError):  # noqa: N818 (what was asked for)
    """A signal ended the run where the same command goes on with it; what was done is saved."""

    exit_code = 75  # "try again", as BSD's sysexits has it


class MachineLost(Stopped):
    """Other processes are gone with the machine that they were on; the run resumes from its last checkpoint."""


class Interrupted(BaseException):
    """Ctrl-C, in place of KeyboardInterrupt, at which Lightning would end the process by itself with exit code 1.

    Its message, if it has one, says where the work stands and how it goes on.
    """

    exit_code = 130


class ExpectationMissed(UserError):  # noqa: N818 (an outcome, not a mistake)
    """A figure outside the tolerance around the published one."""

    exit_code = 3


def one_line(text: str) -> str:
    """A text in which ends of lines and runs of blanks are one blank, and control characters are written out."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text
    return "".join(
        letter if unicodedata.category(letter)[0] != "C" else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


def shorten(names: Iterable[str], most: int = 4) -> str:
    """A few names and the count of the others, for a message of one line."""
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun: `1 image`, `2,000 images`; `several` is the plural that is not made with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
