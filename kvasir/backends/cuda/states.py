"""The KV cache and the recurrent states on the device, and one block and slot more: those of padding."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from kvasir.backends.base import BLOCK, Memory
from kvasir.backends.cuda.frame import Scratch
from kvasir.backends.cuda.kernels.face import Paged
from kvasir.plan import Plan, ops

Q8_GROUP = 32
PLAIN = {"f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class States:
    """`blocks`: by name the bytes of a paged state, [n_blocks + 1, bytes of a block]; `paged` are views of
    them.  `slots`: by name the floats of a slot state, [n_slots + 1, width].
    """

    blocks: Mapping[str, torch.Tensor]
    paged: Mapping[str, Paged]
    slots: Mapping[str, torch.Tensor]
    scratch: Scratch

    @property
    def n_bytes(self) -> int:
        return sum(int(t.numel() * t.element_size()) for t in (*self.blocks.values(), *self.slots.values()))


@dataclass(frozen=True)
class Heads:
    """How a paged state is divided: K heads, dk and dv wide."""

    count: int
    k: int
    v: int

    def block_bytes(self, kv_format: str) -> int:
        """Bytes of a block, rounded up so that all of its parts begin on 16 bytes."""
        return sum(size for _, _, size in self.parts(kv_format))

    def parts(self, kv_format: str) -> list[tuple[torch.dtype, int, int]]:
        """k, v, and for q8_0 their scales: dtype, columns of a head's row, bytes in a block."""
        plain = PLAIN.get(kv_format, torch.int8)
        found = [(plain, self.k), (plain, self.v)]
        if kv_format == "q8_0":
            found += [(torch.float16, -(-d // Q8_GROUP)) for d in (self.k, self.v)]
        return [(t, d, -(-self.count * BLOCK * d * t.itemsize // 16) * 16) for t, d in found]


def heads_of(plan: Plan) -> dict[str, Heads]:
    """How each paged state is divided, by the ops that use it."""
    found = dict[str, Heads]()
    for op in plan.ops:
        if isinstance(op, ops.Attend) and op.cache:
            found[op.cache.name] = Heads(op.kv_heads, op.k.width // op.kv_heads, op.v.width // op.kv_heads)
    return found


def state_bytes(plan: Plan, kv_format: str) -> tuple[int, int]:
    """Bytes of one cache block, and of one slot, over all states of the plan."""
    heads = heads_of(plan)
    block = sum(h.block_bytes(kv_format) for h in heads.values())
    return block, sum(s.width for s in plan.states.values() if s.kind == "slot") * 4


def make_states(plan: Plan, memory: Memory, device: torch.device, elsewhere: Collection[str] = ()) -> States:
    """Zeroed states for one block and one slot more than the engine knows; without those kept elsewhere."""
    blocks, paged = dict[str, torch.Tensor](), dict[str, Paged]()
    for name, heads in heads_of(plan).items():
        if name in elsewhere:
            continue
        size = (memory.n_blocks + 1, heads.block_bytes(memory.kv_format))
        blocks[name] = torch.zeros(size, dtype=torch.uint8, device=device)
        paged[name] = _paged(blocks[name], heads, memory.kv_format)
    slots = {
        s.name: torch.zeros((memory.n_slots + 1, s.width), dtype=torch.float32, device=device)
        for s in plan.states.values()
        if s.kind == "slot" and s.name not in elsewhere
    }
    return States(blocks, paged, slots, Scratch(memory.n_blocks, memory.n_slots))


def _paged(storage: torch.Tensor, heads: Heads, kv_format: str) -> Paged:
    views, at = list[torch.Tensor](), 0
    for dtype, width, n_bytes in heads.parts(kv_format):
        part = storage.view(dtype)
        used = heads.count * BLOCK * width
        first = at // dtype.itemsize
        views.append(part[:, first : first + used].unflatten(1, (heads.count, BLOCK, width)))
        at += n_bytes
    return Paged(*views)
