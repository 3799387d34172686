"""Chat templates: what they may do, what bounds them, and where one comes from."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from llmtool.core.errors import ConfigError
from llmtool.data.templates import (
    BUILT_IN,
    MAX_TEMPLATE,
    Template,
    TemplateError,
    find,
    hash_of,
    read_special,
)
from llmtool.data.tokenizers import BytesTokenizer

START = "{% set ns = namespace(x='xx') %}{% for i in range(99) %}"
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "hi <b>"},
    {"role": "assistant", "content": " yo "},
]
MACROS = "".join(
    f"{{% macro m{i}() %}}{{{{ m{i + 1}() }}}}{{{{ m{i + 1}() }}}}{{% endmacro %}}" for i in range(60)
)


def render(text: str, **special: str) -> str:
    return Template("t", text, special).render(CHAT)


def test_what_transformers_gives_is_there() -> None:
    assert render("{{ messages | tojson }}") == json.dumps(CHAT)
    assert render("{{ {'a': 'é<'} | tojson(indent=1) }}") == '{\n "a": "é<"\n}'
    assert (
        render("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}")
        == "user"
    )
    assert (
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
            "{{ ns.n }}"
        )
        == "2"
    )
    assert render("{{ bos_token }}|{{ eos_token }}|{{ tools is none }}", bos_token="<s>") == "<s>||True"
    assert render("   {% if true %}\nx\n   {% endif %}\n") == "x\n"
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert (
        render("{{ dict(a=1).a }}{{ range(3) | list | length }}{{ messages[::-1][0].role }}") == "13assistant"
    )
    assert (
        render("{{ '%s-%d' % ('a', 5) }}{{ '{:>3}'.format(1) }}{{ 'ab' * 2 }}{{ 2 ** 3 }}") == "a-5  1abab8"
    )
    assert (
        render("{% for k, v in messages[0].items() %}{{ loop.index }}{{ k }}{{ loop.length }}{% endfor %}")
        == "1role22content2"
    )


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ ('%s' | attr('__class__'))() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ lipsum(n=100000) }}",
    ],
)
def test_what_reaches_out_is_refused(text: str) -> None:
    written = ""
    with contextlib.suppress(TemplateError):
        written = render(text)
    assert written == ""  # what jinja2 will not show is nothing
    assert CHAT[0]["role"] == "user"
    assert len(CHAT) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 200000000 }}",
        "{{ 200000000 * 'x' }}",
        "{{ [1] * 10**9 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(x='x' * 8) %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x' * 8) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        START + "{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
        START + "{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
        START + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        START + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
)
def test_what_runs_away_ends(text: str) -> None:
    with pytest.raises(TemplateError):
        render(text)


def test_calls_that_double_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtool.data.templates.MAX_STEPS", 20_000)
    with pytest.raises(TemplateError, match="does not come to an end"):
        render(MACROS + "{% macro m60() %}x{% endmacro %}{{ m0() }}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("a\n{% foo %}", "line 2: Encountered unknown tag"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "no usable template"),
        ("x" * (MAX_TEMPLATE + 1), "at most 1,000,000"),
    ],
)
def test_what_is_no_template(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template("mine.jinja", text, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{{ x.y }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for m in 5 %}{% endfor %}", "not iterable"),
    ],
)
def test_a_template_that_fails_says_why(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(text)


def test_the_model_s_own_template_is_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    with pytest.raises(
        ConfigError, match=r"auto takes the model's own template, but .* has none; name one \(chatml"
    ):
        find("auto", tmp_path)
    with pytest.raises(ConfigError, match="a tokenizer that is made here has none"):
        find("auto", None)
    config.write_text(json.dumps({"chat_template": "one"}))
    assert find("auto", tmp_path) == ("of tokenizer_config.json", "one")
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert find("auto", tmp_path)[1] == "usual"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert find("auto", tmp_path) == ("chat_template.jinja", "file")
    assert find("chatml", tmp_path) == ("chatml", BUILT_IN["chatml"])
    (tmp_path / "my.jinja").write_text("mine")
    assert find(str(tmp_path / "my.jinja"), None) == ("my.jinja", "mine")
    with pytest.raises(ConfigError, match=r"chatlm: no such file \(choices: auto, chatml"):
        find("chatlm", None)
    (tmp_path / "my.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid utf-8"):
        find(str(tmp_path / "my.jinja"), None)


def test_a_template_knows_the_end_whether_it_is_named_or_not(tmp_path: Path) -> None:
    made = BytesTokenizer().fit(lambda: iter(()))
    assert read_special(None, made) == read_special(tmp_path, made) == {"eos_token": "<|endoftext|>"}
    config = {"eos_token": {"content": "<e>", "lstrip": False}, "bos_token": "<b>", "image_token": "<i>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_special(tmp_path, made) == {"bos_token": "<b>", "eos_token": "<e>"}


def test_the_hash_names_the_text() -> None:
    assert (
        Template("a", "x", {}).hash
        == Template("b", "x", {"eos_token": "</s>"}).hash
        == hash_of("x")
        != hash_of("y")
    )


def test_marks_pass_through_json() -> None:
    template = Template("t", "{{ x }}{{ messages[0].content | tojson }}", {})
    for text, written in (
        ("a\0(b\0)", '"a\0(b\0)"'),
        ("\\u0000(", '"\\\\u0000("'),
        ("\\\0(", '"\\\\\0("'),
        ('"\n\0p', '"\\"\\n\0p"'),
    ):
        assert template.render([{"role": "user", "content": text}]) == written
