"""Triton's interpreter patches its language at every call of a function in a kernel; once a launch will do.

That is most of its time with kernels made of small functions.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
patched: set[frozenset[int]] = set()


class _Nothing:
    def restore(self) -> None:
        pass


def patch_once(fn: Any) -> Any:
    seen = frozenset(id(v) for v in fn.__globals__.values() if v is tl or v is tl.core)
    if seen in patched:
        return _Nothing()
    patched.add(seen)
    return patch(fn)


def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
    patched.clear()
    return launch(self, *args, **kwargs)


interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launched
