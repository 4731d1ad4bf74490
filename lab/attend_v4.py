"""Decode after 16, 4,096 and 16,384 tokens, or one prompt, of a real model: the program stepped directly.

`python lab/attend_v4.py FILE f16|q8_0|f32 THREADS decode|PROMPT_TOKENS`
"""

# ruff: noqa
import sys, time, numpy as np
from kvasir.backends.base import Batch, Memory, BLOCK
from kvasir.backends.cpu import CpuBackend
from kvasir.checkpoint.open import open_checkpoint
from kvasir.models import build

path, kv, threads, what = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
plan, w = build(open_checkpoint(path))
P = 16384
p = CpuBackend(threads=threads).compile(plan, w, Memory(P // BLOCK + 1, kv_format=kv))
i32 = lambda *a: np.asarray(a, np.int32).ravel()


def decode(past):
    b = np.arange(past // BLOCK + 1, dtype=np.int32)[None]
    batch = Batch(i32(7), i32(past), i32(0, 1), b, i32(0), i32(0))
    ts = []
    for _ in range(7):
        t = time.perf_counter()
        p.step(batch)
        ts.append(time.perf_counter() - t)
    return min(ts), sorted(ts)[len(ts) // 2]


if what == "decode":
    # a token in every block, so that each has pages of its own
    n = P // BLOCK
    for i in range(0, n, 256):
        m = min(256, n - i)
        p.step(
            Batch(
                np.full(m, 5, np.int32),
                np.zeros(m, np.int32),
                np.arange(m + 1, dtype=np.int32),
                np.arange(i, i + m, dtype=np.int32)[:, None],
                np.zeros(m, np.int32),
                i32(0),
            )
        )
    for past in (16, 4096, 16384 - 1):
        best, med = decode(past)
        print(
            f"{kv} {threads}t past {past}: best {best * 1e3:.1f} ms = {1 / best:.2f} tok/s, median {1 / med:.2f}",
            flush=True,
        )
else:
    n = int(what)
    r = np.arange(n, dtype=np.int32)
    batch = Batch(r % 1000, r, i32(0, n), np.arange(-(-n // BLOCK), dtype=np.int32)[None], i32(0), i32(n - 1))
    for _ in range(2):
        t = time.perf_counter()
        p.step(batch)
        t = time.perf_counter() - t
        print(f"{kv} {threads}t prefill {n}: {n / t:.1f} tok/s", flush=True)
    spent = {}
    p.watch(batch, lambda op, s, v: spent.__setitem__(op.kind, spent.get(op.kind, 0) + s))
    print({k: round(v, 2) for k, v in sorted(spent.items(), key=lambda x: -x[1])[:5]})
