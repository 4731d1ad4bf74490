"""Pieces that most decoders share: each appends a few ops to a plan; a model file picks and orders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import Look, Part, Recipe, Recipes, half_split, join, pick, stack
from kvasir.errors import CheckpointError
from kvasir.models.rope import Given, Rotation
from kvasir.plan import Plan, Value
from kvasir.plan.ops import Activation, Route
from kvasir.records import dataclass

NONE: Mapping[str, int] = {}


@dataclass(frozen=True)
class Family:
    """One architecture: how its plan is built, and by which recipes its weights are found in either format.

    `set_aside`: a pattern of tensors in its files that belong to parts Kvasir does not run.  `layers`: how a
    layer's tensors begin in safetensors.
    """

    plan: Callable[[Config, Given], Plan]
    safetensors: Callable[[Config], Recipes]
    gguf: Callable[[Config], Recipes] = lambda c: {}
    set_aside: Callable[[Config], str] = lambda c: ""
    layers: str = "layers.{}."


@dataclass(frozen=True)
class Dims:
    """The sizes of a decoder; `d` is the width of a head."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    d: int
    vocab: int
    eps: float
    tied: bool
    context: int


def dims(c: Config, given: Given, tied: bool = False, usual: Mapping[str, int] = NONE) -> Dims:
    """The config's sizes, checked.  `tied` output and `usual` sizes stand in for what it leaves out."""

    def size(key: str, otherwise: int | None = None) -> int:
        default = usual.get(key, otherwise)
        return c.int(key) if default is None else c.int(key, default)

    width, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads, longest = size("num_key_value_heads", heads), size("max_position_embeddings")
    d = size("head_dim", max(width // heads, 1))
    if heads % kv_heads:
        raise CheckpointError(f"{c.where}: {heads} heads cannot share {kv_heads} key-value heads")
    if d % 2:
        raise CheckpointError(f"{c.where}: heads of {d} columns, an even number is wanted")
    tied = c.bool("tie_word_embeddings", tied or not {"output.weight", "lm_head.weight"} & set(given.tensors))
    context = min(longest, given.context or longest)
    eps = c.float("rms_norm_eps", c.float("layer_norm_eps", 1e-6))
    return Dims(width, size("num_hidden_layers"), heads, kv_heads, d, size("vocab_size"), eps, tied, context)


# -- attention ------------------------------------------------------------------------------------


def qkv(p: Plan, m: Dims, x: Value, bias: bool = False) -> tuple[Value, Value, Value]:
    q = p.linear(x, "attn_q", m.heads * m.d, bias, split=True)
    k = p.linear(x, "attn_k", m.kv_heads * m.d, bias, split=True)
    return q, k, p.linear(x, "attn_v", m.kv_heads * m.d, bias, split=True)


def normed(p: Plan, m: Dims, q: Value, k: Value) -> tuple[Value, Value]:
    """An RMS norm for each head of q and k."""
    return p.norm(q, "attn_q_norm", m.eps, m.heads), p.norm(k, "attn_k_norm", m.eps, m.kv_heads)


def turned(p: Plan, m: Dims, q: Value, k: Value, r: Rotation) -> tuple[Value, Value]:
    spec = r.inverse_frequencies, r.magnitude
    return p.rope(q, m.heads, *spec), p.rope(k, m.kv_heads, *spec)


def attend(p: Plan, m: Dims, q: Value, k: Value, v: Value, window: int = 0) -> Value:
    return p.attend(q, k, v, m.heads, m.kv_heads, m.d**-0.5, window=window)


def layer_windows(c: Config, layers: int, sliding: Callable[[int], bool], usual: int = 0) -> list[int]:
    """The window of each layer, 0 where it sees everything: by `layer_types`, else where `sliding(i)`."""
    window = c.int("sliding_window", usual)
    kinds = {"sliding_attention": True, "full_attention": False}
    told = c.strs("layer_types", [])
    if told and (len(told) != layers or not set(told) <= set(kinds)):
        raise CheckpointError(f"{c.where}: layer_types must be {layers} of {', '.join(kinds)}")
    slides = [kinds[t] for t in told] or [sliding(i) for i in range(layers)]
    if any(slides) and c.has("layer_types") and not window:
        raise CheckpointError(f"{c.where}: layer_types has sliding layers, but there is no sliding_window")
    return [window if s else 0 for s in slides]


# -- feed forward ---------------------------------------------------------------------------------


def mlp(p: Plan, m: Dims, x: Value, ffn: int, fn: Activation = "silu", bias: bool = False) -> Value:
    gate = p.linear(x, "ffn_gate", ffn, bias, split=True)
    up = p.linear(x, "ffn_up", ffn, bias, split=True)
    return p.linear(p.glu(gate, up, fn), "ffn_down", m.width, bias)


def moe(p: Plan, x: Value, n: int, k: int, ffn: int, route: Route) -> Value:
    """k of n experts of inner width ffn, chosen by a router."""
    if not 0 < k <= n:
        raise CheckpointError(f"{k} of {n} experts cannot be chosen")
    return p.experts(x, p.linear(x, "ffn_gate_inp", n), k, ffn, route)


# -- ends -----------------------------------------------------------------------------------------


def start(name: str, m: Dims) -> tuple[Plan, Value]:
    """A plan and the embedded tokens."""
    p = Plan(name, context=m.context)
    return p, p.embed("token_embd", m.vocab, m.width)


def finish(p: Plan, m: Dims, x: Value, softcap: float = 0.0) -> Plan:
    """The last norm and the logits of the rows that want them."""
    p.top()
    x = p.norm(p.take(x), "output_norm", m.eps)
    x = p.linear(x, "token_embd" if m.tied else "output", m.vocab, split=True)
    p.output = p.softcap(x, softcap) if softcap else x
    return p


# -- recipes --------------------------------------------------------------------------------------


def rows_of(name: str, start: int, stop: int) -> Recipe:
    """Rows start:stop of a packed matrix."""
    return lambda look: pick(look(name), slice(start, stop))


def packed(name: str, *own: tuple[str, int]) -> dict[str, Recipe]:
    """Recipes for matrices that a file keeps one under another in `name`: (plan name, rows) each."""
    recipes, at = dict[str, Recipe](), 0
    for local, rows in own:
        recipes[local] = rows_of(name, at, at + rows)
        at += rows
    return recipes


def unpermuted(c: Config) -> Recipes:
    """GGUF's Llama: rows of Q and K lie for interleaved rope; the plan's rope turns halves."""
    heads = c.int("num_attention_heads")
    kv_heads = c.int("num_key_value_heads", heads)
    return {"attn_q": lambda look: half_split(look("attn_q"), heads),
            "attn_k": lambda look: half_split(look("attn_k"), kv_heads)}  # fmt: skip


def expert_stack(fused: str, each: Sequence[str]) -> dict[str, Recipe]:
    """Recipes for ffn_gate_exps, ffn_up_exps, ffn_down_exps from tensors an expert or from fused ones.

    `each`: names of an expert's gate, up and down, with {} for its number.  `fused` is the module that holds
    gate_up_proj [E, 2F, D] and down_proj [E, D, F], as Transformers 5 keeps them.
    """

    def one(which: int) -> Recipe:
        def recipe(look: Look) -> Part:
            whole = f"{fused}.{'down_proj' if which == 2 else 'gate_up_proj'}"
            if look.has(whole):
                t = look(whole)
                half = t.shape[1] // 2
                return t if which == 2 else pick(t, slice(which * half, (which + 1) * half), axis=1)
            first = look(each[which].format(0))
            parts, e = [first], 1
            while look.has(each[which].format(e)):
                parts.append(look(each[which].format(e)))
                e += 1
            return stack(parts)

        return recipe

    return {f"ffn_{name}_exps": one(i) for i, name in enumerate(("gate", "up", "down"))}


def joined(*names: str) -> Recipe:
    """Matrices of the file one under another."""
    return lambda look: join([look(n) for n in names])
