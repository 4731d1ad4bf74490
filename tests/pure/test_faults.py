"""The parts around a model's process that need none: the switch, frames, and who is judged to be stuck."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvasir import errors, faults
from kvasir.chat import ChatRequest, Delta, Finished, Message, Metrics, TokenLogprob, ToolCall
from kvasir.errors import Bug, Busy, CapacityError, KvasirError, UsageError
from kvasir.runner import memory, messages
from kvasir.runner.client import how
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.messages import Accepted, Batch, Frames, Ready, Submit, encode, error_of, failure
from kvasir.runner.pulse import MOST_ROWS, Outside, Pulse, Watch
from kvasir.sampling import SamplingParams

INFO = ModelInfo(
    "a:latest", Path("/x/a.gguf"), "gguf", "qwen3", 1, "Q4_0", 512, 8, 9, datetime.now(UTC), "0" * 64, "", ()
)


def test_faults_are_named_and_wrong_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = faults.parse("runner.step:17:kill, runner.load@qwen3:0.6b:1:exit:2")
    assert (one.point, one.model, one.count, one.action) == ("runner.step", "", 17, "kill")
    assert (two.model, two.processes) == ("qwen3:0.6b", 2) and str(two) == "runner.load@qwen3:0.6b:1:exit"
    for text in ("runner.step", "runner.step:0:kill", "runner.stop:1:kill", "runner.step:1:die", "a:b:c:d"):
        with pytest.raises(UsageError):
            faults.parse(text)
    monkeypatch.setattr(faults, "_armed", {})
    faults.reach("runner.step")
    faults.arm(
        faults.parse("runner.step@a:3:raise,runner.step@b:1:raise,runner.send:1:raise:1"), "a:latest", 2
    )
    assert faults.armed() and list(faults._armed) == ["runner.step"]
    faults.reach("runner.step")
    faults.reach("runner.step")
    with pytest.raises(RuntimeError, match="on purpose"):
        faults.reach("runner.step")
    faults.reach("runner.step")


def test_requests_and_answers_cross_whole() -> None:
    params = SamplingParams(n=2, stop=["a", "b"], stop_token_ids=[1], logit_bias={3: 0.5}, seed=2**62)
    call = ToolCall("f", {"x": [1, {"y": None}]}, "1")
    request = ChatRequest(
        params, (Message("user", "grüß\0 dich"), Message("assistant", "", tool_calls=(call,))),
        context=(1, 2), tools=({"type": "function"},), think="high", max_context=9, truncate=True,
    )  # fmt: skip
    for asked in (
        request,
        ChatRequest(SamplingParams(), prompt=(1, 2)),
        ChatRequest(SamplingParams(), prompt=""),
    ):
        (body,) = Frames().feed(encode(Submit(7, asked)))
        assert messages.to_runner(body) == Submit(7, asked)
    delta = Delta("x", (5,), (TokenLogprob(5, -0.25, ((5, -0.25),)),), 1)
    batch = Batch(
        Pulse(3, 0.5, 0.25, 1, 2, 3), [Accepted(1, (4, 5), 0)], [(1, 16)],
        [(1, delta)],
        [(1, Finished("stop", Metrics(n_prompt=2), "b"))], [(2, failure(UsageError("m", "h")))], {5: b"\xff"},
    )  # fmt: skip
    for frame in (batch, Ready(INFO, True, 0.5, ["norm"])):
        (body,) = Frames().feed(encode(frame))
        assert messages.from_runner(body) == frame


def test_frames_come_in_any_pieces_and_nothing_else_passes() -> None:
    data = encode(messages.Cancel(1)) + encode(messages.Close())
    frames, found = Frames(), []
    for i in range(len(data)):
        found += [messages.to_runner(body) for body in frames.feed(data[i : i + 1])]
    assert found == [messages.Cancel(1), messages.Close()]
    for bad in (b"GET / HTTP/1.1\r\n", b"\x01\xff\xff\xff\xff", b"\x02\x00\x00\x00\x00"):
        with pytest.raises(Bug):
            list(Frames().feed(bad))
    for bad in (b"", b"\x90", b"\x81\xa4type\xa4boom"):
        with pytest.raises(Bug):
            messages.from_runner(bad)
    with pytest.raises(UsageError, match="cannot be sent"):
        encode(Submit(1, ChatRequest(SamplingParams(), tools=({"x": 2**70},))))
    with pytest.raises(UsageError, match="67,108,864 are the most"):
        encode(Submit(1, ChatRequest(SamplingParams(), prompt="x" * (1 << 26))))


def test_errors_cross_as_what_they_are() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, KvasirError)]
    assert len(kinds) > 6
    for kind in kinds:
        there = error_of(failure(kind("m", "h")))
        assert type(there) is kind and (there.message, there.hint) == ("m", "h")
    busy = error_of(failure(Busy("m", wait_s=7.5)))
    assert isinstance(busy, Busy) and isinstance(busy, CapacityError) and busy.wait_s == 7.5
    assert type(error_of(failure(ValueError("x")))) is Bug
    assert type(error_of(messages.Failure("annotations", "m"))) is Bug


def judged(seconds: int, seen: list[Outside], pulse: Pulse | None) -> tuple[int, str]:
    """The second in which a watch finds a process stuck that beats with `pulse` (None: not at all)."""
    watch = Watch()
    watch.heard(pulse or Pulse())
    for second in range(1, seconds + 1):
        if pulse:
            watch.heard(pulse)
        if why := watch.looked(1.0, seen[second % len(seen)]):
            return second, why
    return 0, ""


def test_who_is_stuck() -> None:
    busy = [Outside("S", wanted_s=float(i)) for i in range(100)]
    reads = [Outside("S", 1.0, n_read=i) for i in range(100)]
    idle, stopped, debugged = [Outside("S", 1.0)], [Outside("T", 1.0)], [Outside("t", 1.0)]
    step, idling = Pulse(steps=5, busy_s=1.0, slowest_s=0.1), Pulse(steps=5)
    assert judged(300, idle, idling) == (0, "")
    assert judged(90, busy, step) == judged(90, reads, step) == judged(300, debugged, None) == (0, "")
    for seen, pulse, latest, word in (
        (stopped, None, 6, "stopped"), (idle, None, 7, "sign of life"), (idle, step, 8, "computed nothing"),
        (busy, None, 61, "sign of life"),
    ):  # fmt: skip
        second, why = judged(90, seen, pulse)
        assert 2 < second <= latest and word in why, (second, why)
    unknown = [Outside()]
    assert judged(90, unknown, step) == (0, "") and judged(90, unknown, None)[0] == 61


def test_a_slow_step_is_no_stuck_one() -> None:
    busy = [Outside("S", wanted_s=float(i)) for i in range(10)]
    for slowest_s, longest_s in ((0.01, 120), (2.0, 2 * MOST_ROWS)):
        fine = Pulse(steps=1, busy_s=longest_s - 1, slowest_s=slowest_s)
        stuck = Pulse(steps=1, busy_s=longest_s + 1, slowest_s=slowest_s)
        assert judged(8, busy, fine) == (0, "") and "the most to expect" in judged(8, busy, stuck)[1]
    assert judged(8, busy, Pulse(steps=0, busy_s=1700)) == (0, "")


def test_a_watcher_that_stood_still_itself_blames_nobody() -> None:
    watch = Watch()
    watch.heard(Pulse(steps=1))
    assert watch.looked(3600.0, Outside("S", 1.0)) == ""


def test_the_end_of_a_process_in_words() -> None:
    assert how(3) == "it left with status 3"
    assert how(-9) == "killed by signal 9 (SIGKILL, often for want of memory)"
    assert how(-250) == "killed by signal 250"


def test_what_a_model_will_take(tmp_path: Path) -> None:
    for name, size in (
        ("a-00001-of-00002.gguf", 3),
        ("a-00002-of-00002.gguf", 4),
        ("a-00001-of-00003.gguf", 9),
    ):
        (tmp_path / name).write_bytes(b"x" * size * 1000)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.safetensors").write_bytes(b"x" * 5000)
    (tmp_path / "m" / "tokenizer.json").write_bytes(b"x" * 5000)
    for name, size in (("a-00001-of-00002.gguf", 7000), ("a-00001-of-00003.gguf", 9000), ("m", 5000)):
        assert memory.expected_bytes(tmp_path / name) == memory.PROCESS_BYTES + int(size * 1.1)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("123456\n")
    assert memory.machine_bytes(tmp_path) == 123456
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory.budget_bytes() < memory.machine_bytes(tmp_path)
