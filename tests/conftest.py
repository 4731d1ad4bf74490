"""Where the environment variable CI is set a test may not be skipped, but for what a CI machine may lack.

Prompts are kept on disk only by the tests that say so: no test begins with what another computed.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KVASIR_CACHE_DISK_GB", "0")

# The third: instructions of the processor.
MAY_LACK = (
    "could not import 'torch'",
    "could not import 'triton'",
    "this machine runs",
    "npm's client is not here",
    "these clients are not",
    "their environment is not here",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(lack in why for lack in MAY_LACK):
            report.outcome, report.longrepr = "failed", f"{item.nodeid} may not be skipped in CI: {why}"
    return report
