"""A model made of another, or another with an adapter, while that does the work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from kvasir.api.loaded import Answer, Loaded
from kvasir.chat import ChatRequest
from kvasir.store.made import Made


class Dressed:
    """A loaded model under another name: requests get what the name adds; for the rest it is `model`."""

    def __init__(self, name: str, model: Loaded, made: Made | None, adapter: str):
        self._model, self._made, self._adapter = model, made, adapter
        self.info = replace(model.info, name=name)
        if made:
            told = "\n".join(made.license) or model.info.license
            self.info = replace(self.info, license=told, made=made)

    def submit(self, request: ChatRequest) -> Answer:
        return self._model.submit(self._applied(request))

    def tokenize(self, request: ChatRequest) -> list[int]:
        return self._model.tokenize(self._applied(request))

    def _applied(self, request: ChatRequest) -> ChatRequest:
        if self._adapter:
            request = replace(request, adapter=self._adapter)
        return self._made.applied(request) if self._made else request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def dressed(name: str, model: Loaded, made: Made | None, adapter: str = "") -> Loaded:
    """`model` as `name`; itself, when that adds nothing."""
    return cast(Loaded, Dressed(name, model, made, adapter)) if made or adapter else model
