"""The command line: `kvasir run`, `serve`, `show`, `list`.  What a command needs is imported when it runs."""

from __future__ import annotations

from kvasir.cli.main import main

__all__ = ["main"]
