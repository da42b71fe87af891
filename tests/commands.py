"""Commands as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def start_command(name: str, *arguments: str, alone: bool = False) -> subprocess.Popen[str]:
    """A command by the name of its module; `alone`, as a terminal starts it, in a group of its own.

    It hears Ctrl-C also where the tests do not, as in the background of a shell.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", f"mwa_lightning.cli.{name}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=alone,
        )
    finally:
        signal.signal(signal.SIGINT, before)
