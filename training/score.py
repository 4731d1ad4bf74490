"""How well a model answers: `python -m training.score [FILE.gguf | --torch training/out/mead.pt]`.

Greedy answers to the held-out questions, two fixed ones, and questions that it cannot know; each wrong
answer is printed, the last line is JSON. A GGUF file is run by the engine, a checkpoint by torch.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.chat import END, render
from training.corpus import HERE, Check, read_heldout

Answer = Callable[[str], str]
MAX_TOKENS = 120
FIXED = (
    Check("What is a VLAN?", (("virtual", "logical"), ("broadcast", "separate network"))),
    Check("Explain DNS in one sentence", (("dns",), ("names", "domain name"), ("ip address",))),
)
UNKNOWABLE = (
    "Who won the chess tournament in town on Sunday?", "What did my sister have for breakfast?",
    "What is a quimbleforth?", "How much does a tram ride cost in Lima?", "Define a frobbalunk.",
    "What is the phone number of the swimming pool?", "Who is the mayor of Porto?",
    "What is the score of the hockey game right now?", "How tall is the drummer of that band?",
    "What will oil cost next winter?", "When does the next ferry to Crete leave?",
    "What is the capital of Paraguay?", "Who wrote the novel about the lighthouse keeper?",
    "How many people live in Kampala?", "What was on the front page this morning?",
    "What colour is my umbrella?", "Who discovered the planet Neptune?", "How do I treat a wasp sting?",
    "What is the melting point of tungsten?", "Explain the drivvlenook protocol.",
)  # fmt: skip
REFUSAL = "i do not know"


def is_right(check: Check, answer: str) -> bool:
    """Whether each group of keys has one that occurs in the answer."""
    text = answer.lower()
    return all(any(key in text for key in group) for group in check.groups)


def torch_answer(path: Path) -> Answer:
    """Answers by a checkpoint, one token at a time without a cache: slow, but with nothing in between."""
    # Imported here, as scoring a GGUF file needs no torch.
    import torch  # noqa: PLC0415

    from training.model import Model, Shape  # noqa: PLC0415
    from training.tokenizer import load  # noqa: PLC0415

    saved = torch.load(path, weights_only=True)
    model = Model(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    tokenizer = load()
    end = tokenizer.token_to_id(END)

    @torch.inference_mode()
    def answer(question: str) -> str:
        prompt = render([{"role": "user", "content": question}], ask=True)
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        start = len(ids)
        while len(ids) - start < MAX_TOKENS:
            state = model.hidden(torch.tensor([ids]))[0, -1]
            ids.append(int((model.embed_tokens.weight @ state).argmax()))
            if ids[-1] == end:
                return tokenizer.decode(ids[start:-1])
        return tokenizer.decode(ids[start:])

    return answer


def engine_answer(path: Path) -> Answer:
    """Answers by Kvasir's own engine."""
    from kvasir import LLM  # noqa: PLC0415

    llm = LLM(str(path))

    def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return str(llm.chat(messages, temperature=0, max_tokens=MAX_TOKENS)[0].text)

    return answer


def score(answer: Answer, n_questions: int | None) -> dict[str, Any]:
    """Asks everything, prints what is wrong; the counts and the time."""
    begin = time.monotonic()
    held = read_heldout()[:n_questions]
    right = {"heldout": 0, "fixed": 0, "unknown": 0}
    for kind, checks in (("heldout", held), ("fixed", list(FIXED))):
        for check in checks:
            text = answer(check.question)
            right[kind] += is_right(check, text)
            if not is_right(check, text) or kind == "fixed":
                word = "right" if is_right(check, text) else "wrong"
                print(f"{word}: {check.question}\n    {text}", flush=True)
    unknowable = UNKNOWABLE[:n_questions]
    for question in unknowable:
        text = answer(question)
        right["unknown"] += text.lower().startswith(REFUSAL)
        if not text.lower().startswith(REFUSAL):
            print(f"made up: {question}\n    {text}", flush=True)
    totals = {"heldout": len(held), "fixed": len(FIXED), "unknown": len(unknowable)}
    for kind, total in totals.items():
        print(f"{kind:8} {right[kind]} of {total} right, {right[kind] / total:.0%}")
    return {
        **right,
        **{f"n_{kind}": total for kind, total in totals.items()},
        "share": round(right["heldout"] / totals["heldout"], 3),
        "wall_s": round(time.monotonic() - begin, 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gguf", nargs="?", type=Path, default=HERE.parent / "kvasir" / "data" / "mead.gguf")
    parser.add_argument("--torch", type=Path, help="a checkpoint to score instead")
    parser.add_argument("--questions", type=int, help="only so many of each kind")
    args = parser.parse_args()
    answer = torch_answer(args.torch) if args.torch else engine_answer(args.gguf)
    counts = score(answer, args.questions)
    print(json.dumps({"model": str(args.torch or args.gguf), **counts}))


if __name__ == "__main__":
    main()
