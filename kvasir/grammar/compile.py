"""Constraints made ready for one model's vocabulary, and kept for those who come with the same one."""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from kvasir import child, faults
from kvasir.errors import CapacityError, UsageError
from kvasir.grammar import lark_of
from kvasir.grammar.guide import Ends, Guide, reason
from kvasir.grammar.schema import narrowed
from kvasir.grammar.thinking import Thinking
from kvasir.structured import Constraint
from kvasir.text.tokenizer import Tokenizer

CHECK_S = 3.0
START_S = 20.0
MAX_KEPT = 32
# What one grammar may cost: work for the first state, work a token, states and symbols kept.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 300_000,
    "verbose_errors": False,
}
# Between the parts of a JSON text.  Bounded: a model may otherwise write spaces until its context is full.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"
MARK = "\x02"  # before a text whose ids must not begin with the space that SentencePiece adds
JSON_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,
}


@cache
def library() -> Any:
    """llguidance, loaded at the first constraint: it costs 0.1 s that no other start should pay."""
    return importlib.import_module("llguidance")


class Grammars:
    """The constraints of one model (mutable, thread-safe).

    `n_vocab` is the width of its logits.  The vocabulary is handed over at the first constraint.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, eos_ids: frozenset[int]):
        self._tokenizer, self._ends = tokenizer, Ends(n_vocab, frozenset(i for i in eos_ids if i < n_vocab))
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._thinking: Thinking | None = None
        self._kept: OrderedDict[Constraint, Any] = OrderedDict()
        self._checker = Checker()

    def guide(
        self,
        constraint: Constraint,
        prompt: Sequence[int],
        think: bool | str | None,
        thinks_within: bool = False,
    ) -> Guide:
        """A guide for one answer to `prompt`.  Compiles, so: not on a thread that others wait for.

        `thinks_within`: the constraint has a place for thoughts, and binds from the first token.
        Raises UsageError with the reason for what does not compile, costs too much or allows no answer.
        """
        again = self._compiled(constraint).deep_copy
        thinking = self._thinking if not thinks_within else None
        state = thinking.after(prompt, self._tokenizer) if thinking else "closed"
        if state == "may" and think is False:
            state = "closed"
        renew, markers = partial(self._renewed, constraint), self._markers(constraint)
        return Guide(again(), self._ends, constraint.noun, thinking, state, renew, markers, again)

    def close(self) -> None:
        """Ends the process that checks; a later constraint starts it again."""
        self._checker.close()

    def _markers(self, constraint: Constraint) -> frozenset[int]:
        """The tokens that a grammar names as such."""
        if constraint.kind not in ("lark", "tools"):
            return frozenset()
        named = {int(token) for token in re.findall(r"<\[([0-9]{1,9})\]>", constraint.text)}
        special = {i for i in range(self._tokenizer.n_vocab) if self._tokenizer.special(i)}
        return frozenset(named | (special if constraint.kind == "lark" else set()))

    def _compiled(self, constraint: Constraint) -> Any:
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint]
        made = self._compile(constraint)
        with self._lock:
            self._kept[constraint] = made
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return made

    def _compile(self, constraint: Constraint) -> Any:
        faults.reach("runner.grammar")
        source = source_of(constraint)
        ours = constraint.kind in ("json", "choice")
        if fault := "" if ours else self._checker.fault(source):
            raise UsageError(f"{constraint.noun} is refused: {reason(fault)}")
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary(self._tokenizer, self._ends)
                self._thinking = Thinking.of(self._tokenizer)
        made = self._native(source)
        if made.is_error():
            raise UsageError(f"{constraint.noun} is refused: {reason(made.get_error())}")
        try:
            first = Guide(made.deep_copy(), self._ends, constraint.noun).allowed()
        except UsageError:
            raise UsageError(f"{constraint.noun} allows no answer that this model can write") from None
        first[list(self._ends.ids)] = False
        if not first.any():
            raise UsageError(f"{constraint.noun} allows no answer but an empty one")
        return made

    def _native(self, source: str) -> Any:
        limits = library().LLParserLimits(**LIMITS)
        return library().LLMatcher(self._vocabulary, source, log_level=0, limits=limits)

    def _renewed(self, constraint: Constraint) -> Any:
        """A matcher that shares nothing with others; nor will those that come from now on."""
        with self._lock:
            self._kept.pop(constraint, None)
        return self._native(source_of(constraint))


def source_of(constraint: Constraint) -> str:
    """The constraint as llguidance takes it.  Raises UsageError."""
    matcher, text = library().LLMatcher, constraint.text
    try:
        if constraint.kind in ("json", "schema"):
            schema = narrowed(text) if text else '{"type": "object"}'
            made = matcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        elif constraint.kind == "regex":
            made = matcher.grammar_from_regex(text)
        elif constraint.kind == "choice":
            one_of = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in constraint.choices)
            made = matcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {one_of}")
        else:
            made = matcher.grammar_from_lark(lark_of(text) if constraint.kind == "gbnf" else text)
    except ValueError as error:
        raise UsageError(f"{constraint.noun} is refused: {reason(str(error))}") from None
    return str(made)


def vocabulary(tokenizer: Tokenizer, ends: Ends) -> Any:
    """llguidance's tokenizer: the bytes of each token; markers are no text and match no text."""
    return library().LLTokenizer(_Spelled(tokenizer, ends), n_vocab=ends.n_native, eos_token=ends.native_ids)


