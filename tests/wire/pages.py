"""The programs of the pages in docs/clients, run as they are against another address."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from pathlib import Path

from tests.docs import ROOT

ADDRESS = "http://localhost:11434"
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def output(page: str, url: str, python: Path | None = None) -> list[str]:
    """What each Python program of docs/clients/`page` prints when the server is at `url`.

    `python`: another interpreter that runs it, for clients that are not installed here.
    """
    programs = PROGRAM.findall((ROOT / "docs" / "clients" / page).read_text(encoding="utf-8"))
    assert programs and all(ADDRESS in program for program in programs)
    printed = []
    for program in programs:
        if python:
            words = [python, "-c", program.replace(ADDRESS, url)]
            printed.append(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program.replace(ADDRESS, url), page, "exec"), {"__name__": "__main__"})
        printed.append(out.getvalue())
    return printed
