"""The parts of the docs that the code knows: `python -m tests.docs` writes them, `--check` fails if stale."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from kvasir import faults
from kvasir.models import FAMILIES
from kvasir.quant.formats import WEIGHT_FORMATS
from kvasir.settings import SWITCHES, settings_table
from training import corpus

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: (\w+) [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)


def switches_page() -> str:
    """docs/switches.md."""
    return (
        "# Switches\n\n"
        f"Every variable of the environment that Kvasir reads: {len(SWITCHES)}; eleven at most,\n"
        "but for tests. A value that does not parse ends the program with an error; an empty value\n"
        "counts as not set; a `KVASIR_*` variable that nothing reads is warned of. `make docs` writes\n"
        "this from `kvasir/settings.py`.\n\n" + settings_table() + "\n## Fault points\n\n"
        "`KVASIR_FAULT=runner.decode@mead:17:kill` kills the process that runs mead at its 17th step of\n"
        "that kind. Several go with commas between; without `@MODEL` every model is meant; a further `:2`\n"
        "means the first two processes of a model only, so that the third one lives.\n\n" + faults.table()
    )


def corpus_table() -> str:
    """What `python -m training.corpus --check` counts, by kind."""
    found = corpus.read_corpus()
    kinds = (
        ("networks", "networks"), ("computing", "computing"), ("inference", "inference of language models"),
        ("unknown", "what it cannot know"), ("manners", "manners"), ("stories", "short stories"),
        ("json", "answers in JSON"),
    )  # fmt: skip
    known = {name.split("_")[0] for name in found.facts}
    assert known == {key for key, _ in kinds}, f"a kind of corpus file without a line in the docs: {known}"
    rows = ["| Kind | Records | Questions written |", "|---|---|---|"]
    totals = [0, 0]
    for key, title in kinds:
        records = [r for name, each in found.facts.items() if name.split("_")[0] == key for r in each]
        counts = len(records), sum(len(r.questions) for r in records)
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        rows.append(f"| {title} | {counts[0]:,} | {counts[1]:,} |")
    rows.append(f"| all of these | {totals[0]:,} | {totals[1]:,} |")
    rows.append(f"| conversations of several turns | {len(found.dialogues):,} | |")
    calls = sum(use.call is not None for use in found.tools)
    rows.append(f"| tools at hand, {calls} with a call | {len(found.tools):,} | {len(found.tools):,} |")
    rows.append(f"| held out, never trained on | | {len(corpus.read_heldout()):,} |")
    return "\n".join(rows) + "\n"


# A name of FAMILIES -> what people call the family, and what of it is worth a note.
FAMILY_NOTES = {
    "llama": ("Llama 1 to 3, Mistral", "linear, llama3 and YaRN rope scaling; sliding window"),
    "MixtralForCausalLM": ("Mixtral", "experts; in GGUF files a `llama` with experts"),
    "qwen2": ("Qwen2, Qwen2.5", ""),
    "qwen3": ("Qwen3", ""),
    "qwen3moe": ("Qwen3-MoE", "experts"),
    "qwen35": ("Qwen3.5, the text model", "Gated DeltaNet with recurrent state, gated attention"),
    "gemma2": ("Gemma 2", "soft-caps, alternating windows"),
    "gemma3": ("Gemma 3, the text model", "alternating windows with two rope bases"),
    "gpt-oss": ("gpt-oss", "attention sinks, MXFP4 experts"),
    "phi3": ("Phi-3, Phi-4", "packed projections, LongRoPE"),
    "bert": ("BERT encoders", "embeddings, by `LLM(...).embed`"),
}


def families_table() -> str:
    """Which architectures run, by their names in config.json and in GGUF."""
    names: dict[int, list[str]] = {}
    for name, family in FAMILIES.items():
        names.setdefault(id(family), []).append(name)
    rows = ["| Family | safetensors, `architectures` | GGUF, `general.architecture` | |", "|---|---|---|---|"]
    for each in names.values():
        (title, note), *others = [FAMILY_NOTES[n] for n in each if n in FAMILY_NOTES] or [(each[0], "")]
        assert not others, f"one family, several lines: {each}"
        folder = " ".join(f"`{n}`" for n in each if n[0].isupper())
        gguf = " ".join(f"`{n}`" for n in each if not n[0].isupper())
        gguf = "`llama`" if each == ["MixtralForCausalLM"] else gguf
        rows.append(f"| {title} | {folder or '-'} | {gguf or '-'} | {note} |")
    return "\n".join(rows) + "\n"


def formats_line() -> str:
    """The number formats of weights."""
    return " ".join(f.name for f in WEIGHT_FORMATS) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "corpus": corpus_table,
    "families": families_table,
    "formats": formats_line,
}


def fresh(path: Path) -> str:
    """What the page should be."""
    if path.name == "switches.md":
        return switches_page()
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]]() + m[3], path.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs" / "switches.md"]


def main() -> int:
    stale = []
    for path in dict.fromkeys(pages()):
        text = fresh(path)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale:
        print("stale, run `make docs`:" if "--check" in sys.argv else "written:", *stale)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
