"""A plan compiled for the device: one list of calls, run eagerly or, for decodes, from graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from kvasir.backends.base import BLOCK, Adapter, Batch, Bytes, Floats, Ints, Memory, Seen, values_of
from kvasir.backends.choice import choose
from kvasir.backends.cuda.emit import Call, Emitted, Ranks
from kvasir.backends.cuda.frame import (
    Arena,
    Frame,
    Inputs,
    Shape,
    arrays,
    lawful,
    output_rows,
    padded,
    shape_of,
)
from kvasir.backends.cuda.graphs import Bucket, Graphs, Key, Recorder, bucket_of
from kvasir.backends.cuda.kernels.face import Kernels, LowRanks, Sampling
from kvasir.backends.cuda.place import Placement
from kvasir.backends.cuda.split import OnCpu
from kvasir.backends.cuda.states import States
from kvasir.errors import Bug
from kvasir.native import kernels
from kvasir.plan import Op, Plan, ops
from kvasir.sampling import SamplingParams

log = logging.getLogger("kvasir.cuda")
Passed = Callable[[Call, float, Frame], None]
FIXED_ROWS = 64  # of every group of an invariant step
KEPT_INPUTS = 8  # shapes of eager steps whose memory is kept


@dataclass
class Pending:
    """A step under way whose rows choose on the device.  `ids` waits for it."""

    chosen: torch.Tensor  # [R] int32, on the device; what the next step may begin with
    host: torch.Tensor
    count: int
    done: torch.cuda.Event | None

    def ids(self) -> Ints:
        if self.done is not None:
            self.done.synchronize()
        return np.array(self.host[: self.count].numpy(), np.int32)


@dataclass
class CudaProgram:
    """A compiled plan.  Mutable: holds the KV cache and the recurrent states.  One caller at a time."""

    plan: Plan
    memory: Memory
    kernels: Kernels
    emitted: Emitted
    states: States
    arena: Arena
    ranks: Ranks
    device: torch.device
    recorder: Recorder | None = None
    in_background: bool = True
    poisoned: bool = False
    adapters: dict[int, Adapter] = field(default_factory=dict)
    last: Pending | None = None
    apart: tuple[OnCpu, ...] = ()  # stretches of the plan that the CPU runs
    placed: Placement | None = None
    invariant: bool = False

    def __post_init__(self) -> None:
        self.graphs = Graphs(self._bucket, self.recorder, self.in_background)
        self._inputs: dict[Shape, Inputs] = {}

    # -- steps --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, batch: Batch) -> Floats:
        """The plan's output for this batch: logits [R, V] or an embedding a sequence [N, D].  Raises Bug."""
        return self._host(self._run(batch))

    @property
    def can_begin(self) -> bool:
        """Whether decodes can be begun ahead: not with a part on the CPU, which waits for each step."""
        assert self.plan.output is not None
        return self.plan.output.rows == "R" and not self.apart and not self.invariant

    @torch.inference_mode()
    def begin(self, batch: Batch, chosen: Sequence[SamplingParams], drawn: Sequence[float]) -> Pending:
        """Launches a decode whose rows choose on the device, as `choose` would with these parameters (without
        penalties and typical-p), and comes back at once.

        A token below 0, -1 - r, is the one that row r of the step begun before this one chose.
        """
        from_last = np.flatnonzero(batch.tokens < 0)
        sources = -1 - batch.tokens[from_last]
        batch = replace(batch, tokens=np.maximum(batch.tokens, 0))
        key = bucket_of(batch) if self.can_begin else None
        if key is None:
            raise Bug(f"{self.plan.name}: only a decode can be begun ahead")
        bucket = self._filled(key, batch)
        if len(from_last):
            if self.last is None or sources.max() >= self.last.count:
                raise Bug(f"{self.plan.name}: a step begins with a token that no step before it chose")
            to, of = (torch.from_numpy(i).to(self.device) for i in (from_last, sources.astype(np.int64)))
            bucket.inputs.views["tokens"][to] = self.last.chosen[of]
        self.graphs.run(key)
        logits = bucket.frame.output[: len(batch.logit_rows)]
        self.last = self._chosen(logits, chosen, drawn)
        return self.last

    def _chosen(
        self, logits: torch.Tensor, params: Sequence[SamplingParams], drawn: Sequence[float]
    ) -> Pending:
        """Has each row choose, and its choice copied to the host."""
        given = [[p.temperature, p.top_p, p.min_p, d, p.top_k] for p, d in zip(params, drawn, strict=True)]
        rows = torch.tensor(given, dtype=torch.float64).to(self.device)
        temperature, top_p, min_p = (rows[:, i].float() for i in range(3))
        out = torch.empty(len(logits), dtype=torch.int32, device=self.device)
        how = Sampling(temperature, rows[:, 4].to(torch.int32), top_p, min_p, rows[:, 3].contiguous())
        self.kernels.choose(logits, how, out)
        if self.device.type != "cuda":
            return Pending(out, out, len(out), None)
        host = torch.empty(len(out), dtype=torch.int32, pin_memory=True)
        host.copy_(out, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Pending(out, host, len(out), done)

    @torch.inference_mode()
    def watch(self, batch: Batch, seen: Seen) -> Floats:
        """A step op by op that calls `seen` after each, with its seconds and what it wrote, in float32."""

        def passed(call: Call, took_s: float, frame: Frame) -> None:
            done = [self.plan.ops[i] for i in (call.ops[-1:] if call.is_away else call.ops)]
            seen(done, took_s, [self._host(frame.at(op.out)) for op in done])

        return self._host(self._eager(batch, self.emitted.alone, passed))

    def values(self, batch: Batch) -> Iterator[tuple[Op, Floats]]:
        """One step, and then each op with a copy of what it wrote, in order."""
        return values_of(self, batch)

    def _run(self, batch: Batch) -> torch.Tensor:
        """The output on the device, of the rows that the batch asks for."""
        assert self.plan.output is not None
        if self.invariant and self.plan.output.rows == "R" and not self.apart:
            return self._fixed(batch)
        plain = self.plan.output.rows == "R" and not self.poisoned and not self.apart
        key = bucket_of(batch) if plain else None
        if key is None:
            return self._eager(batch, self.emitted.calls, None)
        bucket = self._filled(key, batch)
        self.graphs.run(key)
        return bucket.frame.output[: len(batch.logit_rows)]

    def _fixed(self, batch: Batch) -> torch.Tensor:
        """The step row by row in groups of one size, each row as a decode of its own: every kernel gets the
        same shapes whatever the batch is, so a row's sums always run in the same order.
        """
        lawful(self.plan, self.memory, batch, list(self.adapters))
        reach = min(n for n in (self.memory.n_blocks, -(-self.plan.context // BLOCK) or None) if n)
        key = Key(FIXED_ROWS, reach)
        bucket, scratch = self.graphs.bucket(key), self.states.scratch
        owners = np.repeat(np.arange(len(batch.slots)), np.diff(batch.starts))
        out = self._output(len(batch.tokens))
        for rows in row_groups(batch, bool(self.states.slots)):
            own, counted = owners[rows], np.arange(len(rows) + 1, dtype=np.int32)
            adapters = batch.adapters[own] if len(batch.adapters) else batch.adapters
            part = Batch(batch.tokens[rows], batch.positions[rows], counted, batch.blocks[own],
                         batch.slots[own], counted[:-1], adapters)  # fmt: skip
            bucket.inputs.fill(padded(arrays(part, scratch), key.n_sequences, key.n_blocks, scratch))
            if (adapters >= 0).any():
                frame = Frame(self.arena, bucket.frame.step, bucket.frame.output, adapted=True)
                for call in self.emitted.calls:
                    call.run(frame)
            else:
                self.graphs.run(key)
            out[torch.from_numpy(rows).to(self.device)] = bucket.frame.output[: len(rows)]
        return out[torch.from_numpy(batch.logit_rows.astype(np.int64)).to(self.device)]

    def _filled(self, key: Key, batch: Batch) -> Bucket:
        """The bucket with this batch in it."""
        lawful(self.plan, self.memory, batch, list(self.adapters))
        scratch, bucket = self.states.scratch, self.graphs.bucket(key)
        bucket.inputs.fill(padded(arrays(batch, scratch), key.n_sequences, key.n_blocks, scratch))
        return bucket

    def _bucket(self, key: Key) -> Bucket:
        """Memory and work of a bucket."""
        n = key.n_sequences
        inputs = Inputs(Shape(n, n, n, key.n_blocks, n), self.device)
        frame = Frame(self.arena, inputs.step(1, None), self._output(n))

        @torch.inference_mode()
        def work() -> None:
            for call in self.emitted.calls:
                call.run(frame)

        return Bucket(inputs, frame, work)

    def _output(self, n_rows: int) -> torch.Tensor:
        assert self.plan.output is not None
        return torch.zeros((n_rows, self.plan.output.width), dtype=torch.float32, device=self.device)

    def _eager(self, batch: Batch, calls: Sequence[Call], passed: Passed | None) -> torch.Tensor:
        lawful(self.plan, self.memory, batch, list(self.adapters))
        a = arrays(batch, self.states.scratch)
        shape, longest = shape_of(a), int(np.diff(batch.starts).max())
        inputs = self._inputs.pop(shape, None) or Inputs(shape, self.device)
        self._inputs[shape] = inputs
        if len(self._inputs) > KEPT_INPUTS:
            del self._inputs[next(iter(self._inputs))]
        inputs.fill(a)
        fresh = longest > 1 and not batch.positions[batch.starts[:-1]].any()
        output = self._output(output_rows(self.plan, shape))
        step = inputs.step(longest, batch, fresh)
        frame = Frame(self.arena, step, output, adapted=bool((batch.adapters >= 0).any()))
        if self.poisoned:
            frame.poison()
        last = perf_counter()
        for call in calls:
            call.run(frame)
            if passed:
                self._wait()
                passed(call, perf_counter() - last, frame)
                last = perf_counter()
        return output

    def _host(self, values: torch.Tensor) -> Floats:
        return np.array(values.float().cpu().numpy(), np.float32)  # a copy: memory of steps is used again

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -- what outlives a step -----------------------------------------------------------------------

    @torch.inference_mode()
    def copy_slot(self, source: int, target: int) -> None:
        """The recurrent states of slot `source` into slot `target`."""
        for own in self.states.slots.values():
            own[target].copy_(own[source])
        for other in self.apart:
            other.program.copy_slot(source, target)

    def block(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a cache block: itself where the device is the CPU, else a copy to read."""
        here = [self._bytes(own[number]) for own in self.states.blocks.values()]
        return (*here, *(part for other in self.apart for part in other.program.block(number)))

    def slot(self, number: int) -> tuple[Bytes, ...]:
        """The memory of a recurrent slot, likewise."""
        here = [self._bytes(own[number].view(torch.uint8)) for own in self.states.slots.values()]
        return (*here, *(part for other in self.apart for part in other.program.slot(number)))

    def _bytes(self, memory: torch.Tensor) -> Bytes:
        return np.asarray(memory.cpu().numpy())

    @torch.inference_mode()
    def adapt(self, at: int, adapter: Adapter | None) -> None:
        """Sequences that name adapter `at` get this one from the next step on; None: it is gone."""
        if adapter is None:
            self.adapters.pop(at, None)
        else:
            self.adapters[at] = adapter
        self.ranks.tables = self._tables()
        for other in self.apart:
            other.program.adapt(at, adapter)

    def _tables(self) -> dict[str, LowRanks]:
        """By weight, what all adapters add to its product, side by side and as wide as the widest."""
        found = dict[str, LowRanks]()
        if not self.adapters:
            return found
        n = max(self.adapters) + 1
        for op in self.plan.ops:
            if not isinstance(op, ops.Linear) or not op.adapted:
                continue
            own = {at: a[op.weight.name] for at, a in self.adapters.items() if op.weight.name in a}
            if not own:
                continue
            rank = max(low.a.shape[0] for low in own.values())
            a = torch.zeros((n, rank, op.weight.shape[1]))
            b, scales = torch.zeros((n, op.weight.shape[0], rank)), torch.zeros(n)
            for at, low in own.items():
                a[at, : low.a.shape[0]] = torch.from_numpy(low.a.floats())
                b[at, :, : low.b.shape[1]] = torch.from_numpy(low.b.floats())
                scales[at] = low.scale
            found[op.weight.name] = LowRanks(*(t.to(self.device) for t in (a, b, scales)))
        return found

    # -- choosing -----------------------------------------------------------------------------------

    def choose(self, logits: Floats, recent: Sequence[int], params: SamplingParams, drawn: float) -> int:
        """The next token for logits [V] (changed in place).  Raises Bug when no logit is above -inf."""
        return choose(kernels(), self.plan.name, logits, recent, params, drawn)

    def poison(self, on: bool = True) -> None:
        """Fills the arena with NaN before each step, so that an op that reads what nobody wrote shows."""
        self.poisoned = on

    def referenced(self) -> frozenset[str]:
        return frozenset()

    def close(self) -> None:
        self.graphs.close()


def row_groups(batch: Batch, one_each: bool) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of a step in groups of at most FIXED_ROWS, in order; `one_each`: of a sequence one a group."""
    place = np.arange(len(batch.tokens)) - np.repeat(batch.starts[:-1], np.diff(batch.starts))
    for nth in range(int(place.max()) + 1 if one_each else 1):
        rows = np.flatnonzero(place == nth) if one_each else np.arange(len(place))
        for at in range(0, len(rows), FIXED_ROWS):
            yield rows[at : at + FIXED_ROWS]
