"""Go's templates in Jinja: what Ollama's library writes, rendered."""

from __future__ import annotations

import pytest

from kvasir.chat import Message, ToolCall
from kvasir.errors import UsageError
from kvasir.text.gotemplate import is_go, jinja_of
from kvasir.text.template import ChatTemplate

TURNS = [Message("system", "S"), Message("user", "u1"), Message("assistant", "a1"), Message("user", "u2")]
TOOL = {"type": "function", "function": {"name": "now", "description": "the time"}}


def rendered(source: str, messages: list[Message], tools=(), think=None) -> str:
    template = ChatTemplate(jinja_of(source))
    try:
        return template.render(messages, tools=tools, think=think)
    finally:
        template.close()


def test_a_template_of_three_variables_is_written_once_a_turn() -> None:
    source = (
        "{{ if .System }}<|system|>\n{{ .System }}{{ end }}{{ if .Prompt }}<|user|>\n{{ .Prompt }}{{ end }}"
        "<|bot|>\n{{ .Response }}<|end|>\n"
    )
    assert rendered(source, TURNS) == ("<|system|>\nS<|user|>\nu1<|bot|>\na1<|end|>\n<|user|>\nu2<|bot|>\n")
    assert rendered(source, TURNS[1:2]) == "<|user|>\nu1<|bot|>\n"


def test_a_template_over_messages_with_tools() -> None:
    source = """{{- if or .System .Tools }}<sys>{{ .System }}
{{- if .Tools }} tools:
{{- range .Tools }} {{ .Function.Name }}={{ json .Function }}{{ end }}
{{- end }}</sys>
{{ end }}
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq $m.Role "user" }}<user {{ $i }}>{{ .Content }}</user>
{{- else if eq .Role "assistant" "model" }}<bot>{{ .Content }}
{{- range .ToolCalls }}<call>{{ .Function.Name }}{{ .Function.Arguments }}</call>{{ end }}</bot>
{{- else if eq .Role "tool" }}<tool>{{ .Content }}</tool>
{{- end }}
{{- if and $last (ne .Role "assistant") }}<bot>{{ end }}
{{- end }}"""
    call = Message("assistant", "", tool_calls=(ToolCall("now", {"zone": "UTC"}),))
    got = rendered(source, [*TURNS, call, Message("tool", "12:00")], [TOOL])
    assert got == (
        '<sys>S tools: now={"name": "now", "description": "the time"}</sys>\n'
        "<user 1>u1</user><bot>a1</bot><user 3>u2</user>"
        '<bot><call>now{"zone": "UTC"}</call></bot><tool>12:00</tool><bot>'
    )


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ .Prompt }} é{% x %}{# y #}😀 \\n", "u2 é{% x %}{# y #}😀 \\n"),
        ("a  {{- .Prompt -}}  b{{ .Response }}c", "au2b"),
        ("{{/* nothing */}}{{ .Prompt }}", "u2"),
        ('{{ if .System }}no{{ else if eq .Prompt "u2" }}yes{{ end }}{{ .Response }}', "yes"),
        ("{{ with .Prompt }}<{{ . }}>{{ else }}none{{ end }}{{ .Response }}", "<u2>"),
        ("{{ $p := .Prompt }}{{ $p }}{{ $p = `x` }}{{ $p }}{{ .Response }}", "u2x"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}{{ break }}{{ end }}{{ .Content }}{{ end }}', ""),
        ("{{ (index .Messages 0).Content }}{{ len .Messages }}{{ .Messages | len }}", "u211"),
        ("{{ range .Tools }}tool{{ else }}no tools{{ end }}{{ range .Messages }}{{ end }}", "no tools"),
        ("{{ if .Think }}think{{ else }}quick{{ end }}{{ .Prompt }}{{ .Response }}", "quicku2"),
    ],
)
def test_the_language(source: str, want: str) -> None:
    assert rendered(source, [Message("user", "u2")]) == want


def test_thinking() -> None:
    source = "{{ if and .IsThinkSet (not .Think) }}/no_think {{ end }}{{ .Prompt }}{{ .Response }}"
    assert rendered(source, TURNS[1:2]) == "u1"
    assert rendered(source, TURNS[1:2], think=False) == "/no_think u1"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ .Nothing }}", ".Nothing is not understood"),
        ("{{ if .Prompt }}x", "has no {{ end }}"),
        ("{{ .Prompt }}{{ end }}", "{{ end }} too many"),
        ("{{ .Prompt }}{{ else }}", "without an {{ if }}"),
        ("{{ .Prompt }}{{ printf .Prompt }}", "'printf' with 1 values"),
        ("{{ .Prompt }}{{ template .Prompt }}", "template is not understood"),
        ("{{ .Prompt }}{{ eq (.Prompt }}", "a ( has no )"),
        ("{{ .Prompt }}{{ }}", "ends too early"),
        ("{{ .Prompt }}{{ ' }}", "is not understood"),
        ('{{ .Prompt }}{{ eq .Prompt "\\z" }}', "the string"),
        ("{{ .Prompt }}" * 3000, "too many actions"),
    ],
)
def test_what_is_not_understood_is_refused(source: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        jinja_of(source)
    assert says in str(caught.value)


def test_jinja_stays_as_it_is() -> None:
    for source in (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0]['content'] }}",
        "{{ bos_token }}",
        "plain",
        "",
    ):
        assert not is_go(source) and jinja_of(source) == source
