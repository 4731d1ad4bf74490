"""Recipes: bring any checkpoint's tensors to the form a plan wants, row by row, without decoding them.

A `Part` is a tensor whose shape and format are known and whose bytes are made when they are asked for.  Rows
are cut, permuted, joined and stacked as encoded bytes, so quantized tensors stay so; arithmetic is done
in float32 and only on F32, F16 and BF16.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kvasir.checkpoint.tensor import Tensor
from kvasir.errors import CheckpointError
from kvasir.plan import Plan
from kvasir.quant.formats import BF16, F16, F32, MXFP4, U8, Format
from kvasir.records import dataclass

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Index = slice | Indices
T = TypeVar("T")

PLAIN = (F32, F16, BF16)
log = logging.getLogger("kvasir")


@dataclass(frozen=True)
class Part:
    """A tensor to be: `shape` and `format` are known now, `raw()` makes its bytes as `Tensor` has them."""

    name: str
    format: Format
    shape: tuple[int, ...]
    raw: Callable[[], Bytes]

    @staticmethod
    def of(t: Tensor) -> Part:
        return Part(t.name, t.format, t.shape, lambda: t.raw)

    def tensor(self, name: str) -> Tensor:
        return Tensor(name, self.format, self.shape, self.raw())

    def floats(self) -> Floats:
        return self.tensor(self.name).floats()


# -- rows, as bytes -------------------------------------------------------------------------------


def grid(t: Part) -> Bytes:
    """The bytes by the axes that can be indexed: [*shape[:-1], row bytes]; unblocked [*shape, item bytes]."""
    items = t.shape if t.format.block == 1 else t.shape[:-1]
    return t.raw().reshape(*items, -1)


def flat(t: Bytes, shape: Sequence[int], form: Format) -> Bytes:
    return t.reshape(-1, form.row_bytes(shape[-1]))


def pick(t: Part, index: Index, axis: int = 0) -> Part:
    """The entries `index` (a slice, or numbers) along `axis`; the last axis only of unblocked formats."""
    if axis == len(t.shape) - 1 and t.format.block > 1:
        raise CheckpointError(f"{t.name}: columns of {t.format.name} cannot be moved without decoding them",
                              hint="use a file in which this tensor is F16, BF16 or F32")  # fmt: skip
    size = len(range(t.shape[axis])[index]) if isinstance(index, slice) else len(index)
    shape = (*t.shape[:axis], size, *t.shape[axis + 1 :])
    where = (*(slice(None),) * axis, index)
    return Part(t.name, t.format, shape, lambda: flat(grid(t)[where], shape, t.format))


def join(parts: Sequence[Part], axis: int = 0) -> Part:
    """The parts one after another along `axis`."""
    first = parts[0]
    same(parts, skip=axis)
    shape = (*first.shape[:axis], sum(p.shape[axis] for p in parts), *first.shape[axis + 1 :])

    def raw() -> Bytes:
        return flat(np.concatenate([grid(p) for p in parts], axis), shape, first.format)

    return Part(first.name, first.format, shape, raw)


def stack(parts: Sequence[Part]) -> Part:
    """The parts under a new first axis, as experts are kept: E of [F, D] -> [E, F, D]."""
    first = parts[0]
    same(parts, skip=None)
    shape = (len(parts), *first.shape)
    return Part(first.name, first.format, shape, lambda: np.concatenate([p.raw() for p in parts]))


def same(parts: Sequence[Part], skip: int | None) -> None:
    """Raises CheckpointError unless all parts have one format and, but for the axis `skip`, one shape."""
    for p in parts:
        shapes = [tuple(n for i, n in enumerate(q.shape) if i != skip) for q in (p, parts[0])]
        if shapes[0] != shapes[1] or p.format != parts[0].format:
            one, two = (f"{t.name} is {t.format.name} {list(t.shape)}" for t in (p, parts[0]))
            raise CheckpointError(f"{one}, {two}: they cannot be one tensor")


def shaped(t: Part, *shape: int) -> Part:
    """The same weights read as another shape; blocked rows must keep their width."""
    if prod(shape) != prod(t.shape) or (t.format.block > 1 and shape[-1] != t.shape[-1]):
        raise CheckpointError(f"{t.name} is {t.shape}, the plan wants {shape}")
    return Part(t.name, t.format, shape, lambda: flat(np.ascontiguousarray(t.raw()), shape, t.format))


def transposed(t: Part) -> Part:
    """The last two axes exchanged: matrices kept inputs first.  Unblocked formats only."""
    plain(t)
    shape = (*t.shape[:-2], t.shape[-1], t.shape[-2])
    return Part(t.name, t.format, shape, lambda: flat(grid(t).swapaxes(-3, -2), shape, t.format))


def half_split(t: Part, heads: int) -> Part:
    """Rows of each head from interleaved pairs (2i, 2i+1) to halves (i, i + d/2): GGUF's Llama Q and K."""
    if t.shape[0] % (2 * heads):
        raise CheckpointError(f"{t.name} is {t.shape}: {t.shape[0]} rows are not {heads} heads of even width")
    order = np.arange(t.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
    return pick(t, order)


def mxfp4(blocks: Part, scales: Part) -> Part:
    """gpt-oss's blocks [..., O, D/32, 16] and scales [..., O, D/32] as MXFP4 rows [..., O, D], losslessly.

    There byte i holds weights 2i (low) and 2i + 1 (high) of the 32; in GGUF's block weights i and i + 16.
    """
    if blocks.format != U8 or scales.format != U8 or blocks.shape != (*scales.shape, 16):
        raise CheckpointError(f"{blocks.name} {blocks.shape} and {scales.name} {scales.shape} are not MXFP4")
    shape = (*scales.shape[:-1], scales.shape[-1] * 32)

    def raw() -> Bytes:
        packed = blocks.raw().reshape(-1, 16)
        nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(-1, 32)
        own = nibbles[:, :16] | nibbles[:, 16:] << 4
        return flat(np.concatenate([scales.raw().reshape(-1, 1), own], 1), shape, MXFP4)

    return Part(blocks.name, MXFP4, shape, raw)


# -- arithmetic -----------------------------------------------------------------------------------


def plain(t: Part) -> None:
    if t.format not in PLAIN:
        raise CheckpointError(f"{t.name} is {t.format.name}; this model needs it as F32, F16 or BF16")


def changed(fn: Callable[[Floats], Floats], t: Part) -> Part:
    """fn of the weights, in float32 and the same shape."""
    plain(t)
    return Part(t.name, F32, t.shape, lambda: encoded(fn(t.floats()), t.shape))


def summed(t: Part, u: Part) -> Part:
    """t + u in float32; u is broadcast over the first axis."""
    plain(t)
    plain(u)
    return Part(t.name, F32, t.shape, lambda: encoded(t.floats() + u.floats(), t.shape))


def encoded(x: Floats, shape: Sequence[int]) -> Bytes:
    return np.ascontiguousarray(x, np.float32).view(np.uint8).reshape(-1, 4 * shape[-1])


def one_more(t: Part) -> Part:
    """1 + w: norms kept as their distance from one."""
    return changed(lambda w: 1 + w, t)


# -- finding tensors ------------------------------------------------------------------------------


class Missing(Exception):
    """No tensor has the name that a recipe asked for; `resolve` collects these."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


@dataclass
class Source:
    """The checkpoint's tensors by name.  Mutable: `used` remembers which were asked for."""

    tensors: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set)

    def get(self, *names: str) -> Part:
        for name in names:
            if name in self.tensors:
                self.used.add(name)
                return Part.of(self.tensors[name])
        raise Missing(names[0])


