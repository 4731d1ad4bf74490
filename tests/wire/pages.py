"""The programs of the pages in docs/clients, run as they are against another address."""

from __future__ import annotations

import contextlib
import io
import re

from tests.docs import ROOT

ADDRESS = "http://localhost:11434"
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def output(page: str, url: str) -> list[str]:
    """What each Python program of docs/clients/`page` prints when the server is at `url`."""
    programs = PROGRAM.findall((ROOT / "docs" / "clients" / page).read_text(encoding="utf-8"))
    assert programs and all(ADDRESS in program for program in programs)
    printed = []
    for program in programs:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program.replace(ADDRESS, url), page, "exec"), {"__name__": "__main__"})
        printed.append(out.getvalue())
    return printed
