"""What crosses between engine and backend: a `Batch` down, logits up.  Nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvasir.checkpoint.tensor import LowRank, Tensor
from kvasir.plan import Op, Plan, ops
from kvasir.records import dataclass
from kvasir.sampling import SamplingParams

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 16  # tokens a cache block

# Told after each op, or each group of ops that a backend runs as one: its ops, its seconds, what they wrote.
Seen = Callable[[Sequence[Op], float, Sequence[Floats]], None]


@dataclass(frozen=True)
class Batch:
    """T tokens of N sequences, back to back, as flat int32 arrays.

    There is no `is_prefill`: a decode is a sequence with one new token.  Rows of a sequence are in order of
    position and without gaps.  A slot state counts as zero for a sequence whose first row is at position 0.
    """

    tokens: Ints  # [T]    ids
    positions: Ints  # [T]    place of each token in its sequence
    starts: Ints  # [N+1]  sequence n owns rows starts[n]:starts[n+1]
    blocks: Ints  # [N, B] cache blocks of each sequence, in order; unused entries are -1
    slots: Ints  # [N]    recurrent-state slot of each sequence, -1 where the plan has no slot state
    logit_rows: Ints  # [R]    rows whose logits are wanted
    adapters: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # [N] -1: none.  [0]: none has one

    def sequences(self) -> Iterator[tuple[int, slice]]:
        for n in range(len(self.starts) - 1):
            yield n, slice(int(self.starts[n]), int(self.starts[n + 1]))


Adapter = Mapping[str, LowRank]  # by the weights of the products it touches


@dataclass(frozen=True)
class Memory:
    """How much room a program gets: cache blocks of `BLOCK` tokens, recurrent slots, the cache's number
    format.
    """

    n_blocks: int
    n_slots: int = 1
    kv_format: str = "f16"  # one of settings.KV_FORMATS


class Program(Protocol):
    """A plan made ready to run: weights repacked, arena laid out.  One caller at a time."""

    @property
    def plan(self) -> Plan: ...

    @property
    def memory(self) -> Memory: ...

    def step(self, batch: Batch) -> Floats:
        """The plan's output for this batch: logits [R, V], or one embedding a sequence [N, D]."""
        ...

    def watch(self, batch: Batch, seen: Seen) -> Floats:
        """A step that calls `seen` after each op or group (what they wrote is to be read, not kept)."""
        ...

    def copy_slot(self, source: int, target: int) -> None:
        """The recurrent states of slot `source` into slot `target`."""
        ...

    def block(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a cache block: what each paged state keeps of its tokens, to read and to write.

        Another program may be given it if its plan, weights, backend, kernels and number format are the same.
        """
        ...

    def slot(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a recurrent slot, likewise."""
        ...

    def adapt(self, at: int, adapter: Adapter | None) -> None:
        """Sequences that name adapter `at` get this one from the next step on; None: it is gone.

        Only for plans that `passes.adapt` made.
        """
        ...

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        """The next token for logits [V] (changed in place): `sampling.penalize`, then `sampling.choose`."""
        ...

    def referenced(self) -> frozenset[str]:
        """The kinds of ops that run as their reference because the backend has no kernel for them."""
        ...


@runtime_checkable
class Piecemeal(Protocol):
    """What a program may offer besides: a step in pieces, between which others run.  What it computes is
    the same bits.  Its blocks and slots must not be written by others meanwhile.
    """

    def begin_aside(self, batch: Batch) -> None:
        """A step that `go_on` runs; one that was begun before is forgotten."""
        ...

    def go_on(self, seconds: float) -> Floats | None:
        """About so many seconds more of it (at least one op; infinity: to the end); its output when it is
        done.
        """
        ...


class Pending(Protocol):
    """A step under way."""

    def ids(self) -> Ints:
        """What its rows chose, [R]; waits for it."""
        ...


class Ahead(Protocol):
    """What a program may offer besides: steps that choose where they run, begun without waiting."""

    @property
    def can_begin(self) -> bool: ...

    def begin(self, batch: Batch, chosen: Sequence[SamplingParams], drawn: Sequence[float]) -> Pending:
        """Begins a decode whose rows choose as `Program.choose` would, without penalties and typical-p.  A
        token of the batch below 0, -1 - r, is what row r of the step begun before this one chose.
        """
        ...


def values_of(program: Program, batch: Batch) -> Iterator[tuple[Op, Floats]]:
    """One step of `program`, and then each op with a copy of what it wrote [rows, width], in order.

    Columns that no op was run for are cut from what they are columns of.
    """
    found: dict[int, Floats] = {}

    def seen(done: Sequence[Op], took_s: float, values: Sequence[Floats]) -> None:
        found.update((op.out.id, np.array(value)) for op, value in zip(done, values, strict=True))

    program.watch(batch, seen)
    for op in program.plan.ops:
        if op.out.id not in found:
            assert isinstance(op, ops.Columns), f"{op.kind} was not run"
            found[op.out.id] = found[op.x.id][:, op.start : op.stop]
        yield op, found[op.out.id]


class Backend(Protocol):
    """A way to run plans."""

    @property
    def name(self) -> str: ...

    def compile(self, plan: Plan, weights: Mapping[str, Tensor], memory: Memory) -> Program: ...
