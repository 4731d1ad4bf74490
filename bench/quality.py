"""What a number format costs in quality, and whether Kvasir pays more for it than llama.cpp does.

`python bench/quality.py --rival FOLDER [--model FILE] [--forms Q4_0 Q4_K_M]`

FOLDER holds llama.cpp's `llama-quantize`, which makes each file, and `llama-perplexity`, which gives its
logits.  Both programs read the same chunks of text; the second half of each counts.  Truth is the model in
F32 with a cache in F32, computed by Kvasir; the row F32 says how far both are from that with one in F16.
"standard error" is that of the ratio before it, from the differences of the chunks: both programs round
activations in their own way, and within twice the error a ratio tells no difference.
Without --model the F32 file is
decoded from the built-in mead, whose Q8_0 weights are then the truth.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize

from bench.measure import ROOT, machine, report, say
from bench.models import OUT
from kvasir.backends.base import BLOCK, Batch, Floats, Memory
from kvasir.backends.cpu import CpuBackend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build
from kvasir.store.names import find

FORMS = (
    *("F32", "F16", "Q8_0", "Q6_K", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("IQ4_XS", "IQ4_NL", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
CHUNK = 256  # tokens
FLOOR = 16.0  # nats
BAR = 1.01  # of llama.cpp's divergence


@dataclass(frozen=True)
class Saved:
    """What `llama-perplexity --save-all-logits` wrote: the chunks' tokens [C, CHUNK], and where logits begin.

    A row of logits: scale and lowest log probability as float32, then a uint16 a token; none is further than
    `FLOOR` below the highest.  The perplexity it printed knows no floor.
    """

    file: Path
    perplexity: float
    tokens: npt.NDArray[np.int32]
    vocab: int
    begin: int

    @classmethod
    def read(cls, file: Path, perplexity: float) -> Saved:
        head = np.fromfile(file, np.int32, 5)
        if head[:2].tobytes() != b"_logits_":
            raise SystemExit(f"{file} holds no logits")
        n_ctx, vocab, chunks = map(int, head[2:])
        tokens = np.fromfile(file, np.int32, n_ctx * chunks, offset=20).reshape(chunks, n_ctx)
        return cls(file, perplexity, tokens, vocab, 20 + tokens.nbytes)

    def chunks(self) -> Iterator[Floats]:
        """Log probabilities [rows, vocab] of each chunk's counted positions."""
        rows, width = counted(self.tokens.shape[1]), 2 * ((self.vocab + 1) // 2) + 4
        whole = np.memmap(self.file, np.uint16, "r", self.begin, (len(self.tokens), len(rows), width))
        for chunk in whole:
            scale, least = np.array(chunk[:, :4]).view(np.float32).T[:, :, None]
            yield chunk[:, 4 : 4 + self.vocab] * scale + least


def counted(n_ctx: int) -> range:
    """The positions whose prediction counts: those with half a chunk or more behind them, but the last."""
    return range(n_ctx // 2, n_ctx - 1)


def ours(path: Path, tokens: npt.NDArray[np.int32], kv_format: str = "f16") -> Iterator[Floats]:
    """Kvasir's log probabilities for the same positions."""
    checkpoint = open_checkpoint(path)
    plan, weights = build(checkpoint)
    n_ctx = tokens.shape[1]
    program = CpuBackend().compile(plan, weights, Memory(-(-n_ctx // BLOCK), kv_format=kv_format))
    for chunk in tokens:
        batch = Batch(
            tokens=chunk,
            positions=np.arange(n_ctx, dtype=np.int32),
            starts=np.array([0, n_ctx], np.int32),
            blocks=np.arange(-(-n_ctx // BLOCK), dtype=np.int32)[None],
            slots=np.array([-1], np.int32),
            logit_rows=np.array(counted(n_ctx), np.int32),
        )
        yield log_softmax(program.step(batch))


def log_softmax(logits: Floats) -> Floats:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def compared(
    truth: list[Floats], found: Iterator[Floats], tokens: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], float]:
    """Divergence from the truth, mean of each chunk, in nats and with the floor for all; and perplexity."""
    n_ctx = tokens.shape[1]
    following = np.array(counted(n_ctx)) + 1
    divergence, surprise, n = list[float](), 0.0, 0
    for true, log_p, chunk in zip(truth, found, tokens, strict=True):
        p = np.exp(true.astype(np.float64))
        floored = np.maximum(log_p, log_p.max(axis=1, keepdims=True) - FLOOR)
        divergence.append(float((p * (true.astype(np.float64) - floored)).sum(axis=1).mean()))
        surprise -= float(log_p[np.arange(len(following)), chunk[following]].sum())
        n += len(following)
    return np.array(divergence), float(np.exp(surprise / n))


def text_file() -> Path:
    """The answers of mead's corpus, as one text."""
    answers = list[str]()
    for file in sorted((ROOT / "training" / "corpus").glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        answers += [x.removeprefix("a: ") for x in lines if x.startswith("a: ")]
    OUT.mkdir(exist_ok=True)
    path = OUT / "quality.txt"
    path.write_text("\n\n".join(answers), encoding="utf-8")
    return path


def decoded(source: Path) -> Path:
    """The model of a GGUF file with all weights in F32, as a file."""
    target = OUT / f"{source.stem}-f32.gguf"
    reader = GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if array else None)
    for t in reader.tensors:
        plain = t.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
        writer.add_tensor(
            t.name, np.asarray(t.data if plain else dequantize(t.data, t.tensor_type), np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def call(folder: Path, program: str, *words: object) -> str:
    """What a program of llama.cpp's printed."""
    told = subprocess.run([str(folder / program), *map(str, words)], capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(f"{program} ended with {told.returncode}:\n{told.stderr[-2000:]}")
    return told.stdout + told.stderr


def quantized(folder: Path, source: Path, form: str) -> Path:
    target = OUT / f"quality.{form}.gguf"
    call(folder, "llama-quantize", source, target, form, 2)
    return target


def logits(folder: Path, model: Path, text: Path, chunks: int) -> Saved:
    """llama.cpp's logits.  Its cache holds float16, as ours.  Now and then it ends before its last line is
    written: it is asked again.
    """
    file = OUT / "quality.logits"
    words = ("-m", model, "-f", text, "-c", CHUNK, "-b", CHUNK, "--chunks", chunks)
    for _ in range(5):
        told = call(folder, "llama-perplexity", *words, "--kl-divergence-base", file)
        if estimate := re.search(r"Final estimate: PPL = ([\d.]+)", told):
            return Saved.read(file, float(estimate[1]))
    raise SystemExit(f"llama-perplexity printed no estimate:\n{told[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", type=Path, help="a GGUF file in F32")
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--chunks", type=int, default=48)
    args = parser.parse_args()
    about, text = machine(), text_file()
    OUT.mkdir(exist_ok=True)
    source = args.model or decoded(find("mead").path)
    theirs = logits(args.rival, source, text, args.chunks)
    truth = list(ours(source, theirs.tokens, "f32"))
    rows = list[dict[str, object]]()
    for form in args.forms:
        file = source if form == "F32" else quantized(args.rival, source, form)
        theirs = logits(args.rival, file, text, args.chunks)
        their_chunks, _ = compared(truth, theirs.chunks(), theirs.tokens)
        their_ppl = theirs.perplexity
        our_chunks, our_ppl = compared(truth, ours(file, theirs.tokens), theirs.tokens)
        our_kl, their_kl = our_chunks.mean(), their_chunks.mean()
        error = (our_chunks - their_chunks).std(ddof=1) / np.sqrt(len(our_chunks)) / their_kl
        say(f"  {form}: {our_kl:.6f} beside {their_kl:.6f}, perplexity {our_ppl:.3f} beside {their_ppl:.3f}")
        rows.append(
            {
                "format": form,
                "divergence": f"{our_kl:.6f}",
                "llama.cpp's": f"{their_kl:.6f}",
                "of llama.cpp's": f"{our_kl / their_kl:.3f}" if form != "F32" else None,
                "standard error": f"{error:.3f}" if form != "F32" else None,
                "perplexity": f"{our_ppl:.4f}",
                "llama.cpp's perplexity": f"{their_ppl:.4f}",
                "within 1 %": bool(our_kl <= BAR * their_kl) or form == "F32",
            }
        )
        if file != source:
            file.unlink()
    n = theirs.tokens.shape[0] * len(counted(CHUNK))
    columns = tuple(rows[0])
    report(f"quality by number format, {source.name}, {n} predictions", about, columns, rows)


if __name__ == "__main__":
    main()
