"""A step on the device: the batch as tensors, padded or not, and where each value lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from kvasir.backends.base import BLOCK, Batch, Ints, Memory
from kvasir.backends.cuda.kernels.face import PIECE_ROWS, Step
from kvasir.errors import Bug
from kvasir.plan import Plan, Value
from kvasir.plan.passes import OUTPUT, ROWS, Layout

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """The sizes of a step: T rows of N sequences, R rows that want logits, a block table B wide, P pieces."""

    n_rows: int
    n_sequences: int
    n_logits: int
    n_blocks: int
    n_pieces: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Integers in each array of `ARRAYS`."""
        t, n, r, b, p = self.n_rows, self.n_sequences, self.n_logits, self.n_blocks, self.n_pieces
        return (t, t, n + 1, t, n, n * b, n, r, n, 2 * p)


ARRAYS = ("tokens", "positions", "starts", "owners", "lengths", "blocks", "slots", "logit_rows", "adapters",
          "pieces")  # fmt: skip


@dataclass(frozen=True)
class Scratch:
    """The cache block and the slot that rows of padding write to: beyond those that the engine knows."""

    block: int
    slot: int


def arrays(batch: Batch, scratch: Scratch) -> dict[str, Ints]:
    """The batch as the device wants it, without padding: unused blocks and slots are the scratch ones."""
    starts = np.asarray(batch.starts, np.int32)
    counts = np.diff(starts)
    n = len(counts)
    owners = np.repeat(np.arange(n, dtype=np.int32), counts)
    last = np.asarray(batch.positions, np.int32)[starts[1:] - 1]
    blocks, slots = (np.asarray(x, np.int32) for x in (batch.blocks, batch.slots))
    pieces = [
        (i, at) for i in range(n) for at in range(int(starts[i]), int(starts[i + 1]), PIECE_ROWS)
    ]  # fmt: skip
    return {
        "tokens": batch.tokens,
        "positions": batch.positions,
        "starts": starts,
        "owners": owners,
        "lengths": last + 1,
        "blocks": np.where(blocks < 0, np.int32(scratch.block), blocks),
        "slots": np.where(slots < 0, np.int32(scratch.slot), slots),
        "logit_rows": batch.logit_rows,
        "adapters": batch.adapters if len(batch.adapters) else np.full(n, -1, np.int32),
        "pieces": np.asarray(pieces, np.int32).reshape(-1, 2),
    }


def padded(a: Mapping[str, Ints], n: int, width: int, scratch: Scratch) -> dict[str, Ints]:
    """A decode of `n` sequences, tables `width` wide: what is added are sequences of one token at position 0
    in the scratch block.
    """
    own = len(a["slots"])
    more = n - own
    table = np.full((n, width), scratch.block, np.int32)
    used = min(width, a["blocks"].shape[1])
    table[:own, :used] = a["blocks"][:, :used]

    def filled(name: str, value: int) -> Ints:
        return np.concatenate([a[name], np.full(more, value, np.int32)])

    counted = np.arange(n + 1, dtype=np.int32)
    return {
        "tokens": filled("tokens", 0),
        "positions": filled("positions", 0),
        "starts": counted,
        "owners": counted[:-1],
        "lengths": filled("lengths", 1),
        "blocks": table,
        "slots": filled("slots", scratch.slot),
        "logit_rows": filled("logit_rows", 0),
        "adapters": filled("adapters", -1),
        "pieces": np.stack([counted[:-1], counted[:-1]], 1),
    }


def shape_of(a: Mapping[str, Ints]) -> Shape:
    n, b = a["blocks"].shape
    return Shape(len(a["tokens"]), n, len(a["logit_rows"]), b, len(a["pieces"]))