@dataclass(frozen=True)
class Look:
    """What a recipe sees: tensors of one layer (`prefix`), their weight or bias (`suffix`)."""

    source: Source
    prefix: str
    suffix: str

    def names(self, name: str) -> tuple[str, ...]:
        full = self.prefix + name
        # gamma and beta: what TensorFlow called a layer norm's weight and bias, kept by old BERT files
        if self.suffix == ".bias":
            return full + ".bias", full + ".beta"
        return full + ".weight", full, full + ".gamma"

    def __call__(self, name: str) -> Part:
        return self.source.get(*self.names(name))

    def has(self, name: str) -> bool:
        return any(n in self.source.tensors for n in self.names(name))


Recipe = str | Callable[[Look], Part]
Recipes = Mapping[str, Recipe]

# Safetensors' names of what most decoders have, by the plan's; a family adds its own.
DECODER: Recipes = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "bert.")
LAYER = re.compile(r"blk\.(\d+)\.")

# Tensors that files carry and no computation needs: tables that are computed, masks, and of BERT what only
# its training used.
LEFTOVERS = re.compile(
    r"rotary_emb\.inv_freq$|masked_bias$|\.attn\.bias$|position_ids$|^rope_freqs\.weight$"
    r"|^pooler\.dense\.|^cls\.(predictions|seq_relationship)\."
)


