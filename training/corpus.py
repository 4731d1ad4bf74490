"""The corpus files: reading, checking, and what the records are.

`python -m training.corpus --check` prints counts and duplicates; it ends with status 1 when a file is wrong.
The formats are described in training/README.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.phrasing import normalized

Message = dict[str, Any]

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
HELDOUT = HERE / "heldout.txt"
TALK_FILES = {"unknown", "manners", "stories", "json"}
DIALOGUE_FILE, TOOL_FILE = "dialogues", "tools"


class CorpusError(Exception):
    """A corpus file that does not follow the format. The message names file, line, record and fault."""


@dataclass(frozen=True)
class Place:
    """Where a record stands: its file and the 1-based line it begins at."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}.txt:{self.line}"


@dataclass(frozen=True)
class Fact:
    """A question in several phrasings with its one answer."""

    place: Place
    topic: str | None
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation: an optional system text, then turns; user first, then alternating."""

    place: Place
    system: str | None
    turns: tuple[str, ...]


@dataclass(frozen=True)
class ToolUse:
    """A question asked with tools at hand; `call` is None where no tool is needed."""

    place: Place
    tools: tuple[dict[str, Any], ...]
    system: str | None
    question: str
    call: dict[str, Any] | None
    result: str | None
    answer: str | None


@dataclass(frozen=True)
class Corpus:
    """All records; `facts` by the name of their file (facts, stories, manners and so on)."""

    facts: dict[str, list[Fact]]
    dialogues: list[Dialogue]
    tools: list[ToolUse]

    def all_facts(self) -> Iterator[Fact]:
        """Every q/a record of every file."""
        for records in self.facts.values():
            yield from records


@dataclass(frozen=True)
class Check:
    """A held-out question: an answer is right when each group has an alternative that occurs in it."""

    question: str
    groups: tuple[tuple[str, ...], ...]


def read_lines(path: Path) -> Iterator[tuple[Place, list[tuple[str, str]]]]:
    """Each record of a file as its place and its (label, text) lines; "\\n" in a text becomes a newline."""
    lines: list[tuple[str, str]] = []
    first = 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").split("\n"), ""], start=1):
        line = line.strip()
        if not line:
            if lines:
                yield Place(path.stem, first), lines
            lines = []
            continue
        label, colon, text = line.partition(":")
        if not colon or not label.isalpha() or not text.strip():
            raise CorpusError(f"{path.name}:{number}: want `label: text`, got {line[:60]!r}")
        if not line.isascii():
            odd = next(c for c in line if not c.isascii())
            raise CorpusError(f"{path.name}:{number}: only ASCII, found {odd!r} in {line[:60]!r}")
        if not lines:
            first = number
        lines.append((label, text.strip().replace("\\n", "\n")))


def parse_fact(place: Place, lines: list[tuple[str, str]]) -> Fact:
    """A q/a record: an optional topic, one or more q, exactly one a."""
    topics = [text for label, text in lines if label == "topic"]
    questions = [text for label, text in lines if label == "q"]
    answers = [text for label, text in lines if label == "a"]
    if len(topics) + len(questions) + len(answers) != len(lines):
        raise CorpusError(f"{place}: only topic, q and a belong here, got {[label for label, _ in lines]}")
    if len(topics) > 1 or not questions or len(answers) != 1:
        raise CorpusError(
            f"{place}: want at most one topic, some q, one a; "
            f"got {len(topics)}, {len(questions)}, {len(answers)}"
        )
    return Fact(place, topics[0] if topics else None, tuple(dict.fromkeys(questions)), answers[0])


def parse_dialogue(place: Place, lines: list[tuple[str, str]]) -> Dialogue:
    """A dialogue record: an optional s, then u and a in turn, ending with a."""
    system = None
    if lines[0][0] == "s":
        system, lines = lines[0][1], lines[1:]
    labels = [label for label, _ in lines]
    if not labels or labels != ["u", "a"] * (len(labels) // 2):
        raise CorpusError(f"{place}: want u, a, u, a, ...; got {labels}")
    return Dialogue(place, system, tuple(text for _, text in lines))


def parse_tool_use(place: Place, lines: list[tuple[str, str]]) -> ToolUse:
    """A tools record: tools, u, then call [and result and a], or a alone."""
    fields = dict(lines)
    labels = [label for label, _ in lines if label != "s"]
    if labels not in (["tools", "u", "call", "result", "a"], ["tools", "u", "a"], ["tools", "u", "call"]):
        raise CorpusError(f"{place}: want tools, u, [call, result,] a; got {labels}")
    try:
        tools = json.loads(fields["tools"])
        call = json.loads(fields["call"]) if "call" in fields else None
    except json.JSONDecodeError as error:
        raise CorpusError(f"{place}: not JSON: {error}") from None
    names = {tool["function"]["name"] for tool in tools}
    if call is not None:
        if set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
            raise CorpusError(f"{place}: call wants name and arguments, got {call}")
        if call["name"] not in names:
            raise CorpusError(f"{place}: {call['name']} is not among the tools {sorted(names)}")
    return ToolUse(
        place, tuple(tools), fields.get("s"), fields["u"], call, fields.get("result"), fields.get("a")
    )


def read_corpus(folder: Path = CORPUS) -> Corpus:
    """All files of the folder; which format a file has is told by its name."""
    facts: dict[str, list[Fact]] = {}
    dialogues: list[Dialogue] = []
    tools: list[ToolUse] = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem == DIALOGUE_FILE:
            dialogues = [parse_dialogue(*record) for record in read_lines(path)]
        elif path.stem == TOOL_FILE:
            tools = [parse_tool_use(*record) for record in read_lines(path)]
        else:
            facts[path.stem] = [parse_fact(*record) for record in read_lines(path)]
    if not facts:
        raise CorpusError(f"{folder}: no corpus files")
    return Corpus(facts, dialogues, tools)


def read_heldout(path: Path = HELDOUT) -> list[Check]:
    """The held-out questions with the keys of a right answer; empty when the file is not there."""
    if not path.exists():
        return []
    checks = []
    for place, lines in read_lines(path):
        if [label for label, _ in lines] != ["q", "keys"]:
            raise CorpusError(f"{place}: want q, keys; got {[label for label, _ in lines]}")
        groups = tuple(
            tuple(key.strip().lower() for key in group.split("|")) for group in lines[1][1].split(";")
        )
        checks.append(Check(lines[0][1], groups))
    return checks


def duplicates(corpus: Corpus) -> list[str]:
    """A line for each topic or question that stands in two records with different answers."""
    found = []
    seen: dict[str, Fact] = {}
    for fact in corpus.all_facts():
        own = {normalized(question) for question in fact.questions}
        if fact.topic:
            own.add("topic " + normalized(fact.topic))
        for text in sorted(own):
            other = seen.setdefault(text, fact)
            if other is not fact:
                found.append(f"{fact.place} and {other.place}: {text}")
    return found


def check(corpus: Corpus) -> int:
    """Prints counts and duplicates; the number of duplicates."""
    for name, records in corpus.facts.items():
        words = [len(record.answer.split()) for record in records]
        print(
            f"{name:14} {len(records):5} records  {sum(len(r.questions) for r in records):5} questions  "
            f"{sum(r.topic is not None for r in records):4} topics  "
            f"answer words {min(words)} to {max(words)}, mean {sum(words) / len(words):.0f}"
        )
    print(f"{DIALOGUE_FILE:14} {len(corpus.dialogues):5} records")
    print(
        f"{TOOL_FILE:14} {len(corpus.tools):5} records  "
        f"{sum(use.call is not None for use in corpus.tools):5} with a call"
    )
    twice = duplicates(corpus)
    for line in twice:
        print("twice:", line)
    held = {normalized(item.question) for item in read_heldout()}
    hits = [
        f"{fact.place}: {question}"
        for fact in corpus.all_facts()
        for question in fact.questions
        if normalized(question) in held
    ]
    print(f"held out: {len(held)} questions; {len(hits)} q lines of the corpus excluded for them")
    for line in hits:
        print("excluded:", line)
    return len(twice)


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print counts and duplicates")
    parser.parse_args()
    try:
        return 1 if check(read_corpus()) else 0
    except CorpusError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
