"""mead's tokenizer: byte-level BPE over 4096 tokens, split by Qwen2's expression, so that GGUF and HF agree.

`python -m training.tokenizer` trains it on the corpus and writes training/out/tokenizer.json.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.chat import CONTROL_TOKENS, MARKUP_TOKENS, render
from training.corpus import HERE, read_corpus, read_heldout
from training.phrasing import normalized
from training.samples import Sampler

OUT = HERE / "out"
TOKENIZER = OUT / "tokenizer.json"
N_VOCAB = 4096
TRAINING_ROWS = 40_000
# Qwen2's expression; llama.cpp knows it as tokenizer.ggml.pre = "qwen2".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def untrained() -> Tokenizer:
    """A tokenizer with Qwen2's stages and no vocabulary."""
    made = Tokenizer(models.BPE(byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def train(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer of exactly N_VOCAB tokens; the special ones come last, as in Qwen's."""
    specials = [AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS]
    specials += [AddedToken(text, special=False, normalized=False) for text in MARKUP_TOKENS]
    made = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - len(specials),
        show_progress=False,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(texts, trainer)
    made.add_tokens(specials)
    if made.get_vocab_size() != N_VOCAB:
        raise ValueError(f"the text gives {made.get_vocab_size()} tokens, want {N_VOCAB}: it is too short")
    return made


def load(path: Path = TOKENIZER) -> Tokenizer:
    """The trained tokenizer. Raises FileNotFoundError with the command that makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.tokenizer`")
    return Tokenizer.from_file(str(path))


def plain(text: str) -> str:
    """The text without special tokens, which are no matter for the merges."""
    for token in (*CONTROL_TOKENS, *MARKUP_TOKENS):
        text = text.replace(token, "")
    return text


def corpus_texts(seed: int = 0) -> Iterator[str]:
    """Conversations as they are drawn for training, so that merges follow what will be read and written."""
    banned = frozenset(normalized(check.question) for check in read_heldout())
    sampler = Sampler(read_corpus(), banned, seed)
    while True:
        sample = sampler.draw()
        yield plain(render(sample.messages, sample.tools))


def main() -> None:
    """Trains and writes the tokenizer, and prints how far it packs the text."""
    OUT.mkdir(exist_ok=True)
    made = train(islice(corpus_texts(), TRAINING_ROWS))
    made.save(str(TOKENIZER))
    texts = list(islice(corpus_texts(1), 2000))
    n_tokens = sum(len(made.encode(text).ids) for text in texts)
    share = sum(map(len, texts)) / n_tokens
    print(f"{TOKENIZER}: {made.get_vocab_size()} tokens; {share:.2f} characters a token")


if __name__ == "__main__":
    main()
