"""Which build of the kernels runs: the best that the CPU has and that gives the bits of the AVX2 build."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvasir import native
from kvasir.errors import UsageError
from kvasir.native import BUILDS, CHECKED, WIDE, differing, load
from kvasir.quant.formats import FORMATS, WEIGHT_FORMATS
from kvasir.settings import ISAS

AVX2 = load("avx2") if "avx2" in native.usable() else None
needs_avx2 = pytest.mark.skipif(AVX2 is None, reason="this machine runs no AVX2")


class Fake:
    """Multiplies as the AVX2 build does, but formats `wrong` where there are more rows than `above`."""

    def __init__(self, isa: str, wrong: tuple[str, ...] = (), above: int = 0):
        self.isa, self.wrong, self.above = isa, wrong, above

    def pack(self, name: str, raw: Any, width: int) -> Any:
        return SimpleNamespace(name=name, held=AVX2.pack(name, raw, width))

    def linear(self, matrix: Any, x: Any) -> Any:
        y = AVX2.linear(matrix.held, x)
        if matrix.name in self.wrong and len(x) > self.above:
            y[-1, -1] = np.nextafter(y[-1, -1], np.float32(np.inf))
        return y


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the fakes that are given the builds that this machine runs, beside AVX2 and portable."""

    def put(*fakes: Fake) -> None:
        ours = {f.isa: f for f in fakes}
        names = tuple(n for n in BUILDS if n in (*ours, "avx2", "portable"))
        own = native._import
        monkeypatch.setattr(native, "usable", lambda: names)
        monkeypatch.setattr(native, "_import", lambda name: ours.get(name) or own(name))
        native.load.cache_clear()

    yield put
    native.load.cache_clear()


@needs_avx2
def test_the_best_build_that_agrees_is_taken(installed: Callable[..., None]) -> None:
    installed(Fake("avx512"), Fake("avxvnni"))
    assert load("auto").isa == "avx512" and load("avxvnni").isa == "avxvnni" and load("avx2").isa == "avx2"


@needs_avx2
def test_a_build_that_differs_is_not_used(
    installed: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    installed(Fake("amx", ("Q6_K", "Q8_0"), above=9), Fake("avx512", ("MXFP4",)), Fake("avxvnni"))
    with caplog.at_level(logging.WARNING, "kvasir"):
        assert load("auto").isa == "avxvnni"
    assert [r.getMessage().split(" wrongly")[0] for r in caplog.records] == [
        "the amx build of the CPU kernels multiplies Q8_0, Q6_K",
        "the avx512 build of the CPU kernels multiplies MXFP4",
    ]


@needs_avx2
def test_without_a_build_that_agrees_avx2_runs(installed: Callable[..., None]) -> None:
    installed(Fake("avx512", tuple(CHECKED)))
    assert load("auto").isa == "avx2"


@needs_avx2
def test_a_forced_build_that_differs_is_an_error(installed: Callable[..., None]) -> None:
    installed(Fake("avx512", ("Q4_K",)))
    with pytest.raises(UsageError, match="avx512 build of the CPU kernels multiplies Q4_K wrongly"):
        load("avx512")


@needs_avx2
@pytest.mark.parametrize("name", CHECKED)
def test_the_check_sees_one_bit_of_any_format(name: str) -> None:
    assert differing(Fake("avx512", (name,)), AVX2) == [name]
    assert differing(Fake("avx512"), AVX2) == []


def test_the_check_knows_every_quantized_format() -> None:
    quantized = {f.name: (f.block, f.block_bytes) for f in WEIGHT_FORMATS if f.block > 1}
    assert quantized == CHECKED and all(name in FORMATS for name in CHECKED)
    assert {"auto", *BUILDS} == set(ISAS) and set(WIDE) < set(BUILDS)


def test_a_build_that_the_cpu_lacks_is_refused() -> None:
    for name in set(BUILDS) - set(native.usable()):
        with pytest.raises(UsageError, match=f"KVASIR_ISA={name}: this machine runs .*portable"):
            load(name)
