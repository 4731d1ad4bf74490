"""What the server tells of itself: /metrics, and its state for tests."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import active_count
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvasir.api.doors import is_loopback
from kvasir.api.house import House
from kvasir.api.http import JSON, json_response
from kvasir.api.measures import Labels
from kvasir.api.openapi import document
from kvasir.api.residents import Seat
from kvasir.backends.nvml import Reading, readings
from kvasir.runner.pulse import outside

TEXT = "text/plain; version=0.0.4; charset=utf-8"
STARTED = time.time()


def routes(house: House) -> list[Route]:
    """Paths of no protocol."""
    own = Own(house)
    state = [Route("/kvasir/debug/state", own.state)] if house.debug_state else []
    return [Route("/metrics", own.metrics), Route("/openapi.json", own.openapi), *state]


class Own:
    """The handlers."""

    def __init__(self, house: House):
        self._house = house
        self._document = b""

    async def metrics(self, request: Request) -> Response:
        now = await self._house.in_thread(lambda: list(self._now(self._house.residents.seats())))
        return Response(self._house.measures.page(now), headers={"content-type": TEXT})

    async def openapi(self, request: Request) -> Response:
        if not self._document:
            self._document = document(request.app.routes)
        return Response(self._document, media_type=JSON)

    async def state(self, request: Request) -> Response:
        """Blocks, queues, descriptors: what must be as before when all requests are done."""
        if not request.client or not is_loopback(request.client.host):
            raise HTTPException(404)
        seats = self._house.residents.seats()
        return json_response(await self._house.in_thread(lambda: self._state(seats)))

    def _now(self, seats: list[Seat]) -> Iterator[tuple[str, Labels, float]]:
        """What can be seen at this moment."""
        for seat in seats:
            labels = (("model_name", shown_name(seat)),)
            if not (seat.model and seat.model.alive):
                yield "vllm:num_requests_waiting", labels, seat.users
                continue
            pulse = seat.model.pulse
            yield "vllm:num_requests_running", labels, max(pulse.n_running - pulse.n_waiting, 0)
            yield "vllm:num_requests_waiting", labels, pulse.n_waiting
            if pulse.n_blocks:
                yield "vllm:kv_cache_usage_perc", labels, 1 - pulse.n_free / pulse.n_blocks
            yield "kvasir_kv_blocks", labels, pulse.n_blocks
            yield "kvasir_kv_blocks_free", labels, pulse.n_free
            yield "kvasir_model_steps", labels, pulse.steps
            yield "kvasir_model_memory_bytes", labels, seat.model.own_bytes
        for gpu in readings():
            yield from _of_gpu(gpu)
        yield "kvasir_requests_in_flight", (), self._house.residents.n_requests
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield "process_cpu_seconds_total", (), usage.ru_utime + usage.ru_stime
        yield "process_start_time_seconds", (), STARTED
        yield "process_resident_memory_bytes", (), resident_bytes()
        if (count := n_descriptors()) is not None:
            yield "process_open_fds", (), count

    def _state(self, seats: list[Seat]) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "requests": self._house.residents.n_requests,
            "answers": len(self._house.residents.answers),
            "descriptors": n_descriptors(),
            "threads": active_count(),
            "resident_bytes": resident_bytes(),
            "models": [
                {
                    "name": shown_name(seat),
                    "users": seat.users,
                    "loaded": bool(seat.model and seat.model.alive),
                    "own_bytes": seat.model.own_bytes if seat.model else 0,
                    "pulse": asdict(seat.model.pulse) if seat.model else None,
                }
                for seat in seats
            ],
        }


def _of_gpu(gpu: Reading) -> Iterator[tuple[str, Labels, float]]:
    """What the driver tells of a GPU; nothing of what it does not."""
    labels = (("gpu", str(gpu.index)), ("name", gpu.name))
    yield "kvasir_gpu_memory_bytes", labels, gpu.total_bytes
    yield "kvasir_gpu_memory_used_bytes", labels, gpu.used_bytes
    told = (
        ("utilization_ratio", gpu.utilization),
        ("power_watts", gpu.power_w),
        ("energy_joules_total", gpu.energy_j),
    )
    for name, value in told:
        if value is not None:
            yield f"kvasir_gpu_{name}", labels, value


def shown_name(seat: Seat) -> str:
    """A seat's model without its folder."""
    return Path(seat.model.info.name if seat.model else seat.called).name


def resident_bytes() -> int:
    """Memory of this process; its peak where the system does not tell more."""
    if own := outside(os.getpid()).own_bytes:
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def n_descriptors() -> int | None:
    """Open files and sockets; None where the system does not tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(folder)) - 1  # without the one that lists them
    return None
