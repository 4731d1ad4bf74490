"""A loaded model: tokenizer, template and engine, wired together, with a thread that steps."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

from kvasir import faults
from kvasir.backends.base import BLOCK, Backend, Memory
from kvasir.backends.cpu import CpuBackend
from kvasir.backends.cpu_check import CheckedBackend
from kvasir.backends.packed import Packed, cache_folder, source_of
from kvasir.backends.reference import Reference
from kvasir.chat import ChatRequest, Delta, Embedding, Finished, FinishReason, Spelled
from kvasir.checkpoint.open import Checkpoint, open_checkpoint
from kvasir.engine.draft_model import ModelDrafter
from kvasir.engine.engine import Engine, Token
from kvasir.engine.sequence import Sequence
from kvasir.engine.stats import Stats
from kvasir.errors import Bug, CapacityError, KvasirError, UsageError
from kvasir.grammar.compile import Grammars
from kvasir.models import build
from kvasir.native import kernels
from kvasir.plan import Plan
from kvasir.plan.show import KV_BYTES
from kvasir.runner.inspect import ModelInfo, info
from kvasir.runner.parsed import Parsed
from kvasir.runner.prompt import Prompter, tokenizer_of
from kvasir.runner.pulse import Pacer, Pulse
from kvasir.runner.stream import Stream
from kvasir.runner.watch import watched
from kvasir.settings import KV_FORMATS, Settings, read_settings
from kvasir.store.names import find
from kvasir.text.stream import TextStream
from kvasir.text.tokenizer import Tokenizer

MAX_SEQUENCES = 64  # answers computed at the same time; more wait their turn
DEFAULT_CONTEXT = 32768  # positions, for models that name no limit
CACHE_SEQUENCES = 8  # the cache is sized for as many sequences of full length, if memory allows


@dataclass(eq=False)
class _Answer:
    """One sequence with its text so far.  Mutable; touched by the engine's thread alone."""

    sequence: Sequence
    text: TextStream | Parsed
    stream: Stream


@dataclass
class _Inbox:
    """What other threads want of the engine's thread.  Mutable; guarded by the model's condition."""

    new: list[list[_Answer]] = field(default_factory=list)
    cancelled: list[Stream] = field(default_factory=list)
    closing: bool = False


