"""Chat templates: what Hugging Face's may use works; what hostile ones try ends in an error, in time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvasir.chat import Message, ToolCall
from kvasir.errors import CheckpointError, KvasirError, ModelError, UsageError
from kvasir.text.template import ChatTemplate, select_template, template_from_folder

HI = [Message("user", "hi")]


def render(source: str, messages: list[Message] = HI, **options: object) -> str:
    template = ChatTemplate(source, "<s>", "</s>")
    try:
        return template.render(messages, **options)  # type: ignore[arg-type]
    finally:
        template.close()


def test_what_templates_expect() -> None:
    source = (
        "{{ bos_token }}\n{%- for m in messages %}\n    {%- if loop.index0 == 2 %}{% break %}{% endif %}\n"
        "  {% generation %}{{ m.role + ':' + m['content'] | trim }};{% endgeneration %}\n{%- endfor %}"
        "{{ {'ü': [1, '<b>']} | tojson }}{{ [1] | tojson(indent=2) }}{{ strftime_now('%Y')|length }}"
        "{% if add_generation_prompt %}>{% endif %}{{ enable_thinking }}{{ tools is none }}{{ eos_token }}"
    )
    got = render(
        source, [Message("user", " a "), Message("assistant", "b"), Message("user", "c")], think=False
    )
    assert got == '<s>user:a;assistant:b;{"ü": [1, "<b>"]}[\n  1\n]4>FalseTrue</s>'


def test_messages_as_templates_read_them() -> None:
    call = ToolCall("f", {"b": 1, "a": "ü"}, "id1")
    messages = [
        Message("assistant", "", "why", (call,)),
        Message("tool", "42", tool_name="f", tool_call_id="id1"),
    ]
    source = "{{ messages | tojson }}|{{ tools | tojson }}|{{ reasoning_effort }}"
    assert render(source, messages, tools=[{"type": "function"}], think="high") == (
        '[{"role": "assistant", "content": "", "reasoning_content": "why", "thinking": "why", "tool_calls": '
        '[{"type": "function", "id": "id1", "function": {"name": "f", "arguments": {"b": 1, "a": "ü"}}}]}, '
        '{"role": "tool", "content": "42", "name": "f", "tool_call_id": "id1"}]|[{"type": "function"}]|high'
    )


def test_what_a_model_supports() -> None:
    template = ChatTemplate("{% if tools %}{% endif %}{{ enable_thinking }}")
    assert template.supports_tools and template.supports_thinking and not template.supports_system
    plain = ChatTemplate("{% if messages[0].role == 'system' %}{% endif %}")
    assert plain.supports_system and not plain.supports_tools and not plain.supports_thinking


def test_errors_are_whose_they_are() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ModelError, match="line 2"):
        render("\n{% if %}")
    with pytest.raises(ModelError, match="'x' is undefined"):
        render("{{ x.y }}")
    with pytest.raises(ModelError, match="bytes"):
        render("x" * (1 << 21))


@pytest.mark.parametrize("name", ["tokenize", "documents", "chat_template", "raise_exception", "unused"])
def test_a_request_sets_only_what_the_template_uses(name: str) -> None:
    template = ChatTemplate("{{ colour }} {{ messages|length }} {{ tokenize }}")
    with pytest.raises(UsageError, match=name):
        template.render(HI, **{"colour": "red", name: True})
    if name == "unused":
        assert template.render(HI, colour="red") == "red 1 "
    template.close()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}",
    "{{ lipsum.__globals__['os'].system('touch pwned') }}",
    "{{ self._TemplateReference__context }}{{ joiner.__init__.__globals__ }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}{{ ''|attr('__class__') }}",
    "{{ ''|attr('__self__') }}{{ ('%c'|format(95)*2 ~ 'class' ~ '__') and ''['__class__'].mro }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ ['{0.__class__}']|map('format', messages)|list }}{{ raise_exception.__globals__['sys'] }}",
    "{{ strftime_now.__globals__['sys'].modules['os'].system('touch pwned') }}",
    "{{ messages.append({}) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_escape(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        text = render(source)
    except ModelError as error:
        text = str(error)
    assert "subclasses" not in text and "<module" not in text and "root:" not in text
    assert "0x" not in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


BOMBS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 9**9**9 }}",
    "{{ 9**(9**9) }}",
    "{% if 9**(9**9) %}{% endif %}",
    "{{ 'a' * 10**11 }}",
    "{{ [0] * 10**11 }}",
    "{{ 'a'.ljust(10**11) }}",
    "{{ '%0100000000000d' % 1 }}",
    "{{ '{:0100000000000d}'.format(1) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "{{ range(99999)|list|batch(1)|list|string * 100 }}",
    "{{ ([99999]*99999)|map('string')|join|sort|list|tojson(indent=99999) }}",
    "{{ 'a'|center(99999999999) }}",
    "(" * 500_000,
    "{{ " + "(" * 300_000 + "1" + ")" * 300_000 + " }}",
    "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "{% if 1 %}" * 20_000,
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_bombs_end_in_time_and_memory(source: str) -> None:
    template = ChatTemplate(source)
    template.warm()
    start = time.perf_counter()
    try:
        assert len(template.render(HI)) < (2 << 20)
    except ModelError as error:
        assert len(str(error)) < 1000
    finally:
        template.close()
    assert time.perf_counter() - start < 15  # 2 s once the process has started; this machine may be busy


def test_after_a_bomb_the_next_rendering_works() -> None:
    template = ChatTemplate("{% if messages[0].content == 'x' %}{{ 'a' * 10**11 ~ 9**(9**9) }}{% endif %}ok")
    with pytest.raises(ModelError):
        template.render([Message("user", "x")])
    slow = ChatTemplate("{% if messages[0].content == 'x' %}{{ 9**(9**9) }}{% endif %}ok")
    with pytest.raises(ModelError, match="took over"):
        slow.render([Message("user", "x")])
    assert template.render(HI) == slow.render(HI) == "ok"
    template.close()
    slow.close()


def test_the_process_sees_no_secrets_and_ends_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    template = ChatTemplate("ok")
    assert template.render(HI) == "ok"
    worker = template._worker
    assert worker is not None
    pid = worker._process.pid
    environ = Path(f"/proc/{pid}/environ")
    if environ.exists():
        assert b"SECRET_TOKEN" not in environ.read_bytes()
    del worker, template
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_bad_messages() -> None:
    template = ChatTemplate("{{ messages|tojson }}")
    for bad in (float("nan"), {1, 2}, b"x"):
        with pytest.raises(UsageError):
            template.render([Message("assistant", "", tool_calls=(ToolCall("f", {"a": bad}),))])
    assert template.render([Message("user", "\ud800")]).count("\ud800") + 1
    template.close()


def test_long_messages_pass() -> None:
    assert (
        len(render("{% for m in messages %}{{ m.content }}{% endfor %}", [Message("user", "é" * 3_000_000)]))
        == 3_000_000
    )


def test_which_template() -> None:
    assert select_template("a") == "a"
    both = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    assert select_template(both) == "d" and select_template(both, has_tools=True) == "t"
    assert select_template({"default": "d"}, has_tools=True) == "d"
    for none in (None, "", [], {}, 3, [{"name": "rag", "template": "r"}], [None]):
        with pytest.raises(ModelError, match="no chat template"):
            select_template(none)


def folders() -> Iterator[tuple[dict[str, str], str | type[KvasirError]]]:
    yield {}, ModelError
    yield {"tokenizer_config.json": '{"chat_template": "a"}'}, "a"
    yield {"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "a"}]}'}, "a"
    yield {"tokenizer_config.json": '{"chat_template": "a"}', "chat_template.jinja": "b"}, "b"
    yield {"tokenizer_config.json": "{}", "chat_template.json": '{"chat_template": "c"}'}, "c"
    yield {"tokenizer_config.json": "{"}, CheckpointError
    yield {"tokenizer_config.json": "[]"}, ModelError
    yield {"chat_template.jinja": "x" * (1 << 21)}, CheckpointError


@pytest.mark.parametrize(("files", "wanted"), list(folders()))
def test_template_of_a_folder(files: dict[str, str], wanted: str | type[KvasirError], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if isinstance(wanted, str):
        assert template_from_folder(tmp_path) == wanted
    else:
        with pytest.raises(wanted):
            template_from_folder(tmp_path)


def test_a_source_that_does_not_compile_says_so_every_time() -> None:
    template = ChatTemplate("{% if %}")
    for _ in range(3):
        with pytest.raises(ModelError, match="line 1"):
            template.render(HI)
    template.close()
