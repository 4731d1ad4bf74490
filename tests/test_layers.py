"""The house: a package imports only from lower layers, nothing imports late, and no file hides an import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "kvasir"

# Lowest first; names in one row may import each other only where ALLOWED says so.
LAYERS = (
    ("errors", "records"),
    ("durations", "faults", "child"),
    ("settings",),
    ("structured", "native"),
    ("plan", "quant", "sampling"),
    ("chat",),
    ("text", "parsers", "store", "checkpoint"),
    ("models", "grammar"),
    ("backends",),
    ("engine",),
    ("runner",),
    ("llm", "api", "cli"),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
ALLOWED = {("cli", "api"), ("cli", "llm"), ("sampling", "settings"), ("checkpoint", "quant")}
# Where an import may stand inside a function: optional packages, and what a command does not need to start.
# A room's `__init__` may open a file of its own so, for what few models or requests want.
LATE = {"cli", "llm", "__init__"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            found.append((node, node.module or ""))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_package_imports_only_from_lower_layers(path):
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    assert own in LEVEL, f"{own} has no place in the house: give it one in docs/design.md and here"
    for node, name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "kvasir" or len(parts) == 1:
            continue
        other = parts[1]
        if other != own and (own, other) not in ALLOWED:
            assert LEVEL[other] < LEVEL[own], f"{path.name}:{node.lineno} imports {name} from a higher layer"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stand_at_the_top(path):
    tree = ast.parse(path.read_text())
    assert "TYPE_CHECKING" not in path.read_text()
    top = {id(node) for node in tree.body}
    guarded = {id(n) for t in tree.body if isinstance(t, ast.Try | ast.If) for n in ast.walk(t)}
    for node, name in imports(tree):
        own = path.name == "__init__.py" and name == f"kvasir.{room(path)}"
        if id(node) not in top | guarded and room(path) not in LATE and not own:
            raise AssertionError(f"{path.name}:{node.lineno} imports {name} inside a function")


def test_the_engine_knows_no_backend():
    for path in (ROOT / "engine").glob("*.py"):
        for _, name in imports(ast.parse(path.read_text())):
            assert not name.startswith("kvasir.backends.") or name == "kvasir.backends.base", path.name


def test_torch_is_nowhere_in_the_base_install():
    cuda = ROOT / "backends" / "cuda"
    for path in modules():
        for _, name in imports(ast.parse(path.read_text())):
            first = name.split(".")[0]
            assert first not in ("transformers", "pickle"), f"{path}: {name}"
            assert first not in ("torch", "triton") or cuda in path.parents, f"{path}: {name}"
            inside = cuda in path.parents or not name.startswith("kvasir.backends.cuda")
            assert inside, f"{path} imports {name}, and with it torch: kvasir/backends/devices.py does that"
