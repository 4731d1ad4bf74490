"""Fuzzes every operation of the OpenAPI document: `make api-fuzz`, or a few examples each in the tests.

No answer may be a 5xx but 501 and 503, none may take five seconds or tell of the inside, and the server must
answer afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Container, Iterator
from time import monotonic

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, Response

from tests.wire.real import real_server

LONGEST_S = 5.0
INSIDE = re.compile(r"Traceback|0x[0-9a-f]{6,}|/(work|home|root|tmp|usr|opt)/|site-packages|\.py\b")
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def wrong(response: Response, took_s: float) -> str:
    """What is wrong with an answer; nothing if it is as it must be."""
    if response.status_code >= 500 and response.status_code not in (501, 503):
        return f"status {response.status_code}: {response.text[:300]}"
    if took_s > LONGEST_S:
        return f"took {took_s:.1f} s"
    if response.status_code >= 400 and response.request.method != "HEAD":
        kind = response.headers.get("content-type", [""])[0]
        if not kind.startswith("application/json") or "error" not in response.json():
            return f"an error in no protocol's shape: {response.text[:300]}"
        sent = response.request.url + str(response.request.body)
        if (found := INSIDE.search(response.text)) and found[0] not in sent:
            return f"tells of the inside: {response.text[:300]}"
    return ""


def fuzz(url: str, n_examples: int, paths: Container[str] | None = None) -> Iterator[str]:
    """What was found wrong, operation by operation; of these paths only, if they are given."""
    session = requests.Session()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        if paths is not None and operation.path not in paths:
            continue
        for mode in MODES:
            if fault := _tried(session, url, operation, mode, n_examples):
                yield f"{operation.method.upper()} {operation.path} ({mode.value}): {fault}"
        if session.get(f"{url}/api/version", timeout=LONGEST_S).status_code != 200:
            yield f"after {operation.path} the server does not answer"


def _tried(session, url: str, operation, mode: GenerationMode, n_examples: int) -> str:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "mead"  # else nearly every request ends with an unknown model
        began = monotonic()
        response = case.call(base_url=url, session=session, timeout=60)
        fault = wrong(response, monotonic() - began)
        assert not fault, fault

    try:
        call()
    except AssertionError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300] if "Unsatisfiable" not in type(error).__name__ else ""
    return ""


def main() -> int:
    """Prints what is wrong; 1 if anything is."""
    it = argparse.ArgumentParser(description=__doc__)
    it.add_argument("--examples", type=int, default=30, help="an operation, of good and of bad requests each")
    n_examples = it.parse_args().examples
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KVASIR_MODELS"] = folder
        with real_server() as url:
            found = list(fuzz(url, n_examples))
    print("\n".join(found) or "nothing wrong")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
