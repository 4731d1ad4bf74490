"""An answer in its parts, from tokens: what `ChatRequest.parse` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvasir.chat import ChatRequest, Delta
from kvasir.grammar.thinking import tail
from kvasir.parsers.answer import Answer, piece
from kvasir.parsers.early import Early
from kvasir.parsers.marks import left_by
from kvasir.parsers.parts import Part, Said, Thought, tools_of
from kvasir.runner.prompt import Prompter
from kvasir.text.stream import Stops, TextStream


class Parsed:
    """One answer's tokens as Deltas (mutable).  Stop strings stop its text, not its thoughts and calls."""

    def __init__(self, prompter: Prompter, request: ChatRequest, prompt: Sequence[int], begin: bool):
        family, tokenizer, params = prompter.family, prompter.tokenizer, request.params
        tools = tools_of(request.tools) if request.tool_choice != "none" else {}
        state = left_by(tail(prompt, tokenizer, family.pair), family.pair)
        self._call_id = family.call_id
        self._answer = Answer(family, tools, state, None if request.parallel_tool_calls else 1)
        self._stops = Stops(params.stops, params.include_stop_str_in_output)
        marks = family.marks if tools or family.run else family.pair  # other special tokens are no text
        known = (tokenizer.token_id(mark) for mark in marks)
        self._stream = TextStream(
            tokenizer,
            skip_special=params.skip_special_tokens,
            begin=begin,
            shown=frozenset(token for token in known if token is not None),
        )
        self._n_calls = 0
        forced = request.tool_choice not in ("auto", "none") and tools and state != "open"
        self._early = Early(family, tools, family.call_id) if forced else None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.stopped

    @property
    def called(self) -> bool:
        """Whether a tool was called."""
        return self._n_calls > 0

    @property
    def full(self) -> bool:
        """Whether nothing more may come: it has all calls that were allowed."""
        return self._answer.full

    def push(self, token_id: int) -> list[Delta]:
        """What is certain once the token is known, in order; often nothing."""
        return self._pushed(self._stream.push(token_id))

    def finish(self, cut: bool = False) -> list[Delta]:
        """What was held back: no more tokens come.  `cut`: there was no room for more."""
        deltas = self._pushed(self._stream.finish())
        if not (self._early and self._early.begun):
            deltas += self._deltas(self._answer.finish(cut))
        rest = self._stops.finish()
        return [*deltas, Delta(rest)] if rest else deltas

    def _pushed(self, text: str) -> list[Delta]:
        parts = self._answer.push(text)
        told = self._early.push(text) if self._early else []
        if self._early and self._early.begun:
            self._n_calls = self._early.n_calls
            return [Delta("", tool_calls=tuple(told))] if told else []
        return self._deltas(parts)

    def _deltas(self, parts: Sequence[Part]) -> list[Delta]:
        """Each with thought before text before calls, so that their order is kept."""
        deltas: list[Delta] = []
        for part in parts:
            if self.stopped is not None:
                break
            last = deltas[-1] if deltas else Delta("")
            if isinstance(part, Thought):
                behind, added = (
                    last.text or last.tool_calls,
                    replace(last, thinking=last.thinking + part.text),
                )
                fresh = Delta("", thinking=part.text)
            elif isinstance(part, Said):
                text = self._stops.push(part.text)
                behind, added = last.tool_calls, replace(last, text=last.text + text)
                fresh = Delta(text)
            else:
                rest, call = self._stops.finish(), piece(self._n_calls, part, self._call_id())
                self._n_calls += 1
                behind = ()
                added = replace(last, text=last.text + rest, tool_calls=(*last.tool_calls, call))
                fresh = Delta(rest, tool_calls=(call,))
                if rest and last.tool_calls:
                    behind = last.tool_calls
            if behind or not deltas:
                deltas.append(fresh)
            else:
                deltas[-1] = added
        return deltas