def bare(tensors: Mapping[str, T]) -> dict[str, T]:
    """Safetensors' names without the prefix of the module that holds the decoder."""
    names = {}
    for name, t in tensors.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        names[name.removeprefix(prefix)] = t
    if len(names) != len(tensors):
        raise CheckpointError("two tensors differ only by the prefix of their names")
    return names


@dataclass(frozen=True)
class Weights(Mapping[str, Tensor]):
    """A plan's weights by name.  Each is made when asked for and not kept, so one at a time is in memory."""

    parts: Mapping[str, Part]

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name].tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def sizes(self) -> dict[str, int]:
        """Encoded bytes of each weight, without making any."""
        return {n: prod(p.shape[:-1]) * p.format.row_bytes(p.shape[-1]) for n, p in self.parts.items()}


def find(name: str, recipes: Recipes, source: Source, layers: str) -> Part:
    """The part for one weight of a plan, by its recipe or else under its own name.

    `layers` is how the file writes a layer's prefix: "layers.{}." or "blk.{}.".
    """
    match = LAYER.match(name)
    prefix = layers.format(match[1]) if match else ""
    local = name[match.end() :] if match else name
    suffix = ".weight"
    if local not in recipes and local.endswith(".bias"):
        local, suffix = local.removesuffix(".bias"), ".bias"
    look = Look(source, prefix, suffix)
    recipe = recipes.get(local, local)
    return look(recipe) if isinstance(recipe, str) else recipe(look)


def resolve(plan: Plan, tensors: Mapping[str, Tensor], recipes: Recipes, layers: str = "blk.{}.",
            set_aside: str = "", read: frozenset[str] = frozenset()) -> Weights:  # fmt: skip
    """The plan's weights from a file's tensors; nothing is decoded and nothing copied yet.

    `set_aside` is a pattern of tensors of parts that are not run (vision, draft heads): they are named in a
    warning.  `read`: names that were already made use of.
    Raises CheckpointError for a missing tensor, a shape that is not the plan's, a tensor that nobody used.
    """
    source, parts, missing = Source(tensors, set(read)), dict[str, Part](), dict[str, str]()
    for name, weight in plan.weights.items():
        try:
            part = find(name, recipes, source, layers)
        except Missing as e:
            missing[e.name] = name
            continue
        if part.shape != weight.shape:
            raise CheckpointError(
                f"{part.name} is {list(part.shape)}, the plan wants {list(weight.shape)} for {name}",
                hint="the file may be for another architecture; try `kvasir show --plan`",
            )
        parts[name] = part
    unused = [n for n in tensors if n not in source.used and not LEFTOVERS.search(n)]
    if "output" not in plan.weights:  # tied: a copy of the embedding that is saved all the same
        unused = [n for n in unused if n != "lm_head.weight"]
    if missing:
        hint = "the download may be incomplete, or the file is for another architecture"
        raise CheckpointError(_missing(missing, unused), hint=hint)
    _refuse(unused, set_aside)
    return Weights(parts)


def _missing(missing: Mapping[str, str], unused: Sequence[str]) -> str:
    first = next(iter(missing))
    near = difflib.get_close_matches(first, unused[:20000], 2, 0.6)
    more = f" and {len(missing) - 1} more tensors are" if len(missing) > 1 else " is"
    return f"{first}{more} not in the file" + (f"; it has {' and '.join(near)}" if near else "")


def _refuse(unused: Sequence[str], set_aside: str) -> None:
    """Raises CheckpointError for tensors that nobody used; a warning tells of those set aside."""
    aside = [n for n in unused if set_aside and re.match(set_aside, n)]
    if aside:
        log.warning("%d tensors are not run: %s, ...", len(aside), aside[0])
    wrong = sorted(set(unused) - set(aside))
    if wrong:
        names = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise CheckpointError(f"{len(wrong)} tensors of the file are not used: {names}",
                              hint="the model would answer wrongly without them; Kvasir does not know this "
                              "variant of the architecture")  # fmt: skip
