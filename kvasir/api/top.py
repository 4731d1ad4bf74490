"""What the server is doing, for `kvasir top`: GET /kvasir/top."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import kvasir
from kvasir.api.catalog import rfc3339
from kvasir.api.house import House, called_by
from kvasir.api.http import json_response
from kvasir.api.residents import Seat


def routes(house: House) -> list[Route]:
    """The one path."""

    async def top(request: Request) -> Response:
        budget = house.budget_bytes
        return json_response(
            {
                "version": kvasir.__version__,
                "at_s": monotonic(),
                "requests": house.residents.n_requests,
                "max_requests": house.max_requests,
                "budget_bytes": int(budget) if isfinite(budget) else None,
                "models": models(house.residents.seats(), house.loader.stage),
            }
        )

    return [Route("/kvasir/top", top)]


def models(seats: Iterable[Seat], stage: Any) -> list[dict[str, Any]]:
    """What each model does: requests running and waiting, tokens so far, cache blocks, memory."""
    found = []
    for seat in seats:
        name = called_by(seat.model.info, seat.called).name if seat.model else seat.called.rpartition("/")[2]
        entry: dict[str, Any] = {"name": name, "users": seat.users, "bytes": seat.bytes}
        if seat.model and seat.model.alive:
            pulse = seat.model.pulse
            entry |= {
                "running": pulse.n_running,
                "waiting": pulse.n_waiting,
                "generated": pulse.n_generated,
                "rows": pulse.n_rows,
                "steps": pulse.steps,
                "blocks": pulse.n_blocks,
                "blocks_free": pulse.n_free,
                "expires_at": rfc3339(seat.expires) if seat.expires else None,
            }
        else:
            entry["stage"] = stage(seat.name) or "waiting for room"
        found.append(entry)
    return found
