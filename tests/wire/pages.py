"""The programs of the pages in docs/clients, run as they are against another address."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from pathlib import Path

from tests.docs import ROOT

ADDRESS = "http://localhost:11434"


def programs(page: str, url: str, language: str = "python") -> list[str]:
    """The programs of docs/clients/`page` in a language, with `url` in the place of the usual address."""
    text = (ROOT / "docs" / "clients" / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found and all(ADDRESS in program for program in found)
    return [program.replace(ADDRESS, url) for program in found]


def output(page: str, url: str, python: Path | None = None) -> list[str]:
    """What each Python program of docs/clients/`page` prints when the server is at `url`.

    `python`: another interpreter that runs it, for clients that are not installed here.
    """
    printed = []
    for program in programs(page, url):
        if python:
            words = [python, "-c", program]
            printed.append(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program, page, "exec"), {"__name__": "__main__"})
        printed.append(out.getvalue())
    return printed
