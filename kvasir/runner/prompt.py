"""From a request to the token ids of its prompt: template, tokenizer, and the room there is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile

from kvasir.chat import ChatRequest, Message, ToolCall
from kvasir.checkpoint.open import Checkpoint
from kvasir.errors import ModelError, UsageError
from kvasir.parsers.answer import Family
from kvasir.parsers.families import family_of
from kvasir.records import dataclass
from kvasir.store.made import Made
from kvasir.text import jinja_of
from kvasir.text.infill import Infill
from kvasir.text.template import ChatTemplate, select_template, template_from_folder
from kvasir.text.tokenizer import Tokenizer

ANSWER_SHARE = 4  # a truncated prompt leaves a quarter of the context for the answer
OWN_NAMES = {"self", "messages", "tools", "add_generation_prompt", "think"}  # of what renders a template


@dataclass(frozen=True)
class Prompter:
    """What turns a model's requests into token ids."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    made: Made | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, made: Made | None = None) -> Prompter:
        """The checkpoint's own tokenizer, and its chat template or that of `made`, whose system message and
        messages go before every conversation.  Raises ModelError, CheckpointError.
        """
        tokenizer = tokenizer_of(checkpoint)
        source = jinja_of(made.template) if made and made.template else template_source(checkpoint)
        template = None if source is None else _template(source, tokenizer)
        if template:
            template.warm()
        return cls(tokenizer, template, made)

    def close(self) -> None:
        """Ends the process that renders the template."""
        if self.template:
            self.template.close()

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.tokenizer.eos_ids

    @cached_property
    def family(self) -> Family:
        """How this model marks thoughts and calls."""
        source = self.template.source if self.template else ""
        return family_of(source, lambda mark: self.tokenizer.token_id(mark) is not None)

    def text(self, request: ChatRequest) -> str:
        """The messages as the model's template writes them.  Raises ModelError when it has none."""
        request = self.made.applied(request) if self.made else request
        if self.template is None:
            raise ModelError(
                "this model has no chat template, so it cannot chat",
                hint="send a raw prompt: /api/generate with raw, LLM.generate, or `kvasir run --raw`",
            )
        for name in OWN_NAMES & request.template_values.keys():
            raise UsageError(f"chat template variable {name!r} is set by the server")
        messages, family = request.messages, self.family
        if family.valid_id:
            messages = with_ids(messages, family.valid_id)
        think = request.think
        if isinstance(think, str):
            think = dict(family.levels).get(think, think)
        text = self.template.render(
            messages,
            tools=request.tools if request.tool_choice != "none" else (),
            add_generation_prompt=request.opens_turn and not request.continues,
            think=think,
            **request.template_values,
        )
        return _left_open(text, request.messages[-1].content) if request.continues else text

    def tokens(self, request: ChatRequest, limit: int) -> tuple[list[int], int]:
        """The prompt's token ids, and how many tokens were cut to fit under `limit` (0 unless `truncate`).

        Of a chat the oldest turns go first and the system message stays; of a text, its oldest tokens.
        Raises UsageError, ModelError.
        """
        if request.messages and request.prompt is not None:
            raise UsageError("a request has messages or a prompt, not both")
        whole = self._encode(request)
        if len(whole) < limit or not request.truncate:
            return whole, 0
        room = max(limit - max(limit // ANSWER_SHARE, 1), 1)
        tokens, cut = whole, request
        while (
            len(tokens) > room
            and not request.context
            and (shorter := _without_oldest(cut.messages)) is not None
        ):
            cut = replace(cut, messages=shorter)
            tokens = self._encode(cut)
        if len(tokens) > room:
            bos = [tokens[0]] if tokens[0] == self.tokenizer.bos_id and room > 1 else []
            tokens = bos + tokens[len(tokens) - room + len(bos) :]
        return tokens, len(whole) - len(tokens)

    def held(self, request: ChatRequest, tokens: Sequence[int]) -> int:
        """How many of the prompt's tokens belong to the messages that `request.hold` names, and to what
        stands before them.  0 where the template does not tell.
        """
        if request.hold is None or not request.messages:
            return 0
        if request.hold >= len(request.messages):
            return len(tokens)
        # The next message as a user's without words: most templates want one, and what differs is cut off.
        begun = (*request.messages[: request.hold], Message("user", ""))
        try:
            alone = self._encode(replace(request, messages=begun, opens_turn=False, continues=False))
        except (UsageError, ModelError):
            return 0
        pairs = zip(alone, tokens, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def fitted(self, text: str | Sequence[int], limit: int | None) -> tuple[list[int], int]:
        """The token ids of a text to embed (ids stay as they are), cut to `limit`, and how many went.

        What the tokenizer puts behind every text (SEP) stays.
        """
        tokens = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        over = len(tokens) - limit if limit else 0
        if over <= 0:
            return tokens, 0
        end = len(tokens) - (self.tokenizer.n_suffix if isinstance(text, str) else 0)
        return tokens[: end - over] + tokens[end:], over

    def _encode(self, request: ChatRequest) -> list[int]:
        before = list(request.context)
        if request.messages:
            return before + self.tokenizer.encode(self.text(request), add_special=False)
        if request.suffix:
            return before + self._infilled(request)
        if isinstance(request.prompt, str):
            return before + self.tokenizer.encode(request.prompt, add_special=request.add_special_tokens)
        return before + list(request.prompt or ())

    def _infilled(self, request: ChatRequest) -> list[int]:
        infill = Infill.of(self.tokenizer.token_id)
        if infill is None:
            raise UsageError("suffix: this model has no tokens to fill in the middle", hint="leave it out")
        if not isinstance(request.prompt, str):
            raise UsageError("suffix: it goes with a prompt that is text")
        return infill.tokens(self.tokenizer, request.prompt, request.suffix)


def with_ids(messages: Sequence[Message], valid: str) -> tuple[Message, ...]:
    """The messages with ids of calls that match `valid`, nine letters and digits; others, and those that are
    missing, become such by what they were and where they stood, so that the prompt begins alike next time.
    """
    made: list[Message] = []
    known: dict[str, str] = {}
    waiting: list[str] = []  # ids of calls without a result yet
    for at, message in enumerate(messages):
        if message.tool_calls:
            waiting = []
            calls = list[ToolCall]()
            for n, call in enumerate(message.tool_calls):
                fits = re.fullmatch(valid, call.id)
                digest = hashlib.sha256((call.id or f"{at} {n}").encode("utf-8", "replace")).hexdigest()
                waiting.append(call.id if fits else digest[:9])
                known[call.id] = waiting[-1]
                calls.append(replace(call, id=waiting[-1]))
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            named = known.get(message.tool_call_id) if message.tool_call_id else None
            id = named or (waiting[0] if waiting else "0" * 9)
            waiting = [each for each in waiting if each != id]
            message = replace(message, tool_call_id=id)
        made.append(message)
    return tuple(made)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own tokenizer."""
    if checkpoint.kind == "gguf":
        return Tokenizer.from_gguf(checkpoint.metadata)
    files = checkpoint.folder
    if "tokenizer.json" not in files:
        raise ModelError(
            f"{checkpoint.path} has no tokenizer.json",
            hint="save the model together with its (fast) tokenizer",
        )
    return Tokenizer.from_folder(
        files["tokenizer.json"],
        files.get("tokenizer_config.json"),
        files.get("generation_config.json"),
        files.get("special_tokens_map.json"),
    )


def template_source(checkpoint: Checkpoint) -> str | None:
    """The Jinja source of the checkpoint's chat template, or None.  CheckpointError if it is unreadable."""
    try:
        if checkpoint.kind == "gguf":
            return select_template(checkpoint.metadata.get("tokenizer.chat_template"))
        return template_from_folder(checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent)
    except ModelError:
        return None


def _template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    bos = tokenizer.piece(tokenizer.bos_id) if tokenizer.bos_id is not None else ""
    eos = tokenizer.piece(tokenizer.eos_id) if tokenizer.eos_id is not None else ""
    return ChatTemplate(source, bos, eos)


def _left_open(text: str, content: str) -> str:
    """`text` up to the end of the last message's `content`, which the answer goes on with."""
    for said in (content, content.strip()):
        if said and (at := text.rfind(said)) >= 0:
            return text[: at + len(said)]
    raise UsageError(
        "the last message cannot be continued: the model's template does not show its text",
        hint="give it a text, or ask for an answer of its own",
    )


def _without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Without all before the user's second message but system messages; None if there is no second.

    What remains begins as a conversation does: many templates refuse one that begins with an answer, and the
    result of a tool means nothing without its call.
    """
    asked = [i for i, m in enumerate(messages) if m.role == "user"]
    if len(asked) < 2:
        return None
    return tuple(m for i, m in enumerate(messages) if i >= asked[1] or m.role == "system")