class Model:
    """One loaded model with an engine thread of its own.  Thread-safe."""

    def __init__(self, info: ModelInfo, prompter: Prompter, engine: Engine, load_s: float):
        self.info, self.prompter, self.load_s = info, prompter, load_s
        self._engine = engine
        self._grammars = Grammars(prompter.tokenizer, engine.n_logits, engine.eos_ids)
        self._answers: dict[Sequence, _Answer] = {}
        self._inbox, self._changed = _Inbox(), threading.Condition()
        self._step_lock = threading.Lock()
        self.pacer = Pacer()
        self._thread = threading.Thread(target=self._run, name=f"engine {info.name}", daemon=True)
        self._thread.start()
        # A thread that is still inside a step when the interpreter ends takes the process down with it.
        atexit.register(self.close)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        backend: str = "cpu",
        threads: int | None = None,
        context: int | None = None,
        n_blocks: int | None = None,
        kv_format: str | None = None,
        draft: str | None = None,
        progress: Callable[[str], None] = lambda stage: None,
    ) -> Model:
        """Opens, checks, repacks and starts the model called `name`.

        `context` caps the positions of every sequence below the model's own; `n_blocks` sizes the KV cache in
        blocks of 16 tokens (default: by the memory there is).  `draft` names a smaller model with the same
        vocabulary that guesses tokens to come; without it the text so far does.
        Raises UsageError, ModelError, CheckpointError, CapacityError; nothing that was started is left then.
        """
        if context is not None and context < 0:
            raise UsageError(f"a context of {context} tokens makes no sense")
        start, switches = perf_counter(), read_settings()
        file = find(name)
        progress("reading the file")
        checkpoint = open_checkpoint(file.path)
        plan, weights = build(checkpoint, context)
        if context:
            plan.context = min(context, plan.context or context)
        # Before the vocabulary is read: pages of packed weights are mapped meanwhile.
        packed = packed_for(checkpoint, switches) if backend == "cpu" else None
        prompter = Prompter.of(checkpoint, file.made)
        try:
            memory = memory_for(plan, kv_format or switches.kv, n_blocks, switches.cache_gb)
            progress("repacking the weights")
            faults.reach("runner.repack")
            runs_on = backend_named(backend, threads, switches.check, packed)
            program = runs_on.compile(plan, weights, memory)
            drafter: ModelDrafter | Literal["ngram"] = "ngram"
            if draft:
                drafter = draft_model(draft, prompter.tokenizer, runs_on, memory)
            engine = Engine(
                watched(program, weights, switches.debug), prompter.eos_ids, MAX_SEQUENCES, drafter=drafter
            )
            model = cls(info(file, checkpoint, plan), prompter, engine, perf_counter() - start)
        except BaseException:  # Ctrl-C included
            prompter.close()
            raise
        if switches.debug:
            print(f"kvasir: loaded {model.info.name} in {model.load_s:.3f} s, {memory}", file=sys.stderr)
        return model

    def submit(self, request: ChatRequest) -> Stream:
        """Queues a request; its answers come through the stream.

        Raises UsageError (a prompt that is empty or over the context, ...), ModelError (a chat without a
        template, a template that fails), CapacityError (the model is being unloaded).
        """
        if self.is_embedding:
            raise UsageError(f"{self.info.name} is an embedding model and writes no text", hint="use embed")
        limit = self._engine.limit(request.max_context)
        tokens, n_truncated = self.prompter.tokens(request, limit)
        stream = Stream(request.params.n, tuple(tokens), self._cancel, n_truncated)
        params, form = request.params, request.params.constraint
        think = request.think if request.messages else bool(request.think)  # a bare text asks for no thought
        answers = []
        for index in range(params.n):
            guide = self._grammars.guide(form, tokens, think) if form else None
            sequence = self._engine.sequence(
                tokens, params, request.max_context, index, n_truncated,
                tenant=request.tenant, priority=request.priority, guide=guide,
            )  # fmt: skip
            text = self._text(request, tokens)
            answers.append(_Answer(sequence, text, stream))
        with self._changed:
            if self._inbox.closing:
                raise CapacityError(f"{self.info.name} is being unloaded", hint="try again")
            self._inbox.new.append(answers)
            self._changed.notify()
        return stream

    def _text(self, request: ChatRequest, tokens: list[int]) -> TextStream | Parsed:
        if request.parse:
            return Parsed(self.prompter, request, tokens)
        params = request.params
        return TextStream(
            self.prompter.tokenizer,
            params.stops,
            params.include_stop_str_in_output,
            params.skip_special_tokens,
            # A constrained answer has no space but its own.
            bool(request.messages) and params.constraint is None,
        )

    def embed(self, texts: list[str]) -> list[list[float]]:
        """One embedding [D] a text, as the model's pooling gives it (not normalized).

        Raises UsageError for a model that gives none, and for a text that is empty or over the context.
        """
        return [each.values for each in self.embeddings(texts)]

    def embeddings(self, inputs: Row[str | Row[int]], truncate: bool = False) -> list[Embedding]:
        """One embedding an input: a text, or token ids as they are.

        With `truncate` the end of an input over the context goes.  Raises what `embed` raises.
        """
        if not self.is_embedding:
            raise UsageError(
                f"{self.info.name} writes text and gives no embeddings", hint="use an embedding model"
            )
        limit = self._engine.limit()
        cut = [self.prompter.fitted(each, limit if truncate else None) for each in inputs]
        found: list[Embedding] = []
        for tokens, n_truncated in cut:
            faults.reach("runner.embed")
            with self._step_lock, self.pacer.step():  # others may come between two texts
                values = self._engine.embed([tokens])[0].tolist()
            found.append(Embedding(values, len(tokens), n_truncated))
        return found

    def tokenize(self, request: ChatRequest) -> list[int]:
        """The token ids of the request's whole prompt, whether or not the context holds it.

        Raises UsageError (messages that the template refuses), ModelError (a chat without a template).
        """
        return self.prompter.tokens(replace(request, truncate=False), 0)[0]

    def spell(self, token_ids: Row[int]) -> Spelled:
        """Token ids as text.  Raises UsageError for ids that the vocabulary lacks."""
        tokenizer = self.prompter.tokenizer
        if bad := [i for i in token_ids if not 0 <= i < tokenizer.n_vocab]:
            raise UsageError(f"token id {bad[0]} is not in the vocabulary of {tokenizer.n_vocab}")
        return Spelled(tokenizer.decode(token_ids), tuple(tokenizer.token_bytes(i) for i in token_ids))

    @property
    def is_embedding(self) -> bool:
        return "embedding" in self.info.capabilities

    @property
    def has_template(self) -> bool:
        return self.prompter.template is not None

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return not self._inbox.closing

    @property
    def own_bytes(self) -> int:
        """Memory that would be free without it: not known, in a process with others."""
        return 0

    @property
    def pulse(self) -> Pulse:
        """How the engine's thread is doing."""
        pool = self._engine.pool
        return self.pacer.pulse(len(self._answers), pool.n_free + pool.n_idle, pool.n_blocks)

    def token_bytes(self, token_id: int) -> bytes:
        """How a token is spelled."""
        return self.prompter.tokenizer.token_bytes(token_id)

    @property
    def referenced(self) -> frozenset[str]:
        """Kinds of ops that run as their reference because the backend has no kernel for them."""
        return self._engine.program.referenced()

    def close(self) -> None:
        """Ends every answer under way and the thread.  Any number of times, and from any thread."""
        atexit.unregister(self.close)
        with self._changed:
            self._inbox.closing = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.prompter.close()
        self._grammars.close()

    def stats(self) -> Stats:
        """What the engine has done and how full it is.  From any thread, at any time."""
        return self._engine.stats()

    def check(self) -> None:
        """Raises Bug unless every cache block is accounted for.  Only while idle."""
        with self._step_lock:
            self._engine.check()

    # -- the engine's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (
                    self._engine.has_work or self._inbox.new or self._inbox.cancelled or self._inbox.closing
                ):
                    self._changed.wait()
                inbox, self._inbox = self._inbox, _Inbox(closing=self._inbox.closing)
            with self._step_lock:
                if inbox.closing:
                    self._abort(lambda _: True)
                    for answers in inbox.new:
                        answers[0].stream.put(
                            CapacityError(f"{self.info.name} was unloaded", hint="try again")
                        )
                    return
                with self.pacer.step():
                    self._turn(inbox)

    def _turn(self, inbox: _Inbox) -> None:
        """Takes in what came, drops what was cancelled, and computes one step."""
        for answer in (a for answers in inbox.new for a in answers):
            self._answers[answer.sequence] = answer
            self._engine.add(answer.sequence)
        if inbox.cancelled:
            self._abort(lambda a: a.stream in inbox.cancelled)
        try:
            if faults.armed() and self._answers:
                self._reach()
            for token in self._engine.step():
                self._deliver(token)
        except Exception as e:  # whatever broke the step must reach its clients, and must not end the thread
            error = e if isinstance(e, KvasirError) else Bug(f"a step of {self.info.name} failed: {e!r}")
            if isinstance(e, MemoryError):
                error = CapacityError(
                    f"no memory was left for a step of {self.info.name}", hint="ask for less"
                )
            for stream in {a.stream for a in self._answers.values()}:
                stream.put(error)
            self._abort(lambda _: True, tell=False)

    def _reach(self) -> None:
        """Passes the fault points of a step."""
        fresh = any(a.sequence.n_generated == 0 for a in self._answers.values())
        faults.reach("runner.step")
        faults.reach("runner.prefill" if fresh else "runner.decode")

    def _deliver(self, token: Token) -> None:
        answer = self._answers.get(token.sequence)
        if answer is None:  # a stop string ended it in the middle of a step's tokens, or its request failed
            return
        if token.error:
            answer.stream.put(token.error)
            self._abort(lambda a: a.stream is answer.stream, tell=False)
            return
        ends = self._engine.eos_ids - frozenset(token.sequence.params.stop_token_ids)
        last = token.finished == "stop" and token.token_id in ends
        deltas = [] if last else _deltas(answer.text.push(token.token_id))
        reason = token.finished
        if reason and answer.text.stopped is None:
            deltas += _deltas(answer.text.finish())
        if answer.text.stopped is not None:
            reason = "stop"
        elif isinstance(answer.text, Parsed) and (
            answer.text.full or (reason == "stop" and answer.text.called)
        ):
            reason = "tool_calls"
        logprobs, index = (token.logprob,) if token.logprob else (), token.sequence.index
        first, *others = deltas or [Delta("")]
        answer.stream.put(replace(first, token_ids=(token.token_id,), logprobs=logprobs, index=index))
        for delta in others:
            answer.stream.put(replace(delta, index=index))
        if reason:
            self._finish(answer, reason, answer.text.stopped)

    def _finish(self, answer: _Answer, reason: FinishReason, stop_reason: str | int | None) -> None:
        sequence = answer.sequence
        self._engine.finish(sequence, "stop" if reason == "tool_calls" else reason)
        del self._answers[sequence]
        if (
            stop_reason is None
            and reason in ("stop", "tool_calls")
            and sequence.tokens[-1] in sequence.params.stop_token_ids
        ):
            stop_reason = sequence.tokens[-1]
        metrics = sequence.metrics()
        prompt = tuple(sequence.tokens[: sequence.n_prompt])
        scores = tuple(sequence.prompt_logprobs) if sequence.params.prompt_logprobs is not None else ()
        answer.stream.put(Finished(reason, metrics, stop_reason, sequence.index, prompt, scores))

    def _abort(self, doomed: Callable[[_Answer], bool], tell: bool = True) -> None:
        for answer in [a for a in self._answers.values() if doomed(a)]:
            self._engine.finish(answer.sequence, "abort")
            if tell:
                self._finish(answer, "abort", None)
            else:
                del self._answers[answer.sequence]

    def _cancel(self, stream: Stream) -> None:
        with self._changed:
            self._inbox.cancelled.append(stream)
            self._changed.notify()


