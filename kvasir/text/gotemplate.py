"""Templates in Go's language, as Modelfiles have them, as templates in Jinja.

What Ollama's templates use: fields, variables, if, else, range, with, assignments, and the functions below.
A template that names `.Messages` is rendered once; any other once for each turn (.System, .Prompt,
.Response), and the last time up to its .Response, where the answer goes.  Source: Ollama's docs/template.md,
and Go's text/template for the language.
"""

from __future__ import annotations

import json
import re
from dataclasses import field

from kvasir.errors import UsageError
from kvasir.records import dataclass

ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
GO = re.compile(
    r"\{\{-?\s*(?:(?:if|range|with|else\s+if)\s+)?(?:(?:and|or|not|eq|ne|len|json|index)\s+)*\(?[$.]?\.?[A-Z]\w*"
)
JINJA = re.compile(r"\{%-?\s*(?:for|if|set|macro|generation|else|endif|endfor)\b")
TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<mark>:=|[()|=,])'
    r"|(?P<path>\$?\w*(?:\.\w+)+|\$\w*|\.)|(?P<word>\w+))"
)
MAX_ACTIONS = 2000
# What Go calls them, and what the messages and tools of a request do.
FIELDS = {
    "Role": "role", "Content": "content", "Thinking": "reasoning_content", "ToolCalls": "tool_calls",
    "ToolName": "name", "ToolCallID": "tool_call_id", "Function": "function", "Name": "name", "ID": "id",
    "Arguments": "arguments", "Description": "description", "Parameters": "parameters", "Type": "type",
    "Properties": "properties", "Required": "required", "Enum": "enum", "Items": "items",
}  # fmt: skip
ROOTS = {
    "Messages": "messages", "Tools": "tools", "System": "System", "Prompt": "Prompt", "Response": "Response",
    "Suffix": '""', "Think": "(enable_thinking|default(false))",
    "ThinkLevel": "(reasoning_effort|default(''))", "IsThinkSet": "(enable_thinking is defined)",
}  # fmt: skip
COMPARE = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SHOW = (
    "{%- macro go_(x) -%}{%- if x is string -%}{{ x }}{%- elif x is none or x is undefined -%}"
    "{%- elif x is boolean -%}{{ 'true' if x else 'false' }}{%- elif x is number -%}{{ x }}"
    "{%- else -%}{{ x | tojson }}{%- endif -%}{%- endmacro -%}"
)
SYSTEM = (
    "{%- set s_ = namespace(t='') -%}{%- for m in messages -%}{%- if m.role == 'system' -%}"
    "{%- set s_.t = s_.t ~ ('\\n\\n' if s_.t else '') ~ m.content -%}{%- endif -%}{%- endfor -%}"
    "{%- set System, Prompt, Response = s_.t, '', '' -%}"
)
TURNS = (
    "{%- set t_ = namespace(s='', p='', r='') -%}{%- for m in messages -%}"
    "{%- if (m.role == 'system' and (t_.p or t_.r)) or (m.role == 'user' and t_.r) -%}"
    "{{ turn_(t_.s, t_.p, t_.r) }}"
    "{%- set t_.s = '' -%}{%- set t_.p = '' -%}{%- set t_.r = '' -%}{%- endif -%}"
    "{%- if m.role == 'system' -%}{%- set t_.s = m.content -%}"
    "{%- elif m.role == 'user' -%}{%- set t_.p = m.content -%}"
    "{%- elif m.role == 'assistant' -%}{%- set t_.r = m.content -%}{%- endif -%}{%- endfor -%}"
    "{{ last_(t_.s, t_.p, t_.r) }}"
)


def is_go(source: str) -> bool:
    """Whether a template is in Go's language."""
    return JINJA.search(source) is None and GO.search(source) is not None


def jinja_of(source: str) -> str:
    """`source` in Jinja; itself, when that is what it is.  Raises UsageError for what is not understood."""
    if not is_go(source):
        return source
    whole = _Translation().run(source)
    if re.search(r"\.Messages\b", source):
        return SHOW + SYSTEM + whole
    last = _Translation(ends=True).run(source)
    turn = "{%- macro turn_(System, Prompt, Response) -%}" + whole + "{%- endmacro -%}"
    return SHOW + turn + "{%- macro last_(System, Prompt, Response) -%}" + last + "{%- endmacro -%}" + TURNS


