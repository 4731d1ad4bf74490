"""The part of Go's template language that a request's `template` uses: two variables and `if`.

No loops and no functions, so a template costs at most its own length times the texts that are put in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvasir.errors import UsageError

ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
VARIABLE = re.compile(r"\.([A-Za-z]+)")
MAX_ACTIONS = 1000
HINT = "understood are {{ .System }}, {{ .Prompt }}, {{ .Response }}, {{ if .X }}, {{ else }} and {{ end }}"


def render_go_template(template: str, values: Mapping[str, str]) -> str:
    """`template` with `values` (System, Prompt, Response) put in.

    Text behind {{ .Response }} is left out, since that is where the answer goes.  Raises UsageError for
    anything outside the part described above.
    """
    out: list[str] = []
    shown: list[bool] = [True]  # one for the template and one for each open `if`
    end, trim = 0, False
    for n, found in enumerate(ACTION.finditer(template)):
        if n >= MAX_ACTIONS:
            raise UsageError("template: too many actions")
        text = template[end : found.start()]
        text = text.lstrip() if trim else text
        if all(shown):
            out.append(text.rstrip() if found[1] else text)
        end, trim = found.end(), bool(found[3])
        words = found[2].split()
        if words == [".Response"]:
            if all(shown):
                return "".join(out)
        elif len(words) == 1 and VARIABLE.fullmatch(words[0]):
            if all(shown):
                out.append(_value(words[0], values))
        elif len(words) == 2 and words[0] == "if" and VARIABLE.fullmatch(words[1]):
            shown.append(bool(_value(words[1], values)))
        elif words == ["else"] and len(shown) > 1:
            shown[-1] = not shown[-1]
        elif words == ["end"] and len(shown) > 1:
            shown.pop()
        else:
            raise UsageError("template: an action is not understood", hint=HINT)
    if len(shown) > 1:
        raise UsageError("template: an {{ if }} has no {{ end }}")
    rest = template[end:]
    return "".join(out) + (rest.lstrip() if trim else rest)


def _value(word: str, values: Mapping[str, str]) -> str:
    if word[1:] not in values:
        raise UsageError("template: a variable is not understood", hint=HINT)
    return values[word[1:]]
