"""GET /metrics: what Prometheus's own reader makes of it after requests whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from kvasir.api.measures import MEASURES, Measures
from kvasir.errors import CapacityError
from tests.wire.fake import FakeModel
from tests.wire.real import real_server
from tests.wire.test_server import ask, models_folder, serving

__all__ = ["models_folder"]  # a fixture for all tests here


def read(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the page: its name and labels, its value."""
    r = requests.get(f"{url}/metrics")
    assert r.status_code == 200 and r.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(r.text))
    assert {f.name for f in families} <= {name.removesuffix("_total") for name in MEASURES}
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(found: dict, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    wanted = set(labels.items())
    hits = [v for (n, has), v in found.items() if n == name and wanted <= has]
    assert hits, (name, labels)
    return sum(hits)


def test_what_passes_is_counted() -> None:
    with serving(FakeModel(pace_s=0.01)) as url:
        for stream in (True, False):
            assert ask(url, prompt="12345", stream=stream).status_code == 200
        assert ask(url, prompt="x", options={"num_predict": 1}, stream=False).status_code == 200
        assert ask(url, prompt="x" * 600).status_code == 400
        requests.get(f"{url}/nothing/{'x' * 50}")
        requests.request("BREW", f"{url}/api/tags")
        found = read(url)
    mead = {"model_name": "mead:latest"}
    assert value(found, "vllm:prompt_tokens_total", **mead) == 11
    assert value(found, "vllm:generation_tokens_total", **mead) == 7
    assert value(found, "vllm:request_success_total", finished_reason="stop", **mead) == 2
    assert value(found, "vllm:request_success_total", finished_reason="length", **mead) == 1
    assert value(found, "kvasir_request_errors_total", kind="UsageError", **mead) == 1
    assert value(found, "vllm:time_to_first_token_seconds_count", **mead) == 3
    assert value(found, "vllm:inter_token_latency_seconds_count", **mead) == 4
    assert value(found, "vllm:inter_token_latency_seconds_sum", **mead) > 0
    assert value(found, "vllm:inter_token_latency_seconds_bucket", le="+Inf", **mead) == 4
    assert value(found, "vllm:request_decode_time_seconds_sum", **mead) == 1.5
    assert value(found, "vllm:prefix_cache_queries_total", **mead) == 11
    assert value(found, "kvasir_http_requests_total", path="/api/generate", status="200") == 3
    assert value(found, "kvasir_http_requests_total", path="/api/generate", status="400") == 1
    assert value(found, "kvasir_http_requests_total", path="other", method="GET", status="404") == 1
    assert value(found, "kvasir_http_requests_total", path="/api/tags", method="other") == 1
    assert value(found, "kvasir_requests_in_flight") == 0
    assert value(found, "process_resident_memory_bytes") > 1e6 and value(found, "process_open_fds") > 3


def test_clients_that_leave_and_errors_in_the_middle() -> None:
    with serving(FakeModel(words=["x"] * 1000, pace_s=0.02)) as url:
        with requests.post(f"{url}/api/generate", json={"model": "mead", "prompt": "x"}, stream=True) as r:
            next(r.iter_lines())
        for _ in range(100):
            found = read(url)
            if any(name == "vllm:request_success_total" for name, _ in found):
                break
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 1
    with serving(FakeModel(words=["a", CapacityError("full")])) as url:
        ask(url, prompt="x")
        found = read(url)
    assert value(found, "kvasir_request_errors_total", kind="CapacityError") == 1
    assert not any(name == "vllm:request_success_total" for name, _ in found)


def test_labels_are_escaped_and_buckets_add_up() -> None:
    measures = Measures()
    name = 'a"b\\c\nd'
    for seconds in (0.0005, 0.001, 0.002, 100.0, 1e6):
        measures.observe("vllm:e2e_request_latency_seconds", seconds, model_name=name)
    page = measures.page([("kvasir_kv_blocks", (("model_name", name),), 12.0)])
    samples = [s for f in text_string_to_metric_families(page) for s in f.samples]
    assert {s.labels["model_name"] for s in samples} == {name}
    buckets = [s.value for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and buckets[0] == 2 and buckets[-1] == 5


def test_a_real_model_shows_its_cache_and_its_hits() -> None:
    with real_server() as url:
        prompt = "What is a VLAN? " * 8
        for _ in range(2):
            assert ask(url, prompt=prompt, stream=False, options={"num_predict": 8}).status_code == 200
        found = read(url)
    mead = {"model_name": "mead:latest"}
    assert value(found, "kvasir_kv_blocks", **mead) > 0
    assert 0 <= value(found, "vllm:kv_cache_usage_perc", **mead) < 0.5
    assert value(found, "vllm:num_requests_running", **mead) <= 1
    assert value(found, "vllm:num_requests_waiting", **mead) == 0
    hits, queries = (value(found, f"vllm:prefix_cache_{n}_total", **mead) for n in ("hits", "queries"))
    assert 0 < hits < queries and value(found, "vllm:prompt_tokens_total", **mead) == queries


def test_hits_from_disk_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVASIR_CACHE_DISK_GB", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prompt, answers = "What is a VLAN? " * 20, []
    for _ in range(2):
        with real_server() as url:
            asked = ask(url, prompt=prompt, stream=False, options={"num_predict": 8, "temperature": 0})
            answers.append(asked.json()["response"])
            found = read(url)
    hits = value(found, "vllm:prefix_cache_hits_total", model_name="mead:latest")
    assert hits == value(found, "kvasir_prefix_cache_disk_hits_total", model_name="mead:latest") >= 64
    assert answers[0] == answers[1]


def test_the_state_is_shown_only_where_it_was_asked_for() -> None:
    with serving(FakeModel()) as url:
        assert requests.get(f"{url}/kvasir/debug/state").status_code == 404
    with serving(FakeModel(), debug_state=True) as url:
        before = requests.get(f"{url}/kvasir/debug/state").json()
        assert before["requests"] == before["answers"] == 0 and before["models"] == []
        ask(url, prompt="x", stream=False)
        after = requests.get(f"{url}/kvasir/debug/state").json()
        assert [m["name"] for m in after["models"]] == ["mead:latest"] and after["models"][0]["users"] == 0
        assert "n_free" in after["models"][0]["pulse"] and after["descriptors"] <= before["descriptors"] + 4
