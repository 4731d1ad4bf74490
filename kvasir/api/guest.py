"""A loaded model as one client sees it: its prompts are its own, and what it uses is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from kvasir.api.loaded import Answer, Loaded
from kvasir.api.measures import Measures
from kvasir.chat import ChatRequest, Delta, Embedding, Event, Finished, Spelled
from kvasir.errors import KvasirError
from kvasir.runner.inspect import ModelInfo
from kvasir.runner.pulse import Pulse


@dataclass(frozen=True)
class Visit:
    """Whose request it is, and when it came (`perf_counter`).

    `spend` is told of tokens as they are used, from any thread.
    """

    tenant: str = ""
    spend: Callable[[int], None] = lambda n_tokens: None
    measures: Measures = field(default_factory=Measures)
    began: float = 0.0


class Guest:
    """`Loaded`, for one visit."""

    def __init__(self, model: Loaded, visit: Visit):
        self._model, self._visit = model, visit
        self.info: ModelInfo = model.info
        self._name = Path(model.info.name).name

    @property
    def has_template(self) -> bool:
        return self._model.has_template

    @property
    def alive(self) -> bool:
        return self._model.alive

    @property
    def own_bytes(self) -> int:
        return self._model.own_bytes

    @property
    def pulse(self) -> Pulse:
        return self._model.pulse

    def token_bytes(self, token_id: int) -> bytes:
        return self._model.token_bytes(token_id)

    def submit(self, request: ChatRequest) -> Answer:
        tenant = self._visit.tenant
        if tenant:
            request = replace(request, tenant=f"{tenant}/{request.tenant}")
        try:
            answer = self._model.submit(request)
        except KvasirError as error:
            self._failed(error)
            raise
        return Counted(answer, self._visit, self._name)

    def tokenize(self, request: ChatRequest) -> list[int]:
        return self._model.tokenize(request)

    def embeddings(self, inputs: Sequence[str | Sequence[int]], truncate: bool = False) -> list[Embedding]:
        try:
            found = self._model.embeddings(inputs, truncate)
        except KvasirError as error:
            self._failed(error)
            raise
        n_tokens = sum(each.n_tokens for each in found)
        self._visit.spend(n_tokens)
        self._visit.measures.add("kvasir_embedding_tokens_total", n_tokens, model_name=self._name)
        return found

    def spell(self, token_ids: Sequence[int]) -> Spelled:
        return self._model.spell(token_ids)

    def _failed(self, error: KvasirError) -> None:
        failed(self._visit.measures, self._name, error)


class Counted:
    """An answer that is counted and timed as it passes; its prompt with the first event.  Mutable."""

    def __init__(self, answer: Answer, visit: Visit, model_name: str):
        self._answer, self._visit, self._name = answer, visit, model_name
        self._measures, self._key = visit.measures, (("model_name", model_name),)
        self._begun = False
        self._last: dict[int, float] = {}  # when each answer's last piece came
        self._n_ended = 0

    @property
    def n_truncated(self) -> int:
        return self._answer.n_truncated

    @property
    def n_cached(self) -> int:
        return self._answer.n_cached

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self._answer.prompt_token_ids

    def cancel(self) -> None:
        self._answer.cancel()
        self._begin()
        if not self._n_ended:  # the client has left
            self._n_ended = 1
            self._add("vllm:request_success_total", 1, finished_reason="abort")

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._answer:
                self._begin()
                if isinstance(event, Delta):
                    self._piece(event)
                else:
                    self._end(event)
                yield event
        except KvasirError as error:
            self._n_ended = self._n_ended or 1
            failed(self._visit.measures, self._name, error)
            raise

    def _begin(self) -> None:
        """The prompt costs even a client that leaves."""
        if not self._begun and (n_prompt := len(self._answer.prompt_token_ids)):
            self._begun = True
            self._visit.spend(n_prompt)
            self._add("vllm:prompt_tokens_total", n_prompt)

    def _piece(self, delta: Delta) -> None:
        now, last = perf_counter(), self._last.get(delta.index)
        if not self._last:
            self._observe("vllm:time_to_first_token_seconds", now - self._visit.began)
        if last is not None:
            self._measures.observe_in("vllm:inter_token_latency_seconds", self._key, now - last)
        self._last[delta.index] = now
        self._visit.spend(len(delta.token_ids))
        self._measures.add_to("vllm:generation_tokens_total", self._key, len(delta.token_ids))

    def _end(self, end: Finished) -> None:
        self._n_ended += 1
        reason = "stop" if end.reason == "tool_calls" else end.reason
        self._add("vllm:request_success_total", 1, finished_reason=reason)
        if reason == "abort":
            return
        how = end.metrics
        counts = {
            "vllm:num_preemptions_total": how.n_preempted,
            "vllm:prefix_cache_queries_total": how.n_prompt,
            "vllm:prefix_cache_hits_total": how.n_cached,
            "kvasir_prefix_cache_disk_hits_total": how.n_from_disk,
            "vllm:spec_decode_num_draft_tokens_total": how.n_drafted,
            "vllm:spec_decode_num_accepted_tokens_total": how.n_accepted,
            "kvasir_prompt_tokens_cut_total": how.n_truncated,
        }
        for name, count in counts.items():
            self._add(name, count)
        values = {
            "vllm:e2e_request_latency_seconds": perf_counter() - self._visit.began,
            "vllm:request_queue_time_seconds": how.queue_s,
            "vllm:request_prefill_time_seconds": how.prefill_s,
            "vllm:request_decode_time_seconds": how.decode_s,
            "vllm:request_inference_time_seconds": how.prefill_s + how.decode_s,
            "vllm:request_prompt_tokens": how.n_prompt,
            "vllm:request_generation_tokens": how.n_generated,
        }
        if how.n_generated > 1:
            each_s = how.decode_s / (how.n_generated - 1)
            values["vllm:request_time_per_output_token_seconds"] = each_s
        for name, value in values.items():
            self._observe(name, value)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        self._visit.measures.add(name, amount, model_name=self._name, **labels)

    def _observe(self, name: str, value: float) -> None:
        self._visit.measures.observe(name, value, model_name=self._name)


def failed(measures: Measures, model_name: str, error: KvasirError) -> None:
    """One more request that ended with an error."""
    measures.add("kvasir_request_errors_total", 1, model_name=model_name, kind=type(error).__name__)
