"""Starts `mwa-train` again and again without importing everything again: each start is a process forked from this one.

Reads from standard input, a line a start: JSON of the arguments, and the file that the process's output goes to.
Writes the process's id, and when it has ended, its wait status.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

# What a start of `mwa-train` would import on its way.
MODULES = (
    "mwa_lightning.cli.train",
    "mwa_lightning.cli.consistency",
    "mwa_lightning.training.fit",
    "sentencepiece",
    "torch._dynamo",  # with the first step of an optimizer
)


def child(arguments: list[str], output: str) -> None:
    """Be `mwa-train`, and never return."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        code = importlib.import_module("mwa_lightning.cli.train").main(arguments)
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
        arguments, output = json.loads(line)
        process = os.fork()
        if process == 0:
            child(arguments, output)
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
