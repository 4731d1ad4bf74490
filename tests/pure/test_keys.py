"""API keys: the file, the command, the limits."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from kvasir.api.allowance import Allowance, Bucket
from kvasir.api.keys import Keyring, add_key, keys_path, read_keys, remove_key
from kvasir.cli.main import main
from kvasir.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_shown_once_and_kept_as_a_hash(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "alice", "--tokens-per-minute", "5000"]) == 0
    shown = capsys.readouterr()
    text = shown.out.strip()
    assert text.startswith("kv-") and len(text) == 46 and "only time" in shown.err
    kept = keys_path().read_text()
    assert keys_path() == home / ".kvasir" / "keys.json" and text not in kept and text[3:] not in kept
    assert stat.S_IMODE(keys_path().stat().st_mode) == 0o600
    assert [p.name for p in keys_path().parent.iterdir()] == ["keys.json"]
    assert main(["keys", "ls"]) == 0
    told = capsys.readouterr().out
    assert "alice" in told and "5,000" in told and text not in told
    assert "ask, change models" not in told
    assert main(["keys", "add", "bob", "--admin"]) == main(["keys", "ls"]) == 0
    assert "ask, change models" in capsys.readouterr().out and read_keys(keys_path())[1].admin
    assert main(["keys", "rm", "bob"]) == 0
    assert main(["keys", "rm", "alice"]) == 0 and read_keys(keys_path()) == ()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add"], "takes a NAME"),
        (["ls", "x"], "takes no name"),
        (["add", "a b"], "letters"),
        (["add", "../x"], "letters"),
        (["add", "x", "--requests-per-minute", "0"], "between 1"),
        (["add", "x", "--tokens-per-minute", "-5"], "between 1"),
        (["rm", "x"], "no key named"),
        (["rm", "x", "--tokens-per-minute", "5"], "limits and --admin go with"),
        (["rm", "x", "--admin"], "go with `kvasir keys add`"),
        (["sell", "x"], "knows no 'sell'"),
    ],
)
def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["keys", *words]) == 1
    assert says in capsys.readouterr().err and not keys_path().exists()


def test_names_are_unique() -> None:
    add_key(keys_path(), "a")
    with pytest.raises(UsageError, match="already"):
        add_key(keys_path(), "a")
    assert len(read_keys(keys_path())) == 1


def test_a_ring_finds_keys_and_takes_up_changes() -> None:
    ring = Keyring(keys_path())
    assert not ring.needed and ring.find(["kv-x"]) is None
    one = add_key(keys_path(), "one")
    two = add_key(keys_path(), "two")
    assert ring.needed
    first, second = ring.find([one]), ring.find(["kv-no", two])
    assert first and second and (first.name, second.name) == ("one", "two") and first.tenant != second.tenant
    for wrong in ("", one[:-1], one + " ", one.upper(), first.hash, "\udcff", "kv-" + "x" * 10**6):
        assert ring.find([wrong]) is None
    remove_key(keys_path(), "one")
    assert ring.find([one]) is None and ring.find([two])
    keys_path().unlink()
    assert not ring.needed
    assert Keyring(keys_path(), always=True).needed


def test_a_damaged_file_stops_the_start_and_changes_nothing_later(caplog: pytest.LogCaptureFixture) -> None:
    text = add_key(keys_path(), "one")
    ring = Keyring(keys_path())
    for damaged in (b"", b"{", b'{"keys":[{"name":1}]}', b"\xff", b'{"keys":[],"version":9}'):
        keys_path().write_bytes(damaged)
        assert ring.find([text]) and ring.needed
        with pytest.raises(UsageError, match=r"keys\.json"):
            Keyring(keys_path())
    assert "stay as they were" in caplog.text


def test_keys_of_other_formats_are_compared_whole() -> None:
    """A hash in the file that is no hash fits nothing, and harms nothing."""
    add_key(keys_path(), "one")
    body = json.loads(keys_path().read_text())
    body["keys"][0]["hash"] = ""
    keys_path().write_text(json.dumps(body))
    assert Keyring(keys_path()).find(["", "x"]) is None


class Clock:
    at = 100.0

    def __call__(self) -> float:
        return self.at


def test_a_bucket_fills_within_a_minute() -> None:
    clock = Clock()
    bucket = Bucket(6, clock)
    assert [bucket.take(1) for _ in range(6)] == [0.0] * 6
    assert bucket.take(1) == pytest.approx(10.0)
    clock.at += 10
    assert bucket.take(1) == 0 and bucket.take(1) > 0
    bucket.spend(12)
    assert bucket.wait_s(1) == pytest.approx(130.0)
    clock.at += 1000
    assert bucket.wait_s(6) == 0 and bucket.wait_s(7) > 0


def test_tokens_are_owed_and_refused_requests_cost_nothing() -> None:
    clock = Clock()
    add_key(keys_path(), "a", requests_per_minute=2, tokens_per_minute=60)
    (key,) = read_keys(keys_path())
    allowance = Allowance(key, clock)
    assert allowance.ask() == ("", 0.0)
    allowance.spend(90)
    why, wait_s = allowance.ask()
    assert "60 tokens" in why and wait_s == pytest.approx(31.0)
    clock.at += 31
    assert allowance.ask() == ("", 0.0) and allowance.ask() == ("", 0.0)
    assert "2 times" in allowance.ask()[0]
