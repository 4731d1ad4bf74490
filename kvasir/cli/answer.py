"""One answer on the terminal: shown as it comes, stopped by Ctrl-C, summed up in Ollama's eight lines."""

from __future__ import annotations

import sys

from kvasir.chat import ChatRequest, Delta, Finished, Metrics
from kvasir.cli.terminal import Waiting, Writer
from kvasir.durations import go_duration
from kvasir.records import dataclass
from kvasir.runner.model import Model
from kvasir.sampling import SamplingParams

THINKS, THOUGHT = "Thinking...\n", "...done thinking.\n\n"


@dataclass(frozen=True)
class Said:
    """An answer as it was shown, without its thoughts.  `finished` None: Ctrl-C stopped it."""

    text: str
    finished: Finished | None


def answer(
    model: Model,
    request: ChatRequest,
    writer: Writer,
    waiting: Waiting | None = None,
    hide_thinking: bool = False,
) -> Said:
    """Asks and writes the pieces as they come, thoughts between Ollama's two lines.  Ctrl-C ends the answer.

    Raises UsageError, CapacityError.
    """
    texts: list[str] = []
    thinks = False
    finished: Finished | None = None
    waiting = waiting or Waiting("thinking")
    try:
        stream = model.submit(request)
        try:
            for event in stream:
                if isinstance(event, Finished):
                    finished = event
                elif event.thinking and not hide_thinking:
                    waiting.stop()
                    writer.write(event.thinking if thinks else THINKS + event.thinking.lstrip("\n"))
                    thinks = True
                if isinstance(event, Delta) and event.text:
                    waiting.stop()
                    if thinks:
                        writer.write(("" if writer.ends_line else "\n") + THOUGHT)
                        thinks = False
                    texts.append(event.text)
                    writer.write(event.text)
        except KeyboardInterrupt:
            stream.cancel()
            finished = None
        except BaseException:
            stream.cancel()
            raise
    finally:
        waiting.stop()
        writer.end()
    return Said("".join(texts), finished)


def eight_lines(metrics: Metrics, load_s: float) -> str:
    """What --verbose prints, as Ollama prints it; a line whose value is 0 is left out."""
    durations = {
        "total duration:": metrics.total_s + load_s,
        "load duration:": load_s,
        "prompt eval duration:": metrics.prefill_s,
        "eval duration:": metrics.decode_s,
    }
    told = {name: go_duration(round(s * 1e9)) for name, s in durations.items() if s > 0}
    for name, count, seconds in (
        ("prompt eval", metrics.n_prompt, metrics.prefill_s),
        ("eval", metrics.n_generated, metrics.decode_s),
    ):
        if count:
            told[f"{name} count:"] = f"{count} token(s)"
        if count and seconds > 0:
            told[f"{name} rate:"] = f"{count / seconds:.2f} tokens/s"
    order = (
        *("total duration:", "load duration:", "prompt eval count:", "prompt eval duration:"),
        *("prompt eval rate:", "eval count:", "eval duration:", "eval rate:"),
    )
    return "".join(f"{name:<21} {told[name]}\n" for name in order if name in told)


def sum_up(said: Said, load_s: float, verbose: bool, params: SamplingParams) -> None:
    """Says on standard error what the text does not show: timings, and that the context was full."""
    if said.finished is None:
        return
    if said.finished.reason == "length" and params.max_tokens is None:
        print("(the context is full)", file=sys.stderr)
    if said.finished.reason == "length" and params.constraint:
        n_tokens = said.finished.metrics.n_generated
        print(f"(cut after {n_tokens:,} tokens: the answer is not whole)", file=sys.stderr)
    if verbose:
        sys.stderr.write("\n" + eight_lines(said.finished.metrics, load_s))
        sys.stderr.flush()