@dataclass
class _Translation:
    """One pass over a template.  Mutable.  `ends`: what stands behind .Response is left out.

    `_open`: the actions that are open, with the dot before each.
    """

    ends: bool = False
    out: list[str] = field(default_factory=lambda: ["{%- set v_ = namespace() -%}"])
    _open: list[tuple[str, str]] = field(default_factory=list)
    _dot: str = ""  # empty: the root
    _n: int = 0

    def run(self, source: str) -> str:
        end, trim = 0, False
        for n, found in enumerate(ACTION.finditer(source)):
            if n >= MAX_ACTIONS:
                raise UsageError("template: too many actions")
            text = source[end : found.start()]
            text = text.lstrip() if trim else text
            self._text(text.rstrip() if found[1] else text)
            end, trim = found.end(), bool(found[3])
            if self._action(found[2].strip()):
                while self._open:
                    self._close()
                return "".join(self.out)
        rest = source[end:]
        self._text(rest.lstrip() if trim else rest)
        if self._open:
            raise UsageError(f"template: a {{{{ {self._open[-1][0]} }}}} has no {{{{ end }}}}")
        return "".join(self.out)

    def _text(self, text: str) -> None:
        if text:
            self.out.append("{{ " + json.dumps(text, ensure_ascii=False) + " }}")

    def _action(self, action: str) -> bool:
        """Translates an action; True where the answer goes and nothing else is wanted."""
        if action.startswith("/*"):
            return False
        word, _, rest = action.partition(" ")
        if word in ("if", "with", "range"):
            self._begin(word, rest)
        elif action == "else" or action.startswith("else "):
            self._else(rest.strip())
        elif action == "end":
            if not self._open:
                raise UsageError("template: an {{ end }} too many")
            self._close()
        elif action in ("break", "continue"):
            self.out.append("{%- " + action + " -%}")
        elif word in ("define", "template", "block"):
            raise UsageError(f"template: {word} is not understood", hint="write it out")
        elif found := re.fullmatch(r"\$(\w+)\s*:?=\s*(.+)", action, re.DOTALL):
            self.out.append(f"{{%- set v_.{found[1]} = {self._expression(found[2])} -%}}")
        elif self.ends and re.search(r"(?<!\w)\$?\.Response\b", action):
            self.out.append("{{ Response }}")
            return True
        else:
            self.out.append("{{ go_(" + self._expression(action) + ") }}")
        return False

    def _begin(self, word: str, rest: str) -> None:
        self._open.append((word, self._dot))
        if word == "if":
            self.out.append(f"{{%- if {self._expression(rest)} -%}}")
            return
        self._n += 1
        dot, names = f"d{self._n}_", []
        if found := re.match(r"\s*\$(\w+)\s*(?:,\s*\$(\w+)\s*)?:=", rest):
            names, rest = [n for n in found.groups() if n], rest[found.end() :]
        inside = self._expression(rest)
        if word == "with":
            self.out.append(f"{{%- if {inside} -%}}{{%- set {dot} = {inside} -%}}")
            self.out += [f"{{%- set v_.{name} = {dot} -%}}" for name in names]
        else:
            self.out.append(f"{{%- set x{dot} = {inside} or [] -%}}{{%- for k{dot} in x{dot} -%}}")
            self.out.append(f"{{%- set {dot} = x{dot}[k{dot}] if x{dot} is mapping else k{dot} -%}}")
            if len(names) == 2:
                key = f"k{dot} if x{dot} is mapping else loop.index0"
                self.out.append(f"{{%- set v_.{names[0]} = {key} -%}}")
            self.out += [f"{{%- set v_.{name} = {dot} -%}}" for name in names[-1:]]
        self._dot = dot

    def _else(self, rest: str) -> None:
        if not self._open:
            raise UsageError("template: an {{ else }} without an {{ if }}")
        word, before = self._open[-1]
        if rest:
            if word != "if" or not rest.startswith("if "):
                raise UsageError(f"template: {{{{ else {rest[:40]} }}}} is not understood")
            self.out.append(f"{{%- elif {self._expression(rest[3:])} -%}}")
        else:
            self.out.append("{%- else -%}")
            self._dot = before

    def _close(self) -> None:
        word, self._dot = self._open.pop()
        self.out.append("{%- endfor -%}" if word == "range" else "{%- endif -%}")

    def _expression(self, text: str) -> str:
        reader = _Reader(_tokens(text), self._dot)
        made = reader.pipeline()
        if reader.at < len(reader.tokens):
            raise UsageError(f"template: {text[:60]!r} is not understood")
        return made