class _Spelled:
    """What llguidance's LLTokenizer asks of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, ends: Ends):
        n_vocab = min(tokenizer.n_vocab, ends.n_vocab)
        self.tokens = tokenizer.spellings()[:n_vocab] + [b""] * (ends.n_native - n_vocab)
        self.special_token_ids = sorted({i for i in range(n_vocab) if tokenizer.special(i)} | ends.ids)
        self.eos_token_id = ends.native_ids[0]
        self.bos_token_id = tokenizer.bos_id if (tokenizer.bos_id or 0) < n_vocab else None
        self._tokenizer = tokenizer
        self._id_of: dict[bytes, int] | None = None
        self._n_longest = 0

    def __call__(self, text: str) -> list[int]:
        """The ids of a text that continues another, for what a grammar forces; their bytes are the text's.

        SentencePiece puts a space before a text, so another letter stands in the way and goes again.  Where
        a normalizer changes the text, the longest tokens are taken from the left.
        """
        before = MARK if self._tokenizer.strips_space else ""
        ids = self._tokenizer.encode(before + text, add_special=False, parse_special=False)
        want, spelled = text.encode(), [self.tokens[i] if i < len(self.tokens) else b"" for i in ids]
        while ids and len(b"".join(spelled)) > len(want):
            ids, spelled = ids[1:], spelled[1:]
        return ids if b"".join(spelled) == want else self._longest(want)

    def _longest(self, text: bytes) -> list[int]:
        if self._id_of is None:
            special = set(self.special_token_ids)
            self._id_of = {t: i for i, t in enumerate(self.tokens) if t and i not in special}
            self._n_longest = max(map(len, self._id_of), default=0)
        found, at = list[int](), 0
        while at < len(text):
            sizes = range(min(self._n_longest, len(text) - at), 0, -1)
            size = next((n for n in sizes if text[at : at + n] in self._id_of), 0)
            if not size:
                break
            found.append(self._id_of[text[at : at + size]])
            at += size
        return found


class Checker:
    """The process of check.py (mutable, thread-safe): starts at the first check, ends when too slow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fault(self, source: str) -> str:
        """What is wrong with a grammar, empty if nothing is."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()
            fresh = self._process is None
            process = self._process = self._process or _start()
            assert process.stdin is not None and process.stdout is not None
            try:
                if fresh:
                    self._ask(process, json.dumps(LIMITS), START_S)
                return self._ask(process, source, CHECK_S)
            except TimeoutError:
                self._end()
                return f"it takes over {CHECK_S:.0f} s to compile"
            except (OSError, EOFError):
                self._end()
                return "it is too deep or too large to compile"
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, process: subprocess.Popen[bytes], source: str, seconds: float) -> str:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None
        deadline, answer = time.monotonic() + seconds, b""
        stdin.write(json.dumps(source).encode() + b"\n")
        stdin.flush()
        while not answer.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError
            answer += piece
        return str(json.loads(answer))

    def _end(self) -> None:
        if self._process is not None:
            child.end(self._process)
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    wanted = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("check.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in wanted if name in os.environ},
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
    except OSError as error:
        raise CapacityError(f"the process that checks grammars does not start: {error}") from None
