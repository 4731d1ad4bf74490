from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.durations import go_duration, keep_alive_s, parse_go_duration
from kvasir.errors import UsageError
from kvasir.settings import (
    SWITCHES,
    Address,
    Settings,
    misspelled,
    parse_address,
    read_settings,
    settings_table,
)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"), (1, "1ns"), (1500, "1.5µs"), (12_300_000, "12.3ms"), (999_999_999, "999.999999ms"),
        (1_234_567_891, "1.234567891s"), (62_500_000_000, "1m2.5s"), (3_600_000_000_000, "1h0m0s"),
        (60_000_000_000, "1m0s"), (-1_500_000_000, "-1.5s"), (90_061_000_000_000, "25h1m1s"),
    ],
)  # fmt: skip
def test_go_duration(ns: int, text: str) -> None:
    assert go_duration(ns) == text
    assert parse_go_duration(text) == pytest.approx(ns / 1e9)


@given(st.integers(-(10**18), 10**18))
def test_durations_survive_the_way_there_and_back(ns: int) -> None:
    assert parse_go_duration(go_duration(ns)) == pytest.approx(ns / 1e9, rel=1e-12)


@pytest.mark.parametrize("text", ["", "300", "5 m", "m", "1.2.3s", "5x", "--1s", "1s2", "٣s", "s" * 999, "."])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_go_duration(text)


def test_keep_alive() -> None:
    assert keep_alive_s("5m") == 300 and keep_alive_s(12) == 12 and keep_alive_s("0") == 0
    assert keep_alive_s(-1) == inf and keep_alive_s("-1m") == inf
    with pytest.raises(UsageError):
        keep_alive_s(float("nan"))


def test_settings() -> None:
    got = read_settings(
        {"KVASIR_THREADS": "3", "KVASIR_HOST": ":8080", "KVASIR_KEEP_ALIVE": "-1", "KVASIR_CHECK": "1"}
    )
    assert (
        got.threads == 3 and got.host == Address("127.0.0.1", 8080) and got.keep_alive_s == inf and got.check
    )
    assert read_settings({}).models == Path("~/.kvasir/models").expanduser()
    assert read_settings({"KVASIR_THREADS": " "}).threads is None
    assert read_settings({"KVASIR_KEEP_ALIVE": "90"}).keep_alive_s == 90


@pytest.mark.parametrize(
    ("name", "value"),
    [("ISA", "sse9"), ("THREADS", "0"), ("THREADS", "two"), ("HOST", "a:b"), ("HOST", "x:99999"),
     ("KEEP_ALIVE", "x"), ("CACHE_GB", "nan"), ("CACHE_GB", "1e300"), ("CACHE_GB", "-1"),
     ("KV", "q9"), ("DEBUG", "9"), ("CHECK", "maybe")],
)  # fmt: skip
def test_a_bad_value_is_fatal_and_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"KVASIR_{name}"):
        read_settings({f"KVASIR_{name}": value})


def test_eleven_switches_at_most_each_with_a_field() -> None:
    assert len(SWITCHES) <= 13, "eleven, and KVASIR_CHECK and KVASIR_FAULT for tests"
    assert {s.field for s in SWITCHES} == set(Settings.__dataclass_fields__)
    assert all(s.name in settings_table() for s in SWITCHES)


def test_misspelled() -> None:
    assert misspelled({"KVASIR_THREAD": "1", "PATH": ""}) == (
        "KVASIR_THREAD is set and nothing reads it; did you mean KVASIR_THREADS?",
    )


def test_addresses() -> None:
    assert parse_address("http://0.0.0.0:1/") == Address("0.0.0.0", 1)
    assert parse_address("[::1]:5") == Address("::1", 5) and str(parse_address("::1")) == "[::1]:11434"
    for bad in ("a/b", "[::1]x", "h:-1", "h:1e3"):
        with pytest.raises(UsageError):
            parse_address(bad)
