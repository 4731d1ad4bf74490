"""How a model is made of another: what is wanted, what is refused, and what is said meanwhile.

/api/create and `kvasir create` both end here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvasir.api.errors import Wrong
from kvasir.api.options import IDLE, NUMBERS, parse_options
from kvasir.api.words import json_name
from kvasir.chat import Message
from kvasir.checkpoint.adapters import open_adapter
from kvasir.checkpoint.open import open_checkpoint
from kvasir.errors import KvasirError, UsageError
from kvasir.runner.inspect import describe
from kvasir.runner.prompt import template_source
from kvasir.store import library
from kvasir.store.blobs import DIGEST
from kvasir.store.made import Made, Turn
from kvasir.store.names import find, models_folder
from kvasir.text.gotemplate import jinja_of
from kvasir.text.template import ChatTemplate

MAX_TEXT = 1 << 20  # characters of a system message, a template, a license


@dataclass(frozen=True)
class Wish:
    """A model to be made: of `base` (a name, or a path that its owner gave), or of `files` (name -> digest of
    a blob).  What is None or empty stays as the base has it.
    """

    name: str
    base: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Turn, ...] | None = None
    license: tuple[str, ...] = ()
    adapter: str = ""


def make(wish: Wish) -> Iterator[str]:
    """Makes the model, and tells at what it is.  Raises KvasirError, and leaves nothing then."""
    name = library.destination(wish.name)
    for what, text in (
        ("template", wish.template),
        ("system", wish.system),
        *(("license", t) for t in wish.license),
    ):
        if text and len(text) > MAX_TEXT:
            raise Wrong(f"{what} has {len(text):,} characters, the limit is {MAX_TEXT:,}", param=what)
    if wish.files:
        made = Made(library.folder_of(wish.files))
        yield "parsing GGUF" if any(n.endswith(".gguf") for n in wish.files) else "parsing safetensors"
    else:
        made = library.based_on(find(wish.base))
    made = merged(made, wish)
    _must_fit(made, wish.base or wish.name)
    for digest in sorted(set(wish.files.values())):
        yield f"using existing layer {digest.replace('-', ':')}"
    yield "writing manifest"
    library.write(name, made)
    yield "success"


def merged(made: Made, wish: Wish) -> Made:
    """`made` with what is wished.  Raises UsageError for parameters that are none."""
    return replace(
        made,
        template=made.template if wish.template is None else wish.template,
        system=made.system if wish.system is None else wish.system,
        parameters={**made.parameters, **checked(wish.parameters)},
        adapter=wish.adapter or made.adapter,
        messages=made.messages if wish.messages is None else wish.messages,
        license=(*made.license, *(text for text in wish.license if text not in made.license)),
    )


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that a request may have as options.  Raises UsageError with the nearest name."""
    known = (*NUMBERS, *IDLE, "stop")
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join((*NUMBERS, 'stop'))}"
            raise Wrong(f"the parameter {name[:40]!a} is unknown", hint=hint, param="parameters")
    values = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    parse_options(values)
    return values


def read_words(parameters: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Parameters as a Modelfile writes them, as values.  Raises UsageError for a number that is none."""
    found: dict[str, Any] = {}
    for name, words in parameters.items():
        if name == "stop":
            found[name] = list(words)
        elif IDLE.get(name) is bool:
            found[name] = {"true": True, "false": False}.get(words[-1].lower(), words[-1])
        else:
            found[name] = _number(name, words[-1])
    return found


def turns(messages: object) -> tuple[Turn, ...] | None:
    """The `messages` of a body.  Raises UsageError that names the field."""
    if messages is None:
        return None
    if not isinstance(messages, list):
        raise Wrong(f"messages must be of type array, got {json_name(messages)}", param="messages")
    found = []
    for i, each in enumerate(messages):
        role = each.get("role") if isinstance(each, dict) else None
        content = each.get("content", "") if isinstance(each, dict) else None
        if not isinstance(role, str) or role.lower() not in ("system", "user", "assistant"):
            raise Wrong(f"messages[{i}].role must be one of system, user, assistant", param="messages")
        if not isinstance(content, str):
            raise Wrong(f"messages[{i}].content must be of type string", param="messages")
        if extra := [k for k in ("images", "tool_calls") if each.get(k)]:
            raise Wrong(f"messages[{i}].{extra[0]} is not supported here", param="messages")
        found.append(Turn(role.lower(), content))
    return tuple(found)


def _must_fit(made: Made, base: str) -> None:
    """Raises KvasirError unless there is a model behind it, called `base`, that can do what is added."""
    path = find_weights(made)
    info = describe(path)
    if made.template:
        check_template(made.template)
    if made.adapter:
        open_adapter(made.adapter)
    writes = "completion" in info.capabilities
    if not writes and (made.system or made.messages or made.template or made.adapter):
        raise UsageError(
            f"{base} is an embedding model, so it takes no system message, messages, template or adapter"
        )
    needs = writes and (made.system or made.messages) and not made.template
    if needs and template_source(open_checkpoint(info.path)) is None:
        raise UsageError(
            f"{base} has no chat template, so a system message and messages have no place",
            hint="give a template too",
        )


def find_weights(made: Made) -> str:
    """Under which name or path the weights can be opened."""
    return str(models_folder() / made.weights) if "/" in made.weights else made.weights


def check_template(source: str) -> None:
    """Raises UsageError for a template that cannot write a short conversation."""
    template = ChatTemplate(jinja_of(source))
    try:
        asked = (
            Message("system", "a"),
            Message("user", "b"),
            Message("assistant", "c"),
            Message("user", "d"),
        )
        try:
            template.render(asked, tools=(), add_generation_prompt=True, think=None)
        except KvasirError:
            template.render(asked[1:2], tools=(), add_generation_prompt=True, think=None)
    except KvasirError as error:
        raise Wrong(f"template: {error.message}", hint=error.hint, param="template") from None
    finally:
        template.close()


def _number(name: str, word: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def is_digest(text: object) -> bool:
    """Whether `text` names a blob."""
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None
