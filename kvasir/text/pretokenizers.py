"""How the byte-level BPE models cut a text before they merge: the patterns behind `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizer.json files.  Each name stands for splits applied one after
another; what a pattern does not match stays as a piece of its own.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

from kvasir.records import dataclass

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARKED = r"[^\r\n\p{L}\p{N}]?"


def _cased(ending: str, digits: str) -> str:
    """Words that end where the case turns from lower to upper: tekken and o200k."""
    return (
        f"{_MARKED}{_UPPER}*{_LOWER}+{ending}|{_MARKED}{_UPPER}+{_LOWER}*{ending}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
    )


_TEKKEN = _cased("", r"\p{N}")
_O200K = _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}")
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES
_PORO = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-"
    "\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-"
    "\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2"
    "\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_MARKS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"


@dataclass(frozen=True)
class Pre:
    """What a name of `tokenizer.ggml.pre` stands for.

    `whole`: a piece that is a token as it stands is not merged.  `nfc`: the model composes letters first.
    `bos`: a text begins with BOS unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    nfc: bool = False
    bos: bool = False


_DIGITS_GPT2 = Pre((r"\p{N}", _GPT2))
_PRES: dict[tuple[str, ...], Pre] = {
    ("default",): Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    (
        "gpt-2",
        "gpt2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v1-en",
        "jina-v2-es",
        "jina-v2-de",
        "jina-v2-code",
    ): Pre((_GPT2,)),
    ("roberta-bpe", "gigachat", "a.x-4.0", "mellum", "jais", "exaone4", "trillion", "granite-docling"): Pre(
        (_GPT2,)
    ),
    ("olmo", "mpt"): Pre((_GPT2,), nfc=True),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): Pre(
        (_LLAMA3,), whole=True, bos=True
    ),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): Pre((_LLAMA3,)),
    ("qwen2", "megrez"): Pre((_QWEN2,), nfc=True),
    ("deepseek-r1-qwen", "kormo", "stablelm2", "hunyuan", "solar-open", "grok-2"): Pre((_QWEN2,)),
    ("qwen35",): Pre((_QWEN35,), nfc=True),
    ("tekken",): Pre((_TEKKEN,), whole=True, bos=True),
    ("gpt-4o", "llama4", "minimax-m2"): Pre((_O200K,)),
    ("deepseek-llm",): Pre(
        ("[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", r"\s?" + _DEEPSEEK_MARKS, r"\s+$", _CJK, r"\p{N}+")
    ),
    ("deepseek-coder",): Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm"): Pre(
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)
    ),
    ("falcon",): Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b"): _DIGITS_GPT2,
    ("command-r",): Pre(_DIGITS_GPT2.patterns, nfc=True),
    ("poro-chat", "bloom", "gpt3-finnish"): Pre((_PORO,)),
    ("viking",): Pre((_PORO, r"\p{N}")),
    ("bailingmoe", "bailingmoe2", "llada-moe"): Pre((_BAILING,)),
    ("seed-coder",): Pre((_SEED_CODER,)),
}
PRES: dict[str, Pre] = {name: pre for names, pre in _PRES.items() for name in names}
KNOWN_PATTERNS = frozenset(pattern for pre in PRES.values() for pattern in pre.patterns)


def byte_level(pre: Pre) -> pre_tokenizers.PreTokenizer:
    """Cuts by the patterns, then spells each piece in the alphabet of bytes."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
