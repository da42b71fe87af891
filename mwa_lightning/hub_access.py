"""Files of the Hugging Face hub, named `hf://OWNER/NAME`: from its local cache, or downloaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mwa_lightning.errors import CheckpointError

HUB = "hf://"

_PATIENCE = 5.0  # seconds for the hub to answer at all


def from_hub(reference: str, choices: Sequence[Sequence[str]], *, beside: Sequence[str] = (), instead: str) -> Path:
    """The folder with the files of the first choice that a repository has, from the cache where they are there.

    Args:
        reference: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.
        choices: Groups of files, the best first; one group suffices.
        beside: Files that are taken too where the repository has them.
        instead: What to give where this fails, for the message.

    Raises:
        CheckpointError: In one line: there is no such repository or file, or the hub cannot be reached.
    """
    name, _, revision = reference.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise CheckpointError(
            f"{reference}: names of the hub need the package huggingface_hub; install it, or give {instead}"
        ) from None

    def fetch(files: Sequence[str], **options: Any) -> Path:
        paths = [hf_hub_download(name, file, revision=revision or None, **options) for file in files]
        for file in beside:
            try:
                hf_hub_download(name, file, revision=revision or None, **options)
            except Exception:  # the repository does not have it
                logging.getLogger(__name__).debug("%s has no %s", reference, file)
        return Path(paths[0]).parent

    problem: Exception | None
    for options in ({"local_files_only": True}, {}):
        problem = None
        if not options:
            _check_reachable(reference, instead)
        for files in choices:
            try:
                with _without_retries_shown():
                    return fetch(files, **options)
            except HFValidationError as error:
                raise CheckpointError(f"{reference}: not a name of the hub; write {HUB}OWNER/NAME") from error
            # No such repository, no such file, no permission: the client has an error of its own for each. What keeps
            # a file from coming tells more than that there is none by another name.
            except Exception as error:
                if problem is None or _lacks_files(problem):
                    problem = error
    raise CheckpointError(f"{reference}: {_reason(problem, choices)} give {instead}") from problem


def _check_reachable(reference: str, instead: str) -> None:
    """Ask the hub once: its client would try for half a minute, with two lines each time."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"{reference}: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub; unset it, or give "
            f"{instead}"
        )
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # those of the client's own library for HTTP
        raise CheckpointError(
            f"{reference}: not in the local cache, and the hub cannot be reached from here ({_first_line(error)}); "
            f"download it where it can, and give {instead}"
        ) from error


@contextmanager
def _without_retries_shown() -> Iterator[None]:
    """The client logs each try; what comes of them is said once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _lacks_files(problem: Exception) -> bool:
    """Whether the hub has said that a repository has no such file; without an answer the client's error is alike."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(problem, EntryNotFoundError) and not isinstance(problem, LocalEntryNotFoundError)


def _reason(problem: Exception | None, choices: Sequence[Sequence[str]]) -> str:
    """What went wrong, and what else helps than to give something instead."""
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        return "the hub gives it to those only who have accepted its terms there and log in (hf auth login);"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return "the hub has no such repository (or it is private: hf auth login);"
    if isinstance(problem, errors.RevisionNotFoundError):
        return "the repository has no such revision;"
    if isinstance(problem, errors.LocalEntryNotFoundError):
        return f"the connection to the hub was lost ({_first_line(problem.__cause__ or problem)}); try again, or"
    if problem is not None and _lacks_files(problem):
        return f"the repository has no {' and no '.join(files[0] for files in choices)};"
    if isinstance(problem, OSError) and problem.errno is not None:
        return f"it cannot be put into the local cache ({problem.strerror}); set HF_HOME to another folder, or"
    return f"the hub does not give it ({_first_line(problem)});"


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
