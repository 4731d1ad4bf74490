"""The docs say what the code says: generated parts are fresh, links and files exist, names are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs import ROOT, fresh, pages

PAGES = list(dict.fromkeys(pages()))
LINK = re.compile(r"\[[^\]]+\]\(([^)\s#]+)(#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"^[\w./]+\.(py|cpp|h|txt|jinja|md)$")
NAMED = re.compile(r"`([\w/]+\.py)`, `(\w+)(?:\.(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == fresh(page), f"{page.name} is stale: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for found in LINK.finditer(text):
        if "://" not in found[1]:
            assert (page.parent / found[1]).exists(), f"{page.name} links to {found[1]}"
    for code in CODE.findall(text):
        if FILE.match(code) and "/" in code:
            assert any((ROOT / room / code).exists() for room in ("", "kvasir")), f"{page.name} names {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_are_short(page: Path) -> None:
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if not line.startswith("|"):
            assert len(line) <= 110, f"{page.name}:{number} has {len(line)} columns"


def test_the_life_of_a_request_names_what_exists() -> None:
    """`engine/engine.py`, `Engine.step`: the file defines these names."""
    text = (ROOT / "docs" / "life-of-a-request.md").read_text(encoding="utf-8")
    pairs = NAMED.findall(text)
    assert len(pairs) > 5
    for path, *names in pairs:
        source = (ROOT / "kvasir" / path).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"(def|class) {name}\b", source), f"{path} has no {name}"
    everything = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "kvasir").rglob("*.py"))
    for owner, name in re.findall(r"`?([A-Z]\w+)\.(_?[a-z]\w+)`?", text):
        assert re.search(rf"class {owner}\b", everything), f"no class {owner}"
        assert re.search(rf"def {name}\b", everything), f"no method {name} for {owner}.{name}"


def test_every_dependency_has_its_line_and_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    base = [re.split(r"[<>=]", each)[0] for each in project["project"]["dependencies"]]
    extras = [each for group in project["project"]["optional-dependencies"].values() for each in group]
    wanted = {re.split(r"[<>=]", each)[0] for each in (*base, *extras, *project["build-system"]["requires"])}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.split("\n") if line.startswith("| `")]
    listed = {name for cell in cells for name in CODE.findall(cell)}
    assert listed == wanted
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "kvasir").rglob("*.py"))
    for name in base:
        assert re.search(rf"^\s*(import|from) {name}\b", source, re.M), f"nothing imports {name}"
