"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvasir.api.body import decode, typed
from kvasir.api.face import Sent
from kvasir.api.loaded import Loaded
from kvasir.api.openai import wishes
from kvasir.api.openai.completions import prompts_of
from kvasir.api.openai.messages import WireMessage, messages_of, tools_of
from kvasir.api.openai.parts import encode
from kvasir.chat import ChatRequest
from kvasir.checkpoint.open import open_checkpoint
from kvasir.errors import UsageError
from kvasir.runner.prompt import template_source, tokenizer_of
from kvasir.sampling import SamplingParams


class TokenizeBody(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    messages: list[WireMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct):
    model: str | None = None
    tokens: list[int] | None = None


@dataclass(frozen=True)
class Tokenize:
    """The tokens of a prompt or a chat are wanted."""

    model: str
    request: ChatRequest
    tells_pieces: bool = False
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    def answer(self, model: Loaded, load_s: float) -> bytes:
        tokens = list(model.tokenize(self.request))
        pieces = None
        if self.tells_pieces:
            pieces = [piece.decode("utf-8", "replace") for piece in model.spell(tokens).pieces]
        found = {"count": len(tokens), "max_model_len": model.info.context}
        return encode({**found, "tokens": tokens, "token_strs": pieces})


@dataclass(frozen=True)
class Detokenize:
    """The text of tokens is wanted."""

    model: str
    tokens: tuple[int, ...]
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = field(default=())

    def answer(self, model: Loaded, load_s: float) -> bytes:
        return encode({"prompt": model.spell(self.tokens).text if self.tokens else ""})


@dataclass(frozen=True)
class Describe:
    """What a program must know that cuts texts into tokens as the model does."""

    model: str
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()

    def answer(self, model: Loaded, load_s: float) -> bytes:
        checkpoint = open_checkpoint(model.info.path)
        tokenizer = tokenizer_of(checkpoint)
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        marks = {name: None if id is None else tokenizer.piece(id) for name, id in ids.items()}
        found = {"tokenizer_class": "kvasir", "model_max_length": model.info.context, **marks}
        return encode({**found, "chat_template": template_source(checkpoint)})


def parse_describe(sent: Sent) -> Describe:
    """What GET /tokenizer_info asks for; the model may stand in the query."""
    return Describe(sent.query.get("model", ""))


def parse_tokenize(sent: Sent) -> Tokenize:
    """What the body of /tokenize asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise UsageError("prompt is required, or messages, and not both")
    common: Mapping[str, Any] = {"params": SamplingParams()}
    if body.messages is None:
        special = body.add_special_tokens is not False
        request = ChatRequest(prompt=body.prompt, add_special_tokens=special, **common)
    else:
        continues = bool(body.continue_final_message)
        request = ChatRequest(
            messages=messages_of(body.messages),
            tools=tools_of(body.tools, None).tools,
            opens_turn=body.add_generation_prompt is not False and not continues,
            continues=continues,
            template_values=body.chat_template_kwargs or {},
            **common,
        )
    warnings = wishes.told(values, TokenizeBody)
    return Tokenize(body.model or "", request, bool(body.return_token_strs), warnings=warnings)


def parse_detokenize(sent: Sent) -> Detokenize:
    """What the body of /detokenize asks for.  Raises UsageError that names the field."""
    values = decode(sent.body)
    body = typed(values, DetokenizeBody)
    if body.tokens is None:
        raise UsageError("tokens is required: an array of token ids")
    (ids,) = prompts_of(body.tokens, "tokens") if body.tokens else ((),)
    assert not isinstance(ids, str)
    return Detokenize(body.model or "", ids, warnings=wishes.told(values, DetokenizeBody))
