"""A model's configuration, read key by key, and a memory of which keys were read.

After the plan is built, a key that could change the mathematics and that nobody read is an error: wrong
output becomes a message at load.  Keys go by their Hugging Face names, in GGUF files too (`gguf_names.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from kvasir.errors import CheckpointError

# Inside `Config` the names int, float, bool and str are methods.
Int: TypeAlias = int
Float: TypeAlias = float
Bool: TypeAlias = bool
Str: TypeAlias = str
T = TypeVar("T")


class _Required:
    """The default of a key that has none."""


REQUIRED = _Required()

# What a count may be, wherever it is read: zero heads would divide by zero, 10^9 layers would never end.
RANGES: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 4096),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "moe_intermediate_size": (1, 1 << 22),
    "shared_expert_intermediate_size": (0, 1 << 22),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (1, 1 << 14),
    "head_dim": (1, 1 << 16),
    "v_head_dim": (1, 1 << 16),
    "vocab_size": (1, 1 << 24),
    "type_vocab_size": (1, 1 << 16),
    "max_position_embeddings": (1, 1 << 40),
    "original_max_position_embeddings": (1, 1 << 40),
    "num_experts": (0, 1 << 14),
    "num_experts_per_tok": (0, 1 << 14),
    "sliding_window": (0, 1 << 40),
    "full_attention_interval": (1, 4096),
    "linear_conv_kernel_dim": (1, 1 << 10),
    "linear_key_head_dim": (1, 1 << 16),
    "linear_value_head_dim": (1, 1 << 16),
    "linear_num_key_heads": (1, 1 << 14),
    "linear_num_value_heads": (1, 1 << 14),
}
INT_LIMIT = 1 << 53
LONGEST_LIST = 1 << 16
ABOVE_ZERO = frozenset({"rope_theta", "rope_local_base_freq", "factor", "query_pre_attn_scalar"})

# Two names of one thing in different families: the first is read wherever the second is asked for.
ALIASES = {"num_local_experts": "num_experts", "experts_per_token": "num_experts_per_tok"}

# Keys that name code.  Kvasir runs none that a model brings, and does not pretend to have understood them.
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "attn_implementation")
CODE_PREFIXES = ("_attn_implementation", "_experts_implementation")

# Keys that cannot change what a forward step computes, by reason.
HARMLESS = frozenset(
    {
        # who and what it is
        *(
            "architectures",
            "model_type",
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "transformers_version",
        ),
        *("transformers.js_config", "unsloth_fixed", "unsloth_version", "base_model_name_or_path"),
        # how it is stored: the tensors themselves say so
        *("torch_dtype", "dtype", "use_bfloat16"),
        # what the library around it returns or caches
        *("use_cache", "cache_implementation", "return_dict", "return_dict_in_generate", "torchscript"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "output_scores"),
        *(
            "_attn_implementation_autoset",
            "chunk_size_feed_forward",
            "gradient_checkpointing",
            "pretraining_tp",
        ),
        *("tf_legacy_loss", "use_flash_attn", "is_llama_config"),
        # labels and tasks
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
        # training: initial values, losses, noise; dropout is found by its ending
        *(
            "initializer_range",
            "initializer_factor",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "dropout",
        ),
        *("aux_loss_alpha", "seq_aux", "router_z_loss_coef", "input_jitter_noise"),
        # old defaults of generation, which come from generation_config.json today
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences"),
        *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
        *("remove_invalid_values", "prefix"),
    }
)
HARMLESS_ENDINGS = ("_token_id", "_token_ids", "dropout", "_dropout_prob", "_pdrop", "_dropout_p")

# Keys that change nothing as long as they have one of these values.
HARMLESS_VALUES: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "position_embedding_type": ("absolute",),
    "use_bidirectional_attention": (False,),
    "rope_interleaved": (False,),
}


class Config:
    """Mutable: remembers what was read.  Keys with the value null count as absent.

    Each reader raises CheckpointError, naming file, key and value, for a value of another type or out of
    range, and for an absent key when no default is given.
    """

    def __init__(
        self,
        values: Mapping[Str, object],
        where: Str,
        architecture: Str = "",
        file_keys: Mapping[Str, Str] | None = None,
        path: Str = "",
    ):
        """`where`: the file, for messages; `file_keys`: its own names of keys; `path` ends in "."."""
        self.where, self.architecture, self._path = where, architecture, path
        self._file_keys = dict(file_keys or {})
        self._values = _canonical(values, where, path)
        self._read: set[Str] = set()
        self._tables: dict[Str, Config] = {}

    def __repr__(self) -> Str:
        return f"Config({self.architecture or self._path}, {len(self._values)} keys of {self.where})"

    # ---- reading

    def has(self, key: Str) -> Bool:
        """Whether the key is there and not null.  Not a reading of it."""
        return self._values.get(ALIASES.get(key, key)) is not None

    def int(self, key: Str, default: Int | _Required = REQUIRED) -> Int:
        """A whole number.  Where GGUF gives one a layer, and all are the same: that one."""
        value = self._take(key, default)
        if isinstance(value, list) and value and all(isinstance(v, int) and v == value[0] for v in value):
            value = value[0]
        return self._whole(key, value)

    def float(self, key: Str, default: Float | _Required = REQUIRED) -> Float:
        """A finite number."""
        return self._finite(key, self._take(key, default))

    def bool(self, key: Str, default: Bool | _Required = REQUIRED) -> Bool:
        """true or false, and nothing that merely resembles them."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._ill_typed(key, value, "true or false")
        return value

    def str(self, key: Str, default: Str | _Required = REQUIRED) -> Str:
        """A text."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._ill_typed(key, value, "a text")
        return value

    def ints(self, key: Str, default: Sequence[Int] | _Required = REQUIRED) -> list[Int]:
        """A list of whole numbers; of counts each may be 0 (a layer without heads)."""
        return [self._whole(key, v, least=0) for v in self._list(key, default)]

    def floats(self, key: Str, default: Sequence[Float] | _Required = REQUIRED) -> list[Float]:
        """A list of finite numbers."""
        return [self._finite(key, v) for v in self._list(key, default)]

    def bools(self, key: Str, default: Sequence[Bool] | _Required = REQUIRED) -> list[Bool]:
        """A list of true and false."""
        values = self._list(key, default)
        for v in values:
            if not isinstance(v, bool):
                raise self._ill_typed(key, v, "a list of true and false")
        return [v is True for v in values]

    def strs(self, key: Str, default: Sequence[Str] | _Required = REQUIRED) -> list[Str]:
        """A list of texts."""
        texts = []
        for v in self._list(key, default):
            if not isinstance(v, str):
                raise self._ill_typed(key, v, "a list of texts")
            texts.append(v)
        return texts

    def table(self, key: Str) -> Config | None:
        """The table under `key`, as a Config whose own unread keys count as this one's; None when absent."""
        value = self._take(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._ill_typed(key, value, "a table")
        if key not in self._tables:
            path = f"{self._path}{key}."
            keys = {
                k.removeprefix(f"{key}."): v for k, v in self._file_keys.items() if k.startswith(f"{key}.")
            }
            self._tables[key] = Config(value, self.where, self.architecture, keys, path)
        return self._tables[key]

    def must(self, key: Str, *allowed: object, required: Bool = False) -> None:
        """Says that only these values are implemented.  An absent key is fine unless `required`."""
        value = self._take(key, REQUIRED if required else None)
        if value is not None and not any(_same(value, a) for a in allowed):
            wanted = " or ".join(repr(a) for a in allowed)
            raise CheckpointError(
                f"{self.where}: {self._name(key)} is {_brief(value)}; only {wanted} is implemented",
                hint="this variant of the architecture is not supported yet",
            )

    def ignore(self, *keys: Str) -> None:
        """Says that these keys are known and do not change what is computed."""
        self._read.update(ALIASES.get(k, k) for k in keys)

    # ---- the account

    def unread(self) -> list[Str]:
        """The keys that could change the mathematics and that nobody read, as the file has them, sorted."""
        return sorted(self._unread())

    def check_all_read(self) -> None:
        """Raises CheckpointError when `unread` has keys."""
        left = self.unread()
        if left:
            more = f" and {len(left) - 12} more" if len(left) > 12 else ""
            raise CheckpointError(
                f"{self.where}: not understood: {', '.join(left[:12])}{more}",
                hint="they could change what the model computes, so it is not run as if they were not there",
            )

    def _unread(self) -> Iterator[Str]:
        for key, value in self._values.items():
            if key in self._tables:
                yield from self._tables[key]._unread()
            elif key not in self._read and value is not None and not _harmless(key, value):
                yield self._name(key)

    # ---- pieces

    def _name(self, key: Str) -> Str:
        key = ALIASES.get(key, key)
        return self._file_keys.get(key, self._path + key)

    def _take(self, key: Str, default: object) -> object:
        key = ALIASES.get(key, key)
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            if isinstance(default, _Required):
                raise CheckpointError(
                    f"{self.where}: {self._name(key)} is missing",
                    hint="the architecture cannot do without it",
                )
            return default
        return value

    def _list(self, key: Str, default: object) -> list[object]:
        value = self._take(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self._ill_typed(key, value, "a list")
        return list(value)

    def _whole(self, key: Str, value: object, least: Int | None = None) -> Int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._ill_typed(key, value, "a whole number")
        low, high = RANGES.get(ALIASES.get(key, key), (-INT_LIMIT, INT_LIMIT))
        if least is not None and key in RANGES:
            low = least
        if not low <= value <= high:
            raise CheckpointError(
                f"{self.where}: {self._name(key)} is {_brief(value)}, not in {low} to {high}"
            )
        return value

    def _finite(self, key: Str, value: object) -> Float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._ill_typed(key, value, "a number")
        if abs(value) > 1e38 or not math.isfinite(value) or (key in ABOVE_ZERO and value <= 0):
            raise CheckpointError(f"{self.where}: {self._name(key)} is {_brief(value)}, out of range")
        return float(value)

    def _ill_typed(self, key: Str, value: object, wanted: Str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {self._name(key)} is {_brief(value)}, not {wanted}")


def _canonical(values: Mapping[str, object], where: str, path: str) -> dict[str, object]:
    """The values under one name each, arrays as lists.  Raises CheckpointError for keys that name code."""
    result: dict[str, object] = {}
    for key, value in values.items():
        if key in CODE_KEYS or (key.startswith(CODE_PREFIXES) and not key.endswith("_autoset")):
            raise CheckpointError(
                f"{where}: {path}{key} names code to run, which Kvasir never does",
                hint="if the architecture is one that Kvasir has, remove that key from the file",
            )
        name = ALIASES.get(key, key)
        plain = _plain(value, f"{where}: {path}{key}")
        if name in result and result[name] != plain and result[name] is not None and plain is not None:
            raise CheckpointError(
                f"{where}: {path}{name} and its other name disagree: {_brief(result[name])}, {_brief(plain)}"
            )
        if result.get(name) is None:
            result[name] = plain
    return result


def _plain(value: object, what: str) -> object:
    """Arrays and lazy strings as lists.  A configuration has no use for long ones."""
    if isinstance(value, str | Mapping) or not isinstance(value, np.ndarray | Sequence):
        return value
    if len(value) > LONGEST_LIST:
        raise CheckpointError(f"{what} is a list of {len(value)}, at most {LONGEST_LIST} are read")
    return value.tolist() if isinstance(value, np.ndarray) else list(value)


def _harmless(key: str, value: object) -> bool:
    if key in HARMLESS_VALUES:
        return any(_same(value, v) for v in HARMLESS_VALUES[key])
    return key in HARMLESS or key.endswith(HARMLESS_ENDINGS)


def _same(a: object, b: object) -> bool:
    # True == 1 in Python, and not in a config.
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _brief(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else f"a table of {len(value)} keys"
    return repr(value)[:80]
