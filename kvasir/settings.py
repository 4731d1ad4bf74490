"""Every switch of the environment: one typed table, eleven at most and two for tests.

A value that does not parse is fatal.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvasir.durations import keep_alive_s
from kvasir.errors import UsageError
from kvasir.faults import Fault, parse
from kvasir.records import dataclass

DEFAULT_PORT = 11434
MAX_REQUESTS = 512  # that a server answers and keeps waiting together; more are refused
GRACE_S = 25.0  # for answers under way when a server is to stop: a container is killed after 30
ISAS = ("auto", "portable", "avx2", "avxvnni", "avx512", "amx")
BACKENDS = ("auto", "cpu", "cuda", "cuda-invariant")
KV_FORMATS = ("f16", "q8_0", "f32")


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """The switches, parsed.  None: the program chooses.  A `keep_alive_s` of inf: for ever."""

    backend: str = "auto"
    isa: str = "auto"
    threads: int | None = None
    models: Path = Path("~/.kvasir/models")
    host: Address = Address()
    keep_alive_s: float = 300.0
    cache_gb: float | None = None
    kv: str = "f16"
    packed_gb: float = 10.0
    cache_disk_gb: float = 5.0
    debug: int = 0
    check: bool = False
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Switch:
    """One KVASIR_* variable: the field of Settings that it sets, what it takes, what it is for."""

    name: str
    field: str
    parse: Callable[[str], Any]
    form: str
    help: str


def parse_address(text: str) -> Address:
    """An address from HOST, HOST:PORT, :PORT or [V6]:PORT; http:// may stand in front.  Raises UsageError."""
    body = text.strip().removeprefix("http://").rstrip("/")
    host, port = body, ""
    if body.startswith("["):
        host, _, port = body[1:].partition("]")
        if port and not port.startswith(":"):
            raise UsageError(f"{text!r} is not an address", hint="write HOST:PORT")
        port = port.removeprefix(":")
    elif body.count(":") == 1:
        host, _, port = body.partition(":")
    if port and not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{text!r}: the port must be a number from 0 to 65535")
    if any(c in "/@?# \\" for c in host):
        raise UsageError(f"{text!r} is not an address", hint="write HOST:PORT")
    return Address(host or "127.0.0.1", int(port) if port else DEFAULT_PORT)


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise UsageError(f"{text!r} is not one of {', '.join(allowed)}")
        return text.lower()

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise UsageError(f"{text!r} is not an integer from {low} to {high}")
        return int(text)

    return parse


def _flag(text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false"):
        raise UsageError(f"{text!r} is not 0 or 1")
    return text.lower() in ("1", "true")


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:
        raise UsageError(f"{text!r} is not a number of gigabytes, a million at most")
    return value


def _gigabytes_or_none(text: str) -> float:
    return 0.0 if text == "0" else _gigabytes(text)


def _keep_alive(text: str) -> float:
    """Like the API's keep_alive; a bare integer is seconds here."""
    return keep_alive_s(int(text) if text.removeprefix("-").isdigit() and text.isascii() else text)


SWITCHES: tuple[Switch, ...] = (
    Switch("KVASIR_BACKEND", "backend", _choice(*BACKENDS), "auto|cpu|cuda|cuda-invariant",
           "what computes; auto takes a GPU if torch is there and sees one, and the CPU otherwise; "
           "cuda-invariant gives an answer the same bits whatever else runs, and is slower"),
    Switch("KVASIR_ISA", "isa", _choice(*ISAS), "|".join(ISAS),
           "which build of the CPU kernels runs; auto takes the best one that this machine has"),
    Switch("KVASIR_THREADS", "threads", _integer(1, 1024), "1..1024",
           "threads that compute; without it, one for each core"),
    Switch("KVASIR_MODELS", "models", lambda text: Path(text).expanduser(), "folder",
           "where models are looked up by name; ~/.kvasir/models"),
    Switch("KVASIR_HOST", "host", parse_address, "HOST:PORT",
           "where `kvasir serve` listens; 127.0.0.1:11434"),
    Switch("KVASIR_KEEP_ALIVE", "keep_alive_s", _keep_alive, "duration",
           "how long the server keeps an unused model loaded: 5m; 0 not at all, negative for ever"),
    Switch("KVASIR_CACHE_GB", "cache_gb", _gigabytes, "number",
           "memory for the KV cache of a model; without it, a share of what is free"),
    Switch("KVASIR_KV", "kv", _choice(*KV_FORMATS), "f16|q8_0|f32",
           "the format of the KV cache; q8_0 takes half of f16's memory"),
    Switch("KVASIR_PACKED_GB", "packed_gb", _gigabytes_or_none, "number",
           "disk for repacked weights, so that a large model's next start takes a fraction of a second: "
           "in ~/.cache/kvasir/packed (or XDG_CACHE_HOME), at most 10; 0 keeps none"),
    Switch("KVASIR_CACHE_DISK_GB", "cache_disk_gb", _gigabytes_or_none, "number",
           "disk for prompts and answers as the KV cache holds them, so that a prefix is not computed again "
           "after a restart: in ~/.cache/kvasir/prefix (or XDG_CACHE_HOME), at most 5; 0 keeps none"),
    Switch("KVASIR_DEBUG", "debug", _integer(0, 4), "0..4",
           "1 loads and batches; 2 a line a step; 3 time and bandwidth an op; 4 min/max/mean of each value"),
    Switch("KVASIR_CHECK", "check", _flag, "0|1",
           "run the reference beside the backend and stop at the first op that differs"),
    Switch("KVASIR_FAULT", "faults", parse, "POINT:COUNT:ACTION",
           "what is to go wrong on purpose in a model's process, for tests; see the fault points"),
)  # fmt: skip


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that `environ` (the process's by default) asks for; an empty value counts as not set.

    Raises UsageError that names the variable.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {"models": Settings.models.expanduser()}
    for switch in SWITCHES:
        text = source.get(switch.name, "").strip()
        if text:
            try:
                values[switch.field] = switch.parse(text)
            except UsageError as error:
                raise UsageError(f"{switch.name}: {error.message}", hint=error.hint) from None
    return Settings(**values)


def misspelled(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A line for every KVASIR_* variable that is set and that nothing reads."""
    known = [switch.name for switch in SWITCHES]
    lines = []
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith("KVASIR_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{name} is set and nothing reads it{hint}")
    return tuple(lines)


def settings_table() -> str:
    """The switches as a Markdown table, for the docs."""
    rows = ["| Variable | Takes | What it does |", "|---|---|---|"]
    rows += [f"| `{s.name}` | `{s.form.replace('|', ' or ')}` | {s.help} |" for s in SWITCHES]
    return "\n".join(rows) + "\n"
