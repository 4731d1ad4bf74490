"""The process that compiles strangers' grammars first: `python -P check.py`, a line of JSON at a time.

A grammar can make its compiler recurse until the stack is gone, which ends a process, or take minutes.  So it
is compiled here first, without a vocabulary, on a stack smaller than the caller's and in bounded memory; the
caller ends this process when it takes too long.
"""

import json
import random
import sys
import threading
from pathlib import Path

import llguidance

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STACK_BYTES = 2 << 20
MEMORY_BYTES = 1 << 30
WALKS, WALK_LETTERS = 3, 40


def bound_memory(n_bytes: int) -> None:
    """Lets the process take `n_bytes` more address space than it has now."""
    if resource is None:
        return
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        now = 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def serve() -> None:
    """Answers each line, a JSON text with a grammar, by a line with its fault, empty if there is none.

    The first line holds the limits instead, and is answered when all is ready.
    """
    limits = llguidance.LLParserLimits(**json.loads(json.loads(sys.stdin.readline())))
    bound_memory(MEMORY_BYTES)
    letters = llguidance.LLTokenizer("byte")
    print(json.dumps(""), flush=True)
    for line in sys.stdin:
        source = json.loads(line)
        failed, told = llguidance.LLMatcher.validate_grammar_with_warnings(source, None, limits=limits)
        fault = (
            told[0] if failed else walked(llguidance.LLMatcher(letters, source, log_level=0, limits=limits))
        )
        print(json.dumps(fault), flush=True)


def walked(matcher: llguidance.LLMatcher) -> str:
    """The fault that shows when texts are written letter by letter; some grammars are small and yet costly.

    A grammar that names a model's markers fits no other vocabulary; such a one is not walked through.
    """
    draw = random.Random(0)
    for _ in range(0 if matcher.is_error() else WALKS):
        walker = matcher.deep_copy()
        for _ in range(WALK_LETTERS):
            allowed = [i for i, byte in enumerate(walker.compute_logit_bias()[:256]) if byte]
            if walker.is_error() or not allowed or walker.is_stopped():
                break
            walker.consume_token(draw.choice(allowed))
        if walker.is_error() and "NoExtension" not in walker.get_error():
            return str(walker.get_error())
    return ""


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    server = threading.Thread(target=serve)
    server.start()
    server.join()