def _deltas(found: str | list[Delta]) -> list[Delta]:
    return found if isinstance(found, list) else [Delta(found)]


def packed_for(checkpoint: Checkpoint, switches: Settings) -> Packed | None:
    """Where the repacked weights of a model are kept, as KVASIR_PACKED_GB says."""
    if not switches.packed_gb:
        return None

    def say(line: str) -> None:
        if switches.debug:
            print(f"kvasir: {line}", file=sys.stderr)

    try:
        source = source_of(checkpoint)
    except OSError as error:
        say(f"repacked weights are not kept: {error}")
        return None
    packed = Packed(cache_folder(), source, int(switches.packed_gb * 1e9), switches.check, say=say)
    packed.open(kernels())
    return packed


def backend_named(
    name: str, threads: int | None, check: bool = False, packed: Packed | None = None
) -> Backend:
    """The backend called `name`: cpu or reference.  `check`: the CPU's ops are held to their reference."""
    if name == "cpu":
        backend = CpuBackend(threads=threads, packed=packed)
        return CheckedBackend(backend) if check else backend
    if name == "reference":
        return Reference()
    raise UsageError(f"unknown backend {name!r}", hint="the backends are cpu and reference")


def draft_model(name: str, tokenizer: Tokenizer, backend: Backend, memory: Memory) -> ModelDrafter:
    """The model called `name` as a drafter for one with this tokenizer.  Raises UsageError if their
    vocabularies differ.
    """
    checkpoint = open_checkpoint(find(name).path)
    own = tokenizer_of(checkpoint)
    if own.n_vocab != tokenizer.n_vocab or any(
        own.piece(i) != tokenizer.piece(i) for i in range(own.n_vocab)
    ):
        raise UsageError(
            f"the draft model {name} has another vocabulary",
            hint="a draft model must be of the same family, with the same tokenizer",
        )
    plan, weights = build(checkpoint)
    if plan.output is None or plan.output.rows == "N":
        raise UsageError(f"{name} is an embedding model and guesses nothing")
    return ModelDrafter(backend.compile(plan, weights, Memory(memory.n_blocks, 1, memory.kv_format)))


