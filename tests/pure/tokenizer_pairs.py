"""Small tokenizers in two spellings, tokenizer.json and GGUF's keys, and a text that is hard to cut."""

from __future__ import annotations

import io
import json
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

KEY = "tokenizer.ggml."
PARTS = [
    "The quick brown fox jumps over the lazy dog. It's we're I'LL they'd CAN'T, don’t; he said: \"no\"!",
    "def f(x: int) -> str:\n    return f'{x!r:>{10}}'  # a comment\n\n\nclass A_b(C):\n"
    "\tpass\r\n\r\nx += 1;;",
    "0 1 12 123 1234 12345 1234567890 3.14159 1e-10 0xFF 2024-05-06 ٣٤٥ ½ Ⅷ x² 1,000,000",
    "Größe Ärger façade naïve cafe\u0301 e\u0301e\u0300 Ångström ǅ Ǆ ﬁ ß ẞ İstanbul",
    "你好，世界！今天天气怎么样？日本語のテキスト、カタカナ。안녕하세요 한국어 テスト",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก ქართული Հայերեն",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 😀😀😀 🤷🏿‍♀️ é̂̃",
    "  two   three    four     \t tab\t\ttabs \u00a0nbsp\u3000wide\u2003em\u200bzero "
    "\u2028line\n \n  \n   \n\n\n end   ",
    "a\nb\n\nc \nd\n e  \n  f\r\ng\rh...!!!???;;;:::--__==//\\\\||<<>>{}[]()@#$%^&*~`",
    "HTTPServer camelCase snake_case SCREAMING_CASE iPhone McDonald's O'Neil ABCdefGHI 'Tis 's 'S'T",
    '<tag attr="v">text</tag> &amp; http://example.org/a?b=c&d=%20#e user@example.org $100 €50 +1-2*3/4',
]
TEXT = "\n".join(PARTS)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER = ("<tool_call>", "</tool_call>")


def corpus() -> list[str]:
    return [line for part in PARTS for line in (part, part.lower(), " " + part)] * 3


def byte_level(pre: Any, normalizer: Any = None, ignore_merges: bool = False) -> Tokenizer:
    """A trained byte-level BPE with a pre-tokenizer as the model's tokenizer.json has it."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    made.add_tokens(list(USER))
    return made


def split_then_bytes(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def as_gguf(made: Tokenizer, pre: str, **extra: object) -> dict[str, object]:
    """The keys that the usual converter writes for a byte-level BPE."""
    model = json.loads(made.to_str())["model"]
    tokens, types = [""] * made.get_vocab_size(), [1] * made.get_vocab_size()
    for token, token_id in made.get_vocab().items():
        tokens[token_id] = token
    for token_id, token in made.get_added_tokens_decoder().items():
        types[token_id] = 3 if token.special else 4
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(merge) for merge in model["merges"]],
        "eos_token_id": made.token_to_id("<|im_end|>"),
    }
    return {KEY + name: value for name, value in (keys | extra).items()}


def sentencepiece_model(user: tuple[str, ...] = (), **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A trained SentencePiece model with byte fallback."""
    out = io.BytesIO()
    settings = {"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98, "vocab_size": 700}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    settings |= {"split_digits": True, "allow_whitespace_only_pieces": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        user_defined_symbols=list(user),
        **settings | options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def sentencepiece_as_gguf(made: sentencepiece.SentencePieceProcessor, **extra: object) -> dict[str, object]:
    """The keys that the usual converter writes for a SentencePiece model."""
    types = []
    for i in range(made.get_piece_size()):
        kinds = (
            (made.is_unknown(i), 2),
            (made.is_control(i), 3),
            (made.is_unused(i), 5),
            (made.is_byte(i), 6),
        )
        types.append(next((kind for is_kind, kind in kinds if is_kind), 1))
    tokens = [made.id_to_piece(i) for i in range(made.get_piece_size())]
    scores = [made.get_score(i) for i in range(made.get_piece_size())]
    keys = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {KEY + name: value for name, value in (keys | extra).items()}


def sentencepiece_as_json(made: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The tokenizer.json of a SentencePiece BPE: merges by score, ties to the longer left part."""
    n_vocab = made.get_piece_size()
    ids = {made.id_to_piece(i): i for i in range(n_vocab)}
    ranked = [
        (made.get_score(i), at, len(piece) - at, piece)
        for piece, i in ids.items()
        if not (made.is_control(i) or made.is_unknown(i) or made.is_byte(i))
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    merges = [
        (piece[:at], piece[at:]) for _, at, _, piece in sorted(ranked, key=lambda m: m[:3], reverse=True)
    ]
    core = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def word_piece() -> Tokenizer:
    """A trained WordPiece, uncased, as BERT's tokenizer.json has it."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        limit_alphabet=150,
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    return core


def word_piece_as_gguf(made: Tokenizer) -> dict[str, object]:
    """The keys that the usual converter writes for BERT: ▁ before a word, no ## before what continues it."""
    tokens, types = [""] * made.get_vocab_size(), [1] * made.get_vocab_size()
    for token, i in made.get_vocab().items():
        whole = token.startswith("[") and token.endswith("]")
        tokens[i] = token if whole else token[2:] if token.startswith("##") else "▁" + token
        types[i] = 3 if token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") else 1
    named = {"unknown": "[UNK]", "seperator": "[SEP]", "cls": "[CLS]", "bos": "[CLS]"}
    keys: dict[str, object] = {"model": "bert", "tokens": tokens, "token_type": types}
    keys |= {f"{name}_token_id": made.token_to_id(token) for name, token in named.items()}
    return {KEY + name: value for name, value in keys.items()}
