"""Counts and times of everything that passes through the server, as Prometheus reads them.

Names are vLLM's (`vllm:...`) where the meaning is the same, so that its dashboards work; others begin with
`kvasir_`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Labels = tuple[tuple[str, str], ...]
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)


@dataclass(frozen=True)
class Measure:
    """One family of numbers.  `edges`: upper bounds of a histogram's buckets."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    edges: tuple[float, ...] = ()


def _counter(help: str) -> Measure:
    return Measure("counter", help)


def _gauge(help: str) -> Measure:
    return Measure("gauge", help)


def _times(help: str) -> Measure:
    return Measure("histogram", help, SECONDS)


def _sizes(help: str) -> Measure:
    return Measure("histogram", help, TOKENS)


MEASURES: dict[str, Measure] = {
    "vllm:num_requests_running": _gauge("Answers that take part in the model's steps."),
    "vllm:num_requests_waiting": _gauge("Answers that wait for room, or for their model to be loaded."),
    "vllm:kv_cache_usage_perc": _gauge("Share of the KV cache that answers hold; 1 is all of it."),
    "vllm:prompt_tokens_total": _counter("Tokens of prompts."),
    "vllm:generation_tokens_total": _counter("Tokens of answers."),
    "vllm:request_success_total": _counter("Answers that came to their end, by its reason."),
    "vllm:num_preemptions_total": _counter("Times that an answer had to give up its cache blocks."),
    "vllm:prefix_cache_queries_total": _counter("Tokens of prompts that were looked for in the cache."),
    "vllm:prefix_cache_hits_total": _counter("Tokens of prompts that were found there."),
    "kvasir_prefix_cache_disk_hits_total": _counter("Of these, tokens that were read from disk."),
    "vllm:spec_decode_num_draft_tokens_total": _counter("Tokens guessed ahead."),
    "vllm:spec_decode_num_accepted_tokens_total": _counter("Tokens guessed ahead, and rightly."),
    "vllm:time_to_first_token_seconds": _times("From the request's arrival to its first token."),
    "vllm:inter_token_latency_seconds": _times("Between two pieces of an answer."),
    "vllm:request_time_per_output_token_seconds": _times("Mean time a token after the first, by answer."),
    "vllm:e2e_request_latency_seconds": _times("From the request's arrival to the end of an answer."),
    "vllm:request_queue_time_seconds": _times("Wait for the first step."),
    "vllm:request_prefill_time_seconds": _times("From the first step to the first token."),
    "vllm:request_decode_time_seconds": _times("From the first token to the last."),
    "vllm:request_inference_time_seconds": _times("From the first step to the last token."),
    "vllm:request_prompt_tokens": _sizes("Tokens of a prompt, by answer."),
    "vllm:request_generation_tokens": _sizes("Tokens of an answer."),
    "kvasir_request_errors_total": _counter("Requests to a model that ended with an error, by its kind."),
    "kvasir_embedding_tokens_total": _counter("Tokens of texts that were embedded."),
    "kvasir_prompt_tokens_cut_total": _counter("Tokens cut off prompts that were too long."),
    "kvasir_model_memory_bytes": _gauge("Memory that would be free without the model."),
    "kvasir_model_steps": _gauge("Steps that the model's process has done."),
    "kvasir_kv_blocks": _gauge("Blocks of the KV cache."),
    "kvasir_kv_blocks_free": _gauge("Blocks of the KV cache that no answer holds."),
    "kvasir_requests_in_flight": _gauge("Requests under way and waiting, of all models."),
    "kvasir_http_requests_total": _counter("HTTP requests, by path, method and status."),
    "kvasir_http_request_seconds": _times("From a request's head to the last byte of its answer."),
    "kvasir_gpu_memory_bytes": _gauge("Memory of a GPU."),
    "kvasir_gpu_memory_used_bytes": _gauge("Memory of a GPU that is taken, by whomever."),
    "kvasir_gpu_utilization_ratio": _gauge("Share of the last moment in which the GPU computed."),
    "kvasir_gpu_power_watts": _gauge("What the GPU draws."),
    "kvasir_gpu_energy_joules_total": _counter("What the GPU took since its driver was loaded."),
    "process_resident_memory_bytes": _gauge("Memory of the server itself, without its models' processes."),
    "process_cpu_seconds_total": _counter("CPU time of the server itself."),
    "process_open_fds": _gauge("Open files and sockets of the server itself."),
    "process_start_time_seconds": _gauge("When the server started, since 1970."),
}


@dataclass
class Histogram:
    """Values by size.  Mutable; guarded by the lock of its Measures."""

    edges: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) + 1)

    def observe(self, value: float) -> None:
        self.total += value
        self.counts[bisect_left(self.edges, value)] += 1


class Measures:
    """All that was counted so far.  Mutable and thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, Histogram]] = {}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Counts `amount` more."""
        self.add_to(name, tuple(labels.items()), amount)

    def add_to(self, name: str, key: Labels, amount: float) -> None:
        """`add`, where the labels are at hand."""
        with self._lock:
            family = self._counts.setdefault(name, {})
            family[key] = family.get(key, 0.0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more value for a histogram."""
        self.observe_in(name, tuple(labels.items()), value)

    def observe_in(self, name: str, key: Labels, value: float) -> None:
        """`observe`, where the labels are at hand."""
        with self._lock:
            family = self._histograms.setdefault(name, {})
            if key not in family:
                family[key] = Histogram(MEASURES[name].edges)
            family[key].observe(value)

    def page(self, now: Iterable[tuple[str, Labels, float]]) -> str:
        """Everything in Prometheus's text format.  `now`: what is only known at this moment."""
        with self._lock:
            counts = {name: dict(family) for name, family in self._counts.items()}
            told = {name: list(_told(name, family)) for name, family in self._histograms.items()}
        for name, labels, value in now:
            counts.setdefault(name, {})[labels] = value
        lines = []
        for name, measure in MEASURES.items():
            rows = told.get(name) or [_row(name, key, value) for key, value in counts.get(name, {}).items()]
            if rows:
                lines += [f"# HELP {name} {measure.help}", f"# TYPE {name} {measure.kind}", *rows]
        return "\n".join(lines) + "\n"


def _told(name: str, family: dict[Labels, Histogram]) -> Iterable[str]:
    """The lines of a histogram."""
    for labels, histogram in family.items():
        passed = 0
        for edge, count in zip((*histogram.edges, float("inf")), histogram.counts, strict=True):
            passed += count
            bound = "+Inf" if edge == float("inf") else str(edge)
            yield _row(f"{name}_bucket", (*labels, ("le", bound)), passed)
        yield _row(f"{name}_sum", labels, histogram.total)
        yield _row(f"{name}_count", labels, passed)


def _row(name: str, labels: Labels, value: float) -> str:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    number = str(int(value)) if value == int(value) else repr(float(value))
    return f"{name}{{{told}}} {number}" if told else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
