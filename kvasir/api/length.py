"""How long a prompt is, for protocols that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvasir.api.face import Asked
from kvasir.api.loaded import Loaded


@dataclass(frozen=True)
class Length:
    """A question for the tokens of the prompt that `asked` has.  `told`: the JSON that says how many."""

    asked: Asked
    told: Callable[[int], Mapping[str, Any]]

    @property
    def model(self) -> str:
        return self.asked.model

    @property
    def keep_alive_s(self) -> float | None:
        return self.asked.keep_alive_s

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.asked.warnings

    def answer(self, model: Loaded, load_s: float) -> bytes:
        """The tokens that the prompt would have."""
        (request,) = self.asked.requests(model)
        return msgspec.json.encode(self.told(len(model.tokenize(request))))