def memory_for(plan: Plan, kv_format: str, n_blocks: int | None, cache_gb: float | None = None) -> Memory:
    """Room for the plan's states: eight sequences of full length, in at most half of the free memory.

    `cache_gb` or `n_blocks` set the cache's size instead.  Pages of the cache are touched only when a
    sequence grows into them, so what is not used costs nothing.  Raises CapacityError when none fits.
    """
    if kv_format not in KV_FORMATS:
        raise UsageError(f"KV cache format {kv_format!r} is unknown", hint=f"one of {', '.join(KV_FORMATS)}")
    room = int(cache_gb * 1e9) if cache_gb else available_bytes() // 2
    slot_bytes = sum(s.width for s in plan.states.values() if s.kind == "slot") * 4
    n_slots = max(1, min(MAX_SEQUENCES, room // 4 // slot_bytes)) if slot_bytes else 1
    token_numbers = sum(s.width for s in plan.states.values() if s.kind == "paged")
    block_bytes = math.ceil(token_numbers * KV_BYTES[kv_format] * BLOCK)
    if n_blocks is None:
        each = -(-(plan.context or DEFAULT_CONTEXT) // BLOCK)
        n_blocks = each * (MAX_SEQUENCES if cache_gb else CACHE_SEQUENCES)
        if block_bytes:  # an encoder keeps nothing, and its blocks cost nothing
            n_blocks = min(n_blocks, (room - n_slots * slot_bytes) // block_bytes)
    if n_blocks < 1:
        raise CapacityError(
            f"one block of the KV cache needs {block_bytes:,} bytes and {room:,} may be used",
            hint="close other programs, raise KVASIR_CACHE_GB, or choose a smaller model",
        )
    return Memory(n_blocks, n_slots, kv_format)


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
