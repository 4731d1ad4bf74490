"""Ollama's Modelfile: what a model is made of, as text that people write."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from kvasir.errors import UsageError
from kvasir.records import dataclass
from kvasir.store.made import Made, Turn

WORDS = (
    "FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "LICENSE", "MESSAGE", "ADAPTER", "DRAFT", "RENDERER", "PARSER",
    "REQUIRES",
)  # fmt: skip
ROLES = ("system", "user", "assistant")
MAX_BYTES = 1 << 20
FENCE = '"""'


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says.  `others`: instructions that are known and not among the rest, with values.

    `parameters`: values as they were written, in order, for each name.
    """

    bases: tuple[str, ...] = ()
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    license: tuple[str, ...] = ()
    messages: tuple[Turn, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


def parse_modelfile(text: str) -> Modelfile:
    """What `text` says.  Raises UsageError with the line."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"a Modelfile of {len(text):,} characters, the limit is {MAX_BYTES:,}")
    said: dict[str, list[str]] = {word: [] for word in WORDS}
    parameters: dict[str, tuple[str, ...]] = {}
    messages: list[Turn] = []
    for number, word, value in _instructions(text.removeprefix("\ufeff").splitlines()):
        if word == "PARAMETER":
            name, value = _first(value, f"line {number}: PARAMETER takes a name and a value")
            parameters[name.lower()] = (*parameters.get(name.lower(), ()), _unquoted(value))
        elif word == "MESSAGE":
            role, value = _first(value, f"line {number}: MESSAGE takes a role and a text")
            if role.lower() not in ROLES:
                raise UsageError(f"line {number}: the role of a MESSAGE is one of {', '.join(ROLES)}")
            messages.append(Turn(role.lower(), _unquoted(value)))
        else:
            said[word].append(_unquoted(value))
    if not said["FROM"]:
        raise UsageError("the Modelfile has no FROM line", hint="begin it with FROM and a model")
    others = [(word, v) for word in WORDS[6:] for v in said[word]]
    return Modelfile(
        tuple(said["FROM"]),
        parameters,
        said["TEMPLATE"][-1] if said["TEMPLATE"] else "",
        said["SYSTEM"][-1] if said["SYSTEM"] else "",
        tuple(said["LICENSE"]),
        tuple(messages),
        tuple(others),
    )


def write_modelfile(base: str, made: Made) -> str:
    """The Modelfile that makes `made` of `base` again."""
    lines = [f"FROM {base}", *([f"ADAPTER {made.adapter}"] if made.adapter else [])]
    texts = {"TEMPLATE": made.template, "SYSTEM": made.system}
    lines += [f"{word} {_quoted(text)}" for word, text in texts.items() if text]
    for name, value in made.parameters.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {_plain(each)}" for each in values]
    lines += [f"MESSAGE {turn.role} {_quoted(turn.content)}" for turn in made.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in made.license]
    return "\n".join(lines) + "\n"


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Parameters a line each, as `ollama show --parameters` prints them."""
    lines = []
    for name, value in parameters.items():
        each = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        lines += [f"{name:<30} {_plain(one)}" for one in each]
    return "\n".join(lines)


def _instructions(lines: list[str]) -> list[tuple[int, str, str]]:
    """(line number, instruction in capitals, value as written): quoted values may have several lines."""
    found, at = [], 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        word, _, value = line.replace("\t", " ", 1).partition(" ")
        if word.upper() not in WORDS:
            near = difflib.get_close_matches(word.upper(), WORDS, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(WORDS)}"
            raise UsageError(f"line {number}: the instruction {word[:40]!r} is unknown", hint=hint)
        value = value.strip()
        while not _closed(_last(word, value)):
            if at == len(lines):
                raise UsageError(f"line {number}: the quote after {word.upper()} is not closed")
            value += "\n" + lines[at]
            at += 1
        if not value.strip():
            raise UsageError(f"line {number}: {word.upper()} says nothing")
        found.append((number, word.upper(), value.strip()))
    return found


def _last(word: str, value: str) -> str:
    """The part of a value that may be quoted: behind the name of a parameter, or the role of a message."""
    return value.partition(" ")[2].strip() if word.upper() in ("PARAMETER", "MESSAGE") else value.strip()


def _closed(value: str) -> bool:
    if value.startswith(FENCE):
        return len(value) >= 2 * len(FENCE) and value.endswith(FENCE)
    return not value.startswith('"') or (len(value) > 1 and value.endswith('"'))


def _unquoted(value: str) -> str:
    value = value.strip()
    for mark in (FENCE, '"'):
        if value.startswith(mark) and value.endswith(mark) and len(value) >= 2 * len(mark):
            return value[len(mark) : -len(mark)]
    return value


def _quoted(text: str) -> str:
    """`text` so that it is read back as it is."""
    if "\n" not in text and '"' not in text and text == text.strip() and text:
        return text
    return f"{FENCE}{text}{FENCE}" if '"' in text or "\n" in text else f'"{text}"'


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _first(value: str, complaint: str) -> tuple[str, str]:
    name, _, rest = value.partition(" ")
    if not rest.strip():
        raise UsageError(complaint)
    return name, rest.strip()
