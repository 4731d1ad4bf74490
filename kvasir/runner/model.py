"""A loaded model: tokenizer, template and engine, wired together, with a thread that steps."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import field, replace
from time import perf_counter
from typing import Literal

from kvasir import faults
from kvasir.backends.base import Backend, Memory
from kvasir.backends.devices import chosen
from kvasir.backends.packed import Packed, cache_folder, source_of
from kvasir.chat import ChatRequest, Delta, Embedding, Finished, FinishReason, Spelled
from kvasir.checkpoint.open import Checkpoint, open_checkpoint
from kvasir.engine.disk import Disk
from kvasir.engine.draft_model import ModelDrafter
from kvasir.engine.engine import Engine, Token
from kvasir.engine.sequence import Sequence
from kvasir.engine.stats import Stats
from kvasir.errors import Bug, CapacityError, KvasirError, UsageError
from kvasir.grammar.compile import Grammars
from kvasir.grammar.tools import tool_constraint
from kvasir.models import build
from kvasir.native import kernels
from kvasir.parsers.parts import tools_of
from kvasir.plan.passes import adapt
from kvasir.records import dataclass
from kvasir.runner.adapters import AdapterInfo, Base, unknown
from kvasir.runner.device import ahead_of, backend_named, memory_on, with_place
from kvasir.runner.inspect import ModelInfo, info
from kvasir.runner.memory import MAX_SEQUENCES
from kvasir.runner.parsed import Parsed
from kvasir.runner.prefix import disk_for
from kvasir.runner.prompt import Prompter, tokenizer_of
from kvasir.runner.pulse import Pacer, Pulse
from kvasir.runner.stream import Stream
from kvasir.runner.watch import watched
from kvasir.settings import Settings, read_settings
from kvasir.store.names import find
from kvasir.structured import Constraint
from kvasir.text.stream import TextStream
from kvasir.text.tokenizer import Tokenizer

NO_ADAPTERS: Mapping[str, str] = {}
OWN = "its own"  # the name of the adapter that a made model brings
LABEL = 60  # letters


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
    calls: list[tuple[Callable[[], None], Future[None]]] = field(default_factory=list)  # between two steps
    closing: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.new or self.cancelled or self.calls or self.closing)


class Model:
    """One loaded model with an engine thread of its own.  Thread-safe."""

    def __init__(
        self, info: ModelInfo, prompter: Prompter, engine: Engine, load_s: float, base: Base | None = None
    ):
        """`base`: what adapters must fit; None: it takes none."""
        self.info, self.prompter, self.load_s = info, prompter, load_s
        self._base, self._adapters = base, dict[str, AdapterInfo]()
        self._loading = threading.Lock()  # one adapter after another
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
        backend: str = "",
        threads: int | None = None,
        context: int | None = None,
        n_blocks: int | None = None,
        kv_format: str | None = None,
        draft: str | None = None,
        adapters: Mapping[str, str] = NO_ADAPTERS,
        max_sequences: int = MAX_SEQUENCES,
        progress: Callable[[str], None] = lambda stage: None,
    ) -> Model:
        """Opens, checks, repacks and starts the model called `name`.

        `context` caps the positions of every sequence below the model's own; `n_blocks` sizes the KV cache in
        blocks of 16 tokens (default: by the memory there is).  `draft` names a smaller model with the same
        vocabulary that guesses tokens to come; without it the text so far does.  `adapters`: paths of LoRA
        adapters by the names that requests choose them by.  `max_sequences` are computed at a time.
        `backend`: cpu, cuda, torch (the cuda backend's program on this machine's cores), reference; without
        it KVASIR_BACKEND decides.
        Raises UsageError, ModelError, CheckpointError, CapacityError; nothing that was started is left then.
        """
        if context is not None and context < 0:
            raise UsageError(f"a context of {context} tokens makes no sense")
        start, switches = perf_counter(), read_settings()
        file, backend = find(name), backend or chosen(switches.backend)
        progress("reading the file")
        checkpoint = open_checkpoint(file.path)
        # The vocabulary's tables are made, for the most part without the interpreter, beside the weights.
        aside = ThreadPoolExecutor(1, "vocabulary")
        reading = aside.submit(Prompter.of, checkpoint, file.made)
        aside.shutdown(wait=False)
        try:
            plan, weights = build(checkpoint, context)
            if context:
                plan.context = min(context, plan.context or context)
            packed = packed_for(checkpoint, switches) if backend == "cpu" else None
            runs_on = backend_named(backend, threads, switches.check, packed)
            asked = (kv_format or switches.kv, n_blocks, switches.cache_gb)
            memory = memory_on(runs_on, plan, weights, *asked)
            progress("repacking the weights")
            faults.reach("runner.repack")
            takes_adapters = plan.output is not None and plan.output.rows != "N"
            program = runs_on.compile(adapt(plan) if takes_adapters else plan, weights, memory)
            known = with_place(info(file, checkpoint, plan), runs_on)
            prompter = reading.result()
            drafter: ModelDrafter | Literal["ngram"] = "ngram"
            if draft:
                drafter = draft_model(draft, prompter.tokenizer, runs_on, memory)
            disk = disk_for(file.name, checkpoint, plan, memory, program, backend, switches)
            engine = Engine(
                watched(program, weights, switches.debug), prompter.eos_ids, max_sequences,
                drafter=drafter, disk=disk, ahead=ahead_of(runs_on, program, draft, switches.debug),
            )  # fmt: skip
            base = Base(checkpoint.config, plan)
            model = cls(known, prompter, engine, perf_counter() - start, base)
        except BaseException:  # Ctrl-C included
            if reading.exception() is None:
                reading.result().close()
            raise
        try:
            own = {OWN: file.made.adapter} if file.made and file.made.adapter else {}
            for adapter, path in {**adapters, **own}.items():
                progress(f"loading the adapter {adapter}")
                model.load_adapter(adapter, path)
        except BaseException:
            model.close()
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
        if not request.adapter and self.info.made and self.info.made.adapter:
            request = replace(request, adapter=OWN)
        adapter = self._adapter(request.adapter)
        limit = self._engine.limit(request.max_context)
        tokens, n_truncated = self.prompter.tokens(request, limit)
        stream = Stream(request.params.n, tuple(tokens), self._cancel, n_truncated)
        params, form = request.params, self._form(request)
        within = form is not None and form.kind == "tools" and self.prompter.family.syntax.thinks_within
        think = request.think if request.messages else bool(request.think)  # a bare text asks for no thought
        answers = []
        for index in range(params.n):
            guide = self._grammars.guide(form, tokens, think, within) if form else None
            sequence = self._engine.sequence(
                tokens, params, request.max_context, index, n_truncated,
                tenant=request.tenant, priority=request.priority, guide=guide,
                adapter=adapter.key if adapter else "",
                pin=_beginning(request) if request.pin and index == 0 else None,
                hold=(self.prompter.held(request, tokens), request.hold_s) if index == 0 else (0, 0.0),
            )  # fmt: skip
            text = self._text(request, tokens, form is None)
            answers.append(_Answer(sequence, text, stream))
        with self._changed:
            if self._inbox.closing:
                raise CapacityError(f"{self.info.name} is being unloaded", hint="try again")
            if adapter is not self._adapter(request.adapter):
                raise UsageError(f"the adapter {request.adapter} was exchanged meanwhile", hint="ask again")
            self._inbox.new.append(answers)
            self._changed.notify()
        return stream

    def _form(self, request: ChatRequest) -> Constraint | None:
        """What the answer is held to: calls where a tool must be called."""
        return tool_constraint(
            self.prompter.family,
            tools_of(request.tools),
            request.tool_choice,
            request.parallel_tool_calls,
            self.prompter.tokenizer.token_id,
            request.params.constraint,
        )

    def _text(self, request: ChatRequest, tokens: list[int], free: bool) -> TextStream | Parsed:
        """Where tokens become text.  One that is held to a form, not `free`, has no space but its own."""
        begin = bool(request.messages) and free
        if request.parse:
            return Parsed(self.prompter, request, tokens, begin)
        params = request.params
        return TextStream(
            self.prompter.tokenizer,
            params.stops,
            params.include_stop_str_in_output,
            params.skip_special_tokens,
            begin,
        )

    # -- adapters -----------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """The adapters that requests may choose, by name."""
        with self._changed:
            return dict(self._adapters)

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Requests may choose this adapter by `name` from now on; answers under way go on meanwhile.

        Raises UsageError (a name that is taken, a model that takes none), and what `Base.open` raises.
        """
        if self._base is None:
            raise UsageError(f"{self.info.name} takes no adapters")
        with self._loading:
            found, fitted = self._base.open(name, path)
            own = self.adapters.get(name)
            if own and own.key == found.key:
                return own
            if own:
                raise UsageError(f"another adapter is called {name}", hint="unload it, or choose a name")
            self._between_steps(lambda: self._engine.adapters.load(found.key, fitted))
            with self._changed:
                self._adapters[name] = found
            return found

    def unload_adapter(self, name: str) -> None:
        """No request may choose it any more; it is freed when the last answer that uses it has ended.

        Raises UsageError when there is none of that name.
        """
        with self._loading, self._changed:
            key = self._known(name).key
            del self._adapters[name]
            if any(other.key == key for other in self._adapters.values()):
                return
            self._inbox.calls.append((lambda: self._engine.adapters.unload(key), Future()))
            self._changed.notify()

    def _adapter(self, name: str) -> AdapterInfo | None:
        return self._known(name) if name else None

    def _known(self, name: str) -> AdapterInfo:
        if name not in self._adapters:
            raise unknown(name, self._adapters)
        return self._adapters[name]

    def _between_steps(self, work: Callable[[], None]) -> None:
        """Does the work on the engine's thread.  Raises what it raises, and CapacityError when that ends."""
        done = Future[None]()
        with self._changed:
            if self._inbox.closing:
                raise CapacityError(f"{self.info.name} is being unloaded", hint="try again")
            self._inbox.calls.append((work, done))
            self._changed.notify()
        done.result()

    # -- what else it can be asked ------------------------------------------------------------------

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
    def disk(self) -> Disk | None:
        """Where its prefixes are kept on disk; None where none are."""
        return self._engine.scheduler.disk

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
        pulse, pool, engine = self.pacer.pulse(), self._engine.pool, self._engine
        return replace(
            pulse,
            n_running=len(self._answers),
            n_free=pool.n_free + pool.n_idle,
            n_blocks=pool.n_blocks,
            n_waiting=engine.scheduler.n_waiting,
            n_generated=engine.totals.n_generated,
            n_rows=engine.totals.n_rows,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """How a token is spelled."""
        return self.prompter.tokenizer.token_bytes(token_id)

    @property
    def referenced(self) -> frozenset[str]:
        """Kinds of ops that run as their reference because the backend has no kernel for them."""
        return self._engine.program.referenced()

    def close(self) -> None:
        """Ends every answer under way and the thread, and lets the prefix cache write for a moment.  Any
        number of times, and from any thread.
        """
        atexit.unregister(self.close)
        with self._changed:
            self._inbox.closing = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
            self._engine.close()
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
                while not self._engine.has_work and self._inbox.is_empty:
                    self._changed.wait()
                inbox, self._inbox = self._inbox, _Inbox(closing=self._inbox.closing)
            with self._step_lock:
                if inbox.closing:
                    self._abort(lambda _: True)
                    for answers in inbox.new:
                        answers[0].stream.put(
                            CapacityError(f"{self.info.name} was unloaded", hint="try again")
                        )
                    for _, done in inbox.calls:
                        done.set_exception(CapacityError(f"{self.info.name} was unloaded", hint="try again"))
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
        for work, done in inbox.calls:
            try:
                work()
            except Exception as failure:
                done.set_exception(failure)
            else:
                done.set_result(None)
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
            rest = answer.text
            deltas += _deltas(rest.finish(reason != "stop") if isinstance(rest, Parsed) else rest.finish())
        if answer.text.stopped is not None:
            reason = "stop"
        elif isinstance(answer.text, Parsed) and (
            answer.text.full or (reason == "stop" and answer.text.called)
        ):
            reason = "tool_calls"
        logprobs, index = (token.logprob,) if token.logprob else (), token.sequence.index
        first, *others = deltas or [Delta("")]
        answer.stream.n_cached = max(answer.stream.n_cached, answer.sequence.n_cached)
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


def _beginning(request: ChatRequest) -> str:
    """How a prompt begins, for people who look at what is pinned."""
    text = request.messages[0].content if request.messages else request.prompt
    return " ".join(text.split())[:LABEL] if isinstance(text, str) else ""


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
    own_memory = Memory(
        memory.n_blocks, 2 * MAX_SEQUENCES, memory.kv_format
    )  # a state, and one to go back to
    return ModelDrafter(backend.compile(plan, weights, own_memory))
