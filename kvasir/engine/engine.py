"""The loop: schedule, step, choose, append.  Token ids in, token ids out; text is somebody else's
business.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from time import perf_counter
from typing import Literal

import numpy as np

from kvasir.backends.base import BLOCK, Ahead, Batch, Floats, Piecemeal, Program
from kvasir.chat import FinishReason, TokenLogprob
from kvasir.engine.adapters import Adapters
from kvasir.engine.ahead import Pilot
from kvasir.engine.aside import Gaps
from kvasir.engine.blocks import BlockPool
from kvasir.engine.cost import StepCost
from kvasir.engine.disk import Disk
from kvasir.engine.drafts import Drafter, NgramDrafter, Speculation
from kvasir.engine.masks import Masks, permit
from kvasir.engine.part import Part
from kvasir.engine.scheduler import Scheduler
from kvasir.engine.scores import logprob_of, score
from kvasir.engine.sequence import Sequence
from kvasir.engine.stats import DiskStats, Stats, Totals
from kvasir.errors import CapacityError, UsageError
from kvasir.grammar.guide import Guide
from kvasir.records import dataclass
from kvasir.sampling import ID_LISTS, SamplingParams, logprobs, uniform

LOAD_WAIT_S = 0.01  # for blocks from disk when there is nothing else to do; then others may speak
STEP_TOKENS = 512  # rows a step at most: long enough to be limited by arithmetic, short enough to share


@dataclass(frozen=True)
class Token:
    """What a step gave a sequence: its next token, and whether that was the last.  With `error` there is no
    token (-1): the answer could not be held to its constraint any further.
    """

    sequence: Sequence
    token_id: int
    finished: FinishReason | None
    logprob: TokenLogprob | None = None
    error: UsageError | None = None


class Engine:
    """Runs sequences on one program, several in a step.  Mutable; one caller at a time.

    `reuse`: keep what is computed for prompts that begin alike.  `drafter` guesses tokens to come ("ngram":
    from the text so far; None: nothing does).  Neither changes an answer.
    """

    def __init__(
        self,
        program: Program,
        eos_ids: Iterable[int] = (),
        max_sequences: int = 64,
        step_tokens: int = STEP_TOKENS,
        *,
        reuse: bool = True,
        drafter: Drafter | Literal["ngram"] | None = "ngram",
        disk: Disk | None = None,
        ahead: Ahead | None = None,
    ):
        slotted = self._slotted = any(s.kind == "slot" for s in program.plan.states.values())
        memory = program.memory
        self.program = program
        self.eos_ids = frozenset(i for i in eos_ids if i < self.n_vocab)
        self.pool = BlockPool(memory.n_blocks)
        self.cost, self.totals = StepCost(), Totals()
        self.masks = Masks()
        self.adapters = Adapters(program)
        self.scheduler = Scheduler(
            self.pool,
            memory.n_slots if slotted else 0,
            max_sequences,
            step_tokens,
            self.cost,
            reuse and bool(program.plan.states),
            disk,
            isinstance(program, Piecemeal),
        )
        self.gaps = (
            Gaps(program, self.scheduler.aside, self.masks) if isinstance(program, Piecemeal) else None
        )
        self._leaving: list[Sequence] = []  # that ended while the chunk under way computes for them
        self.pilot = Pilot(ahead, self.scheduler) if ahead and ahead.can_begin and not slotted else None
        self.speculation: Speculation | None = None
        self._saved = dict[Sequence, int]()  # slots of states before the guesses of the step under way
        if drafter is not None:
            self.speculation = Speculation(NgramDrafter() if isinstance(drafter, str) else drafter, self.cost)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def limit(self, wanted: int | None = None) -> int:
        """Tokens a sequence may have in all: the model's context, or less if `wanted` or the cache is
        smaller.
        """
        limits = [self.pool.n_blocks * BLOCK, self.program.plan.context or None, wanted]
        return min(n for n in limits if n)

    def sequence(
        self,
        tokens: list[int],
        params: SamplingParams,
        max_context: int | None = None,
        index: int = 0,
        n_truncated: int = 0,
        *,
        tenant: str = "",
        priority: int = 0,
        guide: Guide | None = None,
        adapter: str = "",
        pin: str | None = None,
        hold: tuple[int, float] = (0, 0.0),
    ) -> Sequence:
        """A new sequence, checked and not yet added.  `guide` holds its answer to a form; `adapter` is the
        key of one that is loaded.  `pin`: how its prompt begins, for people, where that is to stay in the
        prefix cache.  `hold`: so many tokens of it are to stay there for so many seconds, if there is room.

        Raises UsageError when the prompt is empty, leaves no room for an answer, or names tokens out of
        range; CapacityError when there is no more room for pins.
        """
        limit, vocab = self.limit(max_context), self.n_vocab
        self._must_read(tokens)
        for name in ("logit_bias", *ID_LISTS):
            if bad := [t for t in getattr(params, name) if t >= min(vocab, self.n_logits)]:
                raise UsageError(f"{name}: token id {bad[0]} is not in the vocabulary of {vocab}")
        if len(tokens) >= limit:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens and the context holds {limit}, answer included",
                hint="shorten the prompt, raise num_ctx, or ask for truncation",
            )
        if pin is not None:
            self._must_pin(tokens, Sequence.realm_of(tenant, adapter))
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        return Sequence(
            list(tokens),
            params,
            limit,
            seed,
            index,
            n_truncated=n_truncated,
            tenant=tenant,
            priority=priority,
            guide=guide,
            adapter=adapter,
            pin=pin,
            n_hold=min(hold[0], len(tokens)),
            hold_s=hold[1],
        )

    def _must_pin(self, tokens: list[int], realm: str) -> None:
        """Raises CapacityError unless the whole blocks of a prompt may be pinned beside those that are."""
        radix = self.scheduler.radix
        pinned, most = radix.pinned(held=False), radix.most_pinned
        known = sum(node in pinned for node in radix.match(realm, tokens))
        wanted = len(tokens) // BLOCK
        if len(pinned) + wanted - known > most:
            raise CapacityError(
                f"the prompt has {wanted * BLOCK} tokens to be pinned, {len(pinned) * BLOCK} are, "
                f"and at most {most * BLOCK} may be: a quarter of the KV cache",
                hint="end a pin (`kvasir cache unpin`), pin a shorter prompt, or give the cache more memory "
                "(KVASIR_CACHE_GB)",
            )

    @property
    def n_vocab(self) -> int:
        """Token ids that the model reads."""
        return self.program.plan.n_vocab

    @property
    def n_logits(self) -> int:
        """Token ids that the model may write."""
        assert self.program.plan.output is not None
        return self.program.plan.output.width

    def add(self, sequence: Sequence) -> None:
        """Queues it.  Raises CapacityError when the cache could never hold it, UsageError when its adapter is
        not loaded.
        """
        self.adapters.enter(sequence)
        try:
            self.scheduler.add(sequence)
        except CapacityError:
            self.adapters.leave(sequence)
            raise

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends it now (a stop string, a client that left); nothing happens if it has ended already."""
        if sequence.finished is None:
            self.scheduler.finish(sequence, reason)
            self.totals.ended(sequence, reason)
            self._leaving.append(sequence)
            self._let_go()
            if self.speculation:
                self.speculation.forget(sequence)

    def step(self) -> list[Token]:
        """Computes one step; the tokens it gave, in order: one or more for each sequence whose known tokens
        are all computed.
        """
        started = perf_counter()
        self._let_go()
        if self.pilot and self.pilot.is_flying:
            return self._landed(started)
        parts = self.scheduler.schedule()
        if not parts and not (self.gaps and self.gaps.is_open):
            if self.scheduler.disk and self.scheduler.disk.is_loading:
                self.scheduler.disk.wait(LOAD_WAIT_S)
            return []
        for source, target in self.scheduler.copies:
            self.program.copy_slot(source, target)
        self.scheduler.copies.clear()
        if self.gaps:
            parts = self.gaps.split(parts, self._batch)
        parts = self._with_drafts(parts)
        if self.pilot and self.pilot.takes(parts):
            self.pilot.begin(parts, self._batch(parts))
            return self._landed(started)
        found = self._stepped(parts) if parts else []
        n_rows = sum(p.n_rows for p in parts)
        if self.gaps and self.gaps.is_open:
            gap_s = self.scheduler.pace.gap_s(n_rows, self.scheduler.n_new) if parts else math.inf
            if gap_s > 0 and (done := self.gaps.go_on(gap_s)):
                chunk, output = done
                self.cost.observe(chunk.n_rows, chunk.seconds)
                self.scheduler.pace.read(chunk.n_rows, chunk.seconds)
                found += self._taken(chunk.parts, chunk.counts, output, chunk.masks)
                n_rows += chunk.n_rows
        self.totals.stepped(n_rows, len(found), perf_counter() - started)
        return found

    def _stepped(self, parts: list[Part]) -> list[Token]:
        """The tokens that a step of these parts gives."""
        counts, masks = [p.n_logits for p in parts], self.masks.start(parts)  # these while the step runs
        begun = perf_counter()
        try:
            output = self.program.step(self._batch(parts))
            self._observe(parts, perf_counter() - begun)
            return self._taken(parts, counts, output, masks)
        finally:
            for slot in self._saved.values():
                self.scheduler.radix.give_slot(slot)
            self._saved.clear()

    def _let_go(self) -> None:
        """The adapters of sequences that have ended, unless a chunk is still computed with them."""
        while self._leaving and not (self.gaps and self.gaps.is_open):
            self.adapters.leave(self._leaving.pop())

    def _landed(self, started: float) -> list[Token]:
        """The tokens that the step under way chose; the next one is begun before they are read."""
        assert self.pilot is not None
        found = list[Token]()
        for sequence, token_id in self.pilot.land():
            sequence.computed(1)
            found.append(Token(sequence, token_id, self._appended(sequence, token_id)))
            if found[-1].finished:
                self.finish(sequence, found[-1].finished)
            else:
                self._keep(sequence)
        self.totals.stepped(len(found), len(found), perf_counter() - started)
        return found

    def _observe(self, parts: list[Part], seconds: float) -> None:
        """Learns what the step that was just computed tells of the cost of rows."""
        n_rows = sum(p.n_rows for p in parts)
        n_decodes = sum(p.n_rows for p in parts if p.sequence.is_decoding)
        self.cost.observe(n_rows, seconds)
        self.scheduler.pace.observe(n_decodes, n_rows - n_decodes, seconds)
        if self.gaps and not n_decodes:
            self.scheduler.pace.read(n_rows, seconds)

    def _taken(
        self, parts: list[Part], counts: list[int], output: Floats,
        masks: dict[Sequence, Future[list[Floats]]],
    ) -> list[Token]:  # fmt: skip
        """What the rows of a step give: `counts` of them are each part's."""
        found, first = list[Token](), 0
        for part, n_logits in zip(parts, counts, strict=True):
            rows, first = output[first : first + n_logits], first + n_logits
            if part.sequence.finished:  # while it was computed beside others
                continue
            if part.sequence.is_scored:
                score(part.sequence, rows)
            part.sequence.computed(part.count)
            if part.sequence.n_pending == 0:
                found += self._verify(
                    part, rows[len(rows) - 1 - len(part.drafts) :], masks.get(part.sequence)
                )
            if part.sequence.finished is None:
                self._keep(part.sequence)
        return found

    def _with_drafts(self, parts: list[Part]) -> list[Part]:
        """The parts, with guesses after those that give a token and may profit from them."""
        able = [
            p.sequence
            for p in parts
            if p.sequence.is_decoding and p.count == p.sequence.n_pending and p.sequence.most_drafts > 0
        ]
        if not self.speculation or not able:
            return parts
        counts = self.speculation.counts(able, sum(p.count for p in parts))
        spare = self.scheduler.step_tokens - sum(p.count for p in parts)
        wanted = []
        for sequence, count in zip(able, counts, strict=True):
            room = self.scheduler.room_for_drafts(sequence, min(count, spare)) if count else 0
            spare -= room
            if room:
                wanted.append((sequence, room))
        guesses = self.speculation.drafter.propose(wanted)
        drafts = {s: s.allowed(g)[:n] for (s, n), g in zip(wanted, guesses, strict=True)}
        if self._slotted:
            drafts = {s: d for s, d in drafts.items() if d and self._save(s)}
        return [replace(p, drafts=drafts.get(p.sequence, ())) for p in parts]

    def _save(self, sequence: Sequence) -> bool:
        """Keeps its recurrent state, which takes no row back, for the case that a guess is wrong; False if
        there is no place for it.
        """
        slot = self.scheduler.radix.take_slot()
        if slot is None:
            return False
        self._saved[sequence] = slot
        begun = perf_counter()
        self.program.copy_slot(sequence.slot, slot)
        if self.speculation:
            self.speculation.saved(perf_counter() - begun)
        return True

    def _verify(self, part: Part, rows: Floats, masks: Future[list[Floats]] | None) -> list[Token]:
        """The tokens that the rows of a part give: one after the known tokens, and one after each draft as
        long as the drafts are what was chosen.
        """
        sequence, found = part.sequence, list[Token]()
        try:
            bars = masks.result() if masks else [None] * len(rows)
        except UsageError as error:
            self.finish(sequence, "abort")
            return [Token(sequence, -1, "abort", error=error)]
        for n, (row, draft) in enumerate(zip(rows, (*part.drafts, None), strict=True), 1):
            found.append(self._extend(sequence, row, bars[n - 1]))
            if found[-1].finished or found[-1].token_id != draft or n == len(bars):
                break
            sequence.computed(1)
        if part.drafts and self.speculation:
            right = len(found) - 1
            sequence.drafted(len(part.drafts), right)
            self.speculation.verdict(sequence, len(part.drafts), right)
            if right < len(part.drafts) and sequence in self._saved and not found[-1].finished:
                self._saved[sequence] = sequence.rewind(self._saved[sequence], part.count + right)
        if found[-1].finished:
            self.finish(sequence, found[-1].finished)
        return found

    def _keep(self, sequence: Sequence) -> None:
        """Files what is computed by now for those who come with the same beginning."""
        self.scheduler.file(sequence)
        copy = self.scheduler.snapshot(sequence)
        if copy:
            self.program.copy_slot(*copy)

    def embed(self, prompts: list[list[int]]) -> list[Floats]:
        """One embedding [D] a prompt, for plans that pool; each prompt is computed in one step.

        Raises UsageError for a prompt that is empty, over the context, or has token ids out of range.
        """
        limit, found = self.limit(), []
        for tokens in prompts:
            self._must_read(tokens)
            if len(tokens) > limit:
                raise UsageError(
                    f"the text has {len(tokens)} tokens and the context holds {limit}",
                    hint="shorten the text, or embed it in parts",
                )
            sequence = Sequence(list(tokens), SamplingParams(), limit, seed=0)
            found.append(self.program.step(self._batch([Part(sequence, len(tokens))]))[0])
        return found

    def _must_read(self, tokens: list[int]) -> None:
        """Raises UsageError unless there are tokens, all of them in the vocabulary."""
        if not tokens:
            raise UsageError("the prompt has no tokens", hint="send some text")
        n_vocab = self.n_vocab  # the plan is searched for it
        if bad := [t for t in tokens if not 0 <= t < n_vocab]:
            raise UsageError(f"token id {bad[0]} is not in the vocabulary of {n_vocab}")

    def close(self, wait_s: float = 3.0) -> None:
        """After the last step: what the prefix cache holds goes to disk, as far as there is time."""
        if self.scheduler.disk:
            self.scheduler.disk.close(wait_s)

    def check(self) -> None:
        """Raises Bug unless every cache block is accounted for."""
        self.scheduler.check()

    def stats(self) -> Stats:
        """What it has done and how full it is."""
        t, pool = self.totals, self.pool
        return Stats(
            n_running=len(self.scheduler.running),
            n_waiting=self.scheduler.n_waiting,
            n_blocks=pool.n_blocks,
            n_blocks_free=pool.n_free,
            n_blocks_kept=pool.n_idle,
            n_steps=t.n_steps,
            n_rows=t.n_rows,
            n_prompt=t.n_prompt,
            n_cached=t.n_cached,
            n_generated=t.n_generated,
            n_drafted=t.n_drafted,
            n_accepted=t.n_accepted,
            n_preempted=t.n_preempted,
            n_finished=dict(t.n_finished),
            busy_s=t.busy_s,
            age_s=perf_counter() - t.begun_at,
            n_pinned=len(self.scheduler.radix.pinned()),
            disk=self.scheduler.disk.stats() if self.scheduler.disk else DiskStats(),
        )

    def _batch(self, parts: list[Part]) -> Batch:
        # Lists that become arrays once: a decode has few rows, and each array operation costs a microsecond.
        tokens, positions, starts, wanted = list[int](), list[int](), [0], list[int]()
        width = max(len(p.sequence.blocks) for p in parts)
        blocks = np.full((len(parts), max(width, 1)), -1, np.int32)
        for n, part in enumerate(parts):
            sequence, first = part.sequence, part.sequence.n_computed
            tokens += sequence.tokens[first : first + part.count]
            tokens += part.drafts
            positions += range(first, first + part.n_rows)
            starts.append(len(tokens))
            wanted += range(len(tokens) - part.n_logits, len(tokens))
            blocks[n, : len(sequence.blocks)] = sequence.blocks
        return Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.array(positions, np.int32),
            starts=np.array(starts, np.int32),
            blocks=blocks,
            slots=np.array([p.sequence.slot for p in parts], np.int32),
            logit_rows=np.array(wanted, np.int32),
            adapters=self.adapters.of([p.sequence for p in parts]),
        )

    def _extend(self, sequence: Sequence, row: Floats, bars: Floats | None) -> Token:
        """Chooses the sequence's next token from its logits [V], and appends it; says whether it is the
        last.  `bars` are added to the logits: -inf for what its constraint forbids.
        """
        params, position = sequence.params, len(sequence.tokens)
        own = logprobs(row) if params.logprobs is not None else None
        logits = np.require(row, np.float32, "W")  # nobody reads the row again
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        ends = (self.eos_ids if not params.ignore_eos else frozenset()) | frozenset(params.stop_token_ids)
        unwanted = ends if sequence.n_generated < params.min_tokens else frozenset()
        if params.allowed_token_ids:
            kept = logits[list(params.allowed_token_ids)]
            logits.fill(-np.inf)
            logits[list(params.allowed_token_ids)] = kept
            unwanted -= frozenset(params.allowed_token_ids)  # something must be left to choose
        if bars is not None:
            permit(logits, bars, unwanted | (self.eos_ids if params.ignore_eos else frozenset()))
        elif unwanted:
            logits[list(unwanted)] = -np.inf
        back = params.repeat_last_n
        recent = sequence.tokens if back < 0 else sequence.tokens[-back:] if back else []
        drawn = uniform(sequence.seed, sequence.index, position) if params.temperature else 0.0
        token_id = self.program.choose(logits, recent, params, drawn)
        reason = self._appended(sequence, token_id)
        logprob = (
            logprob_of(own, token_id, params.logprobs, params.logprob_token_ids) if own is not None else None
        )
        return Token(sequence, token_id, reason, logprob)

    def _appended(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """Appends its next token; why it ends with that, if it does."""
        sequence.append(token_id)
        params = sequence.params
        ends = (self.eos_ids if not params.ignore_eos else frozenset()) | frozenset(params.stop_token_ids)
        if token_id in ends or (sequence.guide and (sequence.guide.complete or token_id in self.eos_ids)):
            return "stop"
        full = len(sequence.tokens) >= sequence.limit or sequence.n_generated == params.max_tokens
        return "length" if full else None
