"""Text in and out.  What few models need is loaded with the first of them."""

from __future__ import annotations


def jinja_of(template: str) -> str:
    """`kvasir.text.gotemplate.jinja_of`."""
    from kvasir.text import gotemplate as room  # noqa: PLC0415

    return room.jinja_of(template)
