"""The process that renders chat templates.  A model's template is a program of a stranger: it runs here, in a
sandbox, with bounded memory, and whoever waits for it kills it when it takes too long.

Started by `kvasir.text.template` as a script; imports nothing of Kvasir.  Speaks in frames on standard input
and output: 4 bytes of length, most significant first, then JSON.  First frame in: {"source", "memory_bytes"};
then {"variables", "limit"} for each rendering.  Frames out: {"ok": text} or {"error": message, "kind":
"template" or "input"}: the first says that the process has started, the second answers the source.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows: the time bound remains
    resource = None  # type: ignore[assignment]


class RaisedByTemplate(TemplateError):
    """What the template said through `raise_exception`: the messages do not suit it."""


class TooLong(Exception):
    """The rendered text is over its bound."""


class Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (the library's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class Arguments(dict[str, Any]):
    """A call's arguments: a mapping for templates that write it as JSON, and JSON for those that add it to
    their text.
    """

    def __str__(self) -> str:
        return tojson(self)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


def with_arguments(messages: Any) -> None:
    """Makes the arguments of the messages' calls `Arguments`, in place."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = Arguments(call["function"]["arguments"])


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as Hugging Face's templates expect it: letters and HTML's marks unescaped, keys in their order."""
    known = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)


def raise_exception(message: str) -> None:
    raise RaisedByTemplate(str(message))


def environment() -> Environment:
    """The sandbox with what Hugging Face's templates may use."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, Generation],
        optimized=False,  # else constants are worked out while compiling
    )
    made.intercepted_binops = frozenset({"*", "**"})  # nor does writing out a constant work them out early
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def joined(pieces: Any, limit: int) -> str:
    """The text of the pieces, at most `limit` letters."""
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooLong
        parts.append(piece)
    return "".join(parts)


def reply(work: Callable[[], str]) -> dict[str, str]:
    """What the work gives, or its failure in one line."""
    try:
        return {"ok": work()}
    except RaisedByTemplate as error:
        return {"error": str(error), "kind": "input"}
    except TooLong:
        return {"error": "its text is over the size limit", "kind": "template"}
    except MemoryError:
        return {"error": "it needs too much memory", "kind": "template"}
    except RecursionError:
        return {"error": "it recurses too deeply", "kind": "template"}
    except SecurityError as error:
        return {"error": f"it does what the sandbox forbids: {error}", "kind": "template"}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}", "kind": "template"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500], "kind": "template"}


def read_frame(stream: BinaryIO) -> Any:
    """The next frame, None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return json.loads(stream.read(int.from_bytes(head, "big")))


def write_frame(stream: BinaryIO, value: Any) -> None:
    body = json.dumps(value).encode()
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def bound_memory(n_bytes: int) -> None:
    """Lets the process take `n_bytes` more address space than it has now."""
    if resource is None:
        return
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        now = 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answers frames until the stream ends."""
    write_frame(stdout, {"ok": ""})
    start = read_frame(stdin)
    if start is None:
        return
    bound_memory(start["memory_bytes"])
    compiled: list[Template] = []

    def compile_source() -> str:
        compiled.append(environment().from_string(start["source"]))
        return ""

    write_frame(stdout, reply(compile_source))
    while compiled and (request := read_frame(stdin)) is not None:
        pieces = compiled[0].generate
        variables, limit = request["variables"], request["limit"]
        with_arguments(variables["messages"])
        answer = reply(lambda: joined(pieces(**variables), limit))  # noqa: B023 (called at once)
        write_frame(stdout, answer)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
