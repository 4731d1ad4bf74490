"""Processes of our own that do what may go wrong."""

from __future__ import annotations

import subprocess
from contextlib import suppress


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process at once, whatever it is doing, and closes the pipes to it."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what was not read goes with it
                stream.close()
    process.wait()
