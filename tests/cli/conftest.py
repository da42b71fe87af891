"""What the tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

Refuses = Callable[..., None]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Run a command that prints one line of error with these words and nothing else, with exit code 2."""

    def run(name: str, main: Callable[[list[str]], int], arguments: list[str], words: Sequence[str]) -> None:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"{name}: error: ")
        assert captured.err.count("\n") == 1
        for word in words:
            assert word in captured.err

    return run