@dataclass
class _Reader:
    """Reads an expression.  Mutable."""

    tokens: list[tuple[str, str]]
    dot: str
    at: int = 0

    def pipeline(self) -> str:
        made = self._command("")
        while self._is("|"):
            self.at += 1
            made = self._command(made)
        return made

    def _command(self, piped: str) -> str:
        """A value, or a function with what follows it; `piped` is its last argument."""
        kind, text = self._next()
        if kind == "word" and text not in ("true", "false", "nil"):
            given = []
            while self.at < len(self.tokens) and not (self._is("|") or self._is(")")):
                given.append(self._operand(*self._next()))
            return _call(text, [*given, piped] if piped else given)
        return self._operand(kind, text)

    def _operand(self, kind: str, text: str) -> str:
        if text == "(":
            made = f"({self.pipeline()})"
            if not self._is(")"):
                raise UsageError("template: a ( has no )")
            self.at += 1
            if (
                self.at < len(self.tokens)
                and self.tokens[self.at][1].startswith(".")
                and self.tokens[self.at][1] != "."
            ):
                made += _fields(self._next()[1][1:].split("."))
            return made
        if kind == "text":
            return _string(text)
        if kind == "number":
            return text
        if kind == "path":
            return self._path(text)
        if text in ("true", "false", "nil"):
            return {"nil": "none"}.get(text, text)
        raise UsageError(
            f"template: the function {text[:40]!r} has no place here", hint="put it in parentheses"
        )

    def _path(self, text: str) -> str:
        head, *names = text.split(".")
        names = [n for n in names if n]
        if head.startswith("$") and len(head) > 1:
            return f"v_.{head[1:]}" + _fields(names)
        base = self.dot if not head else ""
        if base:
            return base + _fields(names)
        if not names:
            raise UsageError("template: the whole of what is given cannot be written out")
        if names[0] not in ROOTS:
            raise UsageError(
                f"template: .{names[0][:40]} is not understood", hint=f"it may use {', '.join(ROOTS)}"
            )
        return ROOTS[names[0]] + _fields(names[1:])

    def _next(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            raise UsageError("template: an action ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def _is(self, text: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] == ("mark", text)


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at, text = [], 0, text.strip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match or match.lastgroup is None:
            raise UsageError(f"template: {text[at : at + 40]!r} is not understood")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _string(text: str) -> str:
    """A string of Go's as one of Jinja's."""
    try:
        return json.dumps(text[1:-1] if text[0] == "`" else json.loads(text), ensure_ascii=False)
    except ValueError:
        raise UsageError(f"template: the string {text[:40]} is not understood") from None


def _fields(names: list[str]) -> str:
    return "".join(f"[{json.dumps(FIELDS.get(name, name))}]" for name in names)


def _call(name: str, given: list[str]) -> str:
    """A function of Go's, or of Ollama's, in Jinja."""
    n = len(given)
    if name == "eq" and n >= 2:
        return f"({given[0]} in [{', '.join(given[1:])}])"
    if name in COMPARE and n == 2:
        return f"({given[0]} {COMPARE[name]} {given[1]})"
    if name in ("and", "or") and n >= 1:
        return "(" + f" {name} ".join(given) + ")"
    if name == "not" and n == 1:
        return f"(not {given[0]})"
    if name == "len" and n == 1:
        return f"(({given[0]} or []) | length)"
    if name == "index" and n == 2:
        return f"({given[0]})[{given[1]}]"
    if name == "slice" and 1 <= n <= 3:
        return f"({given[0]})[{':'.join([*given[1:], ''][:2])}]"
    if name == "json" and n == 1:
        return f"({given[0]} | tojson)"
    if name in ("print", "html") and n == 1:
        return given[0]
    if name == "currentDate" and n == 0:
        return 'strftime_now("%Y-%m-%d")'
    raise UsageError(
        f"template: {name[:40]!r} with {n} values is not understood",
        hint="understood are eq, ne, lt, le, gt, ge, and, or, not, len, index, slice, json, currentDate",
    )