class Inputs:
    """One tensor on the device for all integers of a step of one shape.  Mutable: `fill` writes it.

    The copy is one and asynchronous, from pinned memory where there is a GPU.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        # Every array begins on 16 bytes.
        sizes = [-(-n // 4) * 4 for n in shape.sizes]
        edges = [sum(sizes[:i]) for i in range(len(sizes))]
        self.ints = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.copied: torch.cuda.Event | None = torch.cuda.Event() if device.type == "cuda" else None
        self._rooms = {
            name: slice(at, at + n) for name, at, n in zip(ARRAYS, edges, shape.sizes, strict=True)
        }
        views = {name: self.ints[room] for name, room in self._rooms.items()}
        views["blocks"] = views["blocks"].view(shape.n_sequences, shape.n_blocks)
        views["pieces"] = views["pieces"].view(shape.n_pieces, 2)
        self.views = views

    def fill(self, a: Mapping[str, Ints]) -> None:
        if self.copied is not None:
            self.copied.synchronize()  # the copy of the step before still reads the pinned memory
        into = self.host.numpy()
        for name, room in self._rooms.items():
            into[room] = a[name].reshape(-1)
        self.ints.copy_(self.host, non_blocking=True)
        if self.copied is not None:
            self.copied.record()

    def step(self, longest: int, host: Batch | None, fresh: bool = False) -> Step:
        return Step(**self.views, longest=longest, host=host, fresh=fresh)


@dataclass
class Arena:
    """Memory for the values of a step: an area for each kind of rows, and the output.  Mutable: grows."""

    placed: Layout
    dtypes: Mapping[int, torch.dtype]
    device: torch.device
    areas: list[torch.Tensor] = field(default_factory=list)

    def reserve(self, rows: Sequence[int]) -> None:
        """Room for so many rows of each kind.  Frames made before keep the memory that they have."""
        wanted = [w * n * FLOAT for w, n in zip(self.placed.widths, rows, strict=True)]
        for i, n_bytes in enumerate(wanted):
            if i == len(self.areas):
                self.areas.append(torch.zeros(n_bytes, dtype=torch.uint8, device=self.device))
            elif self.areas[i].numel() < n_bytes:
                self.areas[i] = torch.zeros(n_bytes, dtype=torch.uint8, device=self.device)

    @property
    def n_bytes(self) -> int:
        return sum(int(a.numel()) for a in self.areas)


class Frame:
    """What the calls of one step work on.  Mutable: views of values are made when they are first asked for.

    `adapted`: some sequence has an adapter.
    """

    def __init__(self, arena: Arena, step: Step, output: torch.Tensor, *, adapted: bool = False) -> None:
        rows = (len(step.tokens), len(step.logit_rows), len(step.slots))
        arena.reserve(rows)
        self.step, self.output, self.adapted = step, output, adapted
        self._rows, self._areas = rows, tuple(arena.areas)
        self._placed, self._dtypes = arena.placed, arena.dtypes
        self._views: dict[int, torch.Tensor] = {}

    def at(self, v: Value) -> torch.Tensor:
        """The value's memory: [rows, width], its row stride at least its width."""
        if v.id not in self._views:
            place = self._placed.places[v.id]
            self._views[v.id] = self._area(v, place.stride)[:, place.column : place.column + place.width]
        return self._views[v.id]

    def whole(self, v: Value) -> torch.Tensor:
        """The matrix that the value is columns of."""
        return self._area(v, self._placed.places[v.id].stride)

    def poison(self) -> None:
        """NaN wherever nobody has written yet."""
        for area in self._areas:
            area.fill_(255)

    def _area(self, v: Value, stride: int) -> torch.Tensor:
        place = self._placed.places[v.id]
        if place.base == OUTPUT:
            return self.output
        n, dtype = self._rows[place.base], self._dtypes[v.id]
        begin = place.offset * n * FLOAT
        n_bytes = n * stride * dtype.itemsize
        return self._areas[place.base][begin : begin + n_bytes].view(dtype).view(n, stride)


def output_rows(plan: Plan, shape: Shape) -> int:
    assert plan.output is not None
    return (shape.n_rows, shape.n_logits, shape.n_sequences)[ROWS.index(plan.output.rows)]


def lawful(plan: Plan, memory: Memory, batch: Batch, adapters: Sequence[int]) -> None:
    """Raises Bug for a batch that would reach beyond a table, a cache or another sequence's memory."""
    b = batch
    fault = _fault(plan, memory, b)
    if not fault and (missing := set(b.adapters.tolist()) - {-1, *adapters}):
        fault = f"no adapter is at {min(missing)}"
    if fault:
        raise Bug(f"a batch for {plan.name} breaks its law: {fault}")


def _fault(plan: Plan, memory: Memory, b: Batch) -> str:
    n, t = len(b.starts) - 1, len(b.tokens)
    if [a.ndim for a in (b.tokens, b.positions, b.starts, b.blocks, b.slots, b.logit_rows)] != [
        1,
        1,
        1,
        2,
        1,
        1,
    ]:
        return "an array has not the dimensions it should"
    if n < 1 or t < 1:
        return "it is empty"
    if len(b.positions) != t or len(b.blocks) != n or len(b.slots) != n or len(b.adapters) not in (0, n):
        return "its arrays do not fit together"
    if b.starts[0] != 0 or b.starts[-1] != t or (np.diff(b.starts) < 1).any():
        return "starts do not rise from 0 to the number of rows"
    limits = [("tokens", b.tokens, plan.table_rows("tokens")), ("logit_rows", b.logit_rows, t)]
    if table := plan.table_rows("positions"):
        limits.append(("positions", b.positions, table))
    for name, a, limit in limits:
        if len(a) and (a.min() < 0 or a.max() >= limit):
            return f"{name} are not all from 0 to {limit - 1}"
    return _placed_wrong(plan, memory, b)


def _placed_wrong(plan: Plan, memory: Memory, b: Batch) -> str:
    first, last = b.positions[b.starts[:-1]], b.positions[b.starts[1:] - 1]
    inner = np.ones(len(b.tokens), bool)
    inner[b.starts[:-1]] = False
    if (b.positions < 0).any() or (np.diff(b.positions)[inner[1:]] != 1).any():
        return "positions of a sequence do not rise by one from at least 0"
    kinds = {s.kind for s in plan.states.values()}
    if "paged" in kinds:
        need = last // BLOCK + 1
        if (need > b.blocks.shape[1]).any():
            return "too few blocks for a sequence"
        used = np.arange(b.blocks.shape[1])[None] < need[:, None]
        own = b.blocks[used]
        if (own < 0).any() or (own >= memory.n_blocks).any():
            return f"blocks are not all from 0 to {memory.n_blocks - 1}"
        written = b.blocks[used & (np.arange(b.blocks.shape[1])[None] >= (first // BLOCK)[:, None])]
        if len(np.unique(written)) != len(written):
            return "two sequences write one block"
    if "slot" in kinds:
        if (b.slots < 0).any() or (b.slots >= memory.n_slots).any():
            return f"slots are not all from 0 to {memory.n_slots - 1}"
        if len(np.unique(b.slots)) != len(b.slots):
            return "two sequences share a slot"
    return ""
