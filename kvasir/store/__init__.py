"""From names to files.  What only made models need is loaded with the first of them."""

from __future__ import annotations

from pathlib import Path

from kvasir.store.made import Made


def read_manifest(path: Path) -> Made:
    """`kvasir.store.manifests.read_manifest`."""
    from kvasir.store import manifests as room  # noqa: PLC0415

    return room.read_manifest(path)
