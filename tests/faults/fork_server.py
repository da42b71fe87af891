"""Starts commands again and again without importing everything again: each start is a process forked from this one.

Reads from standard input, a line a start: JSON of the command (`train` or `evaluate`), its arguments, and the file that
the process's output goes to.
Writes the process's id, and when it has ended, its wait status.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

# What a start would import on its way.
MODULES = (
    "mwa_lightning.cli.train",
    "mwa_lightning.cli.evaluate",
    "mwa_lightning.cli.config.consistency",
    "mwa_lightning.training.fit",
    "mwa_lightning.training.evaluate",
    "sentencepiece",
    "torch._dynamo",  # with the first step of an optimizer
)


class Server:
    """The client: one process at a time."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        assert self._line() == "ready"
        self.process = 0
        self.status: int | None = None

    def start(self, command: str, arguments: list[str], output: Path) -> None:
        """Start a command, by the name of its module."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([command, arguments, str(output)]).encode() + b"\n")
        self.process, self.status = int(self._line()), None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.status is None and select.select([self._server.stdout], [], [], 0)[0]:
            self.status = int(self._line())
        return self.status is not None

    def wait(self) -> int:
        """Its wait status, when it has ended."""
        while not self.ended():
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def close(self) -> None:
        """End the server, and what it started."""
        if self.process and not self.ended():
            os.kill(self.process, signal.SIGKILL)
        self._server.kill()
        self._server.wait()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().decode().strip()


def child(command: str, arguments: list[str], output: str) -> None:
    """Be that command, and never return."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        code = importlib.import_module(f"mwa_lightning.cli.{command}").main(arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Fork a process for each line, and wait for its end."""
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        command, arguments, output = json.loads(line)
        process = os.fork()
        if process == 0:
            child(command, arguments, output)
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
