"""Starts the processes of models.  Imports next to nothing, so one can be started before anything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import kvasir


class Started:
    """A process that waits for its first frame on the other end of `channel`.  Mutable and thread-safe.

    Linux ends a child with the *thread* that made it, if it asks for that (`process.depend_on`): so each has
    a thread that does nothing but live as long.
    """

    def __init__(self, name: str):
        self.channel, theirs = socket.socketpair()
        self.process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._begun, self._over = threading.Event(), threading.Event()
        self._lock, self._taken = threading.Lock(), False
        threading.Thread(target=self._run, args=(theirs, name), name=f"parent {name}", daemon=True).start()

    def take(self) -> bool:
        """Whether the caller is the first who wants it."""
        with self._lock:
            first, self._taken = not self._taken, True
            return first

    def running(self) -> subprocess.Popen[bytes]:
        """The process.  Raises OSError when it could not be started."""
        self._begun.wait()
        if self._error:
            raise self._error
        assert self.process
        return self.process

    def over(self) -> None:
        """The process has ended, or may."""
        self._over.set()

    def drop(self) -> None:
        """Ends the process unless somebody has taken it."""
        if self.take():
            self.channel.close()
            self.running().wait()
            self.over()

    def _run(self, theirs: socket.socket, name: str) -> None:
        with theirs:
            try:
                self.process = _popen(theirs.fileno(), name)
            except OSError as error:
                self._error = error
            finally:
                self._begun.set()
        self._over.wait()


def _popen(channel: int, name: str) -> subprocess.Popen[bytes]:
    """A fresh process for the model called `name`, which speaks over the socket `channel`.  Raises OSError.

    It gets a session of its own, so that Ctrl-C in a terminal is the server's to hear.
    """
    root = str(Path(kvasir.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "kvasir.runner.process", str(channel), str(os.getpid()), name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=(channel,),
        start_new_session=True,
    )
