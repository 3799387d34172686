"""The YAML reader: every error at once, with its place; YAML's traps closed; hostile files refused."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from llmtool.core import config
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError


class Mlp(Section):
    family: Literal["mlp"]
    hidden: list[int] = Field([64])
    rate: float = 0.1


class Gpt(Section):
    family: Literal["gpt"]
    depth: int
    kind_: Literal["small", "large"] = Field("small", alias="as")


class Inner(Section):
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> Inner:
        if self.low > self.high:
            raise ValueError("low must not exceed high")
        return self


class Top(Section):
    run: str = "r"
    model: Annotated[Mlp | Gpt, Field(discriminator="family")] | None = None
    path: str | list[str] = "x"
    steps: list[Inner] = Field([])
    inner: Inner = Inner()


def load(text: str, *overrides: str) -> Top:
    document = config.parse(text, "c.yaml")
    for override in overrides:
        config._override(document, override)
    return config.validate(document, Top)


def errors(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


def test_all_errors_at_once_in_file_order_with_places_and_suggestions() -> None:
    text = "model:\n  family: mlp\n  hiden: [3]\n  hidden: [a, 2]\n  rate: fast\nrunn: 3\npath: {}\n"
    assert errors(text) == [
        'c.yaml:3:3: model.hiden: unknown key; did you mean "hidden"? (known here: family, hidden, rate)',
        "c.yaml:4:12: model.hidden.0: expected a whole number (got 'a')",
        "c.yaml:5:3: model.rate: expected a number (got 'fast')",
        'c.yaml:6:1: runn: unknown key; did you mean "run"? (known here: run, model, path, steps, inner)',
        "c.yaml:7:1: path: expected text (quote it if it looks like a number) or a list (got a section)",
    ]


def test_wrong_choice_names_the_choices_and_the_nearest() -> None:
    assert errors("model: {family: mpl}") == [
        "c.yaml:1:9: model.family: 'mpl' is not a choice; did you mean \"mlp\"? (choices: mlp, gpt)"
    ]
    assert errors("model: {family: gpt, depth: 2, as: smal}") == [
        "c.yaml:1:32: model.as: 'smal' is not a choice; did you mean \"small\"? (choices: small, large)"
    ]


def test_a_key_of_another_member_of_the_union_is_unknown_here() -> None:
    (line,) = errors("model: {family: gpt, depth: 2, hidden: [3]}")
    assert line.startswith("c.yaml:1:32: model.hidden: unknown key")
    assert "known here: family, depth, as" in line


def test_missing_keys_and_validators_name_their_section() -> None:
    assert errors("model: {family: gpt}") == ["c.yaml:1:1: model.depth: this key is needed"]
    assert errors("steps: [{low: 1}, {low: 4, high: 2}]") == [
        "c.yaml:1:20: steps.1.low: low must not exceed high"
    ]
    assert errors("model: {hidden: [3]}") == ["c.yaml:1:1: model: needs the key 'family' (choices: mlp, gpt)"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3e4", 3e4), ("12e03", 12e3), ("-.5", -0.5), ("1.", 1.0), ("010", 10),
        ("0x1F", 31), ("0o17", 15),
        ("no", "no"), ("on", "on"), ("off", "off"), ("true", True), ("False", False), ("~", None),
        ("null", None),
        ("1:30", "1:30"), ("2024-01-02", "2024-01-02"), ("1_000", "1_000"), (".inf", float("inf")),
        ("NaN", "NaN"),
        ("0b1", "0b1"), ("+7", 7), ("e5", "e5"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = config.scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_stay_text_and_odd_keys_are_text() -> None:
    assert config.parse("a: '1e-4'\nno: \"true\"\n1: x", "c").data == {"a": "1e-4", "no": "true", "1": "x"}


def test_nothing_is_converted() -> None:
    assert errors("run: 3")[0].endswith("run: expected text (quote it if it looks like a number) (got 3)")
    assert errors("inner: {low: 1.5}")[0].endswith("expected a whole number (got 1.5)")
    assert errors("inner: {low: '1'}")[0].endswith("expected a whole number (got '1')")
    assert errors("inner: {low: true}")[0].endswith("expected a whole number (got True)")
    assert load("model: {family: mlp, rate: 1}").model == Mlp(family="mlp", rate=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nrun: b\n", "c.yaml:2:1: run: this key stands twice (first at c.yaml:1:1)"),
        (
            "run: &a [*a]\n",
            "c.yaml:1:6: anchors and aliases (& and *) are not supported; write the value out",
        ),
        ("run: !!python/object/apply:os.system [id]\n", "c.yaml:1:6: tags are not supported"),
        ("run: !x y\n", "c.yaml:1:6: tags are not supported"),
        ("", "c.yaml: the file is empty"),
        ("# only a comment\n", "c.yaml: the file is empty"),
        ("- a\n", "c.yaml:1:1: expected a mapping"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: but found another document"),
        ("run: [a\n", "c.yaml:2:1: did not find expected"),
        ("run: a\n\tpath: b\n", "c.yaml:2:1:"),
        ("? [a, b]\n: c\n", "c.yaml:1:3: the file: a key must be a plain word"),
        ("run: a\0b\n", "c.yaml: "),
        (f"run: {'9' * 5000}\n", "c.yaml:1:1: run: a number of 5000 digits"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    assert errors(text)[0].startswith(message)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "bomb", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a:\n" + " - [x]\n" * 60_000]
)
def test_bombs_end_with_a_place(bomb: str) -> None:
    assert errors(bomb)[0].startswith("c.yaml:")


@pytest.mark.parametrize("name", ["missing.yaml", "", "folder", "latin.yaml", "huge.yaml", "a\0b"])
def test_unreadable_files(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.yaml").write_bytes("run: é".encode("latin-1"))
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError):
        config.load(name, [], Top)


def test_bom_and_crlf_are_read(tmp_path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfrun: a\r\npath: b\r\n")
    top, document = config.load(str(tmp_path / "c.yaml"), [], Top)
    assert (top.run, top.path) == ("a", "b")
    assert document.place("path").endswith("c.yaml:2:1")


def test_overrides_make_replace_and_index() -> None:
    top = load(
        "steps: [{low: 1}]", "steps.0.high=5", "inner.low=1", "model={family: mlp, rate: 1e-4}", "path=[a, b]"
    )
    assert top.steps == [Inner(low=1, high=5)]
    assert top.inner == Inner(low=1)
    assert top.model == Mlp(family="mlp", rate=1e-4)
    assert top.path == ["a", "b"]


def test_digits_in_a_key_are_a_number_in_a_list_alone(tmp_path) -> None:
    (path := tmp_path / "c.yaml").write_text("weights: {'01': 1}\nsteps: [{low: 1}]\n")
    document = config.read(str(path), ["weights.01=3", "weights.007=4", "weights.²=5", "steps.00.low=6"])
    assert document.data == {"weights": {"01": 3, "007": 4, "²": 5}, "steps": [{"low": 6}]}
    assert document.place("weights.01") == "--set weights.01=3"
    assert document.marks["steps", 0, "low"] == "--set steps.00.low=6"
    assert document.path("steps.0.low") == ("steps", 0, "low")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run", "--set run: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("a..b=3", "--set a..b=3: expected section.key=value"),
        ("run.x=3", "--set run.x=3: run is 'a', not a section"),
        ("steps.3.low=1", "--set steps.3.low=1: steps is a list of 0; 3 is no place in it"),
        ("steps.²=1", "--set steps.²=1: steps is a list of 0; ² is no place in it"),
        ("inner.lw=3", '--set inner.lw=3: inner.lw: unknown key; did you mean "low"?'),
        ("inner.low=x", "--set inner.low=x: inner.low: expected a whole number (got 'x')"),
        ("path=[a", "--set path=[a:2:1: did not find"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    assert errors("run: a\nsteps: []", override)[0].startswith(message)


def test_place_falls_back_to_the_section_around() -> None:
    document = config.parse("inner:\n  low: 3\n", "c.yaml")
    assert document.place("inner.low") == "c.yaml:2:3"
    assert document.place("inner.high") == "c.yaml:1:1"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("abrun:[]{}-,'\"&*!#|>\n\t 01e.?%@`é\x00\ud800"), max_size=60))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    with contextlib.suppress(ConfigError):  # anything else is a traceback for the user
        load(text)


def test_a_stream_is_read_once_and_kept():
    reader, writer = os.pipe()
    os.write(writer, b"family: mlp\n")
    os.close(writer)
    path = f"/dev/fd/{reader}"
    try:
        for _ in range(2):
            assert config.load(path, ["rate=0.5"], Mlp)[0] == Mlp(family="mlp", rate=0.5)
        with pytest.raises(ConfigError, match="other processes read the configuration too"):
            config.need_file(path)
    finally:
        config._piped.cache_clear()
        os.close(reader)
    config.need_file("dev/stdin")


def test_a_stream_without_an_end_is_no_configuration(monkeypatch):
    with open("/dev/zero") as zero:
        monkeypatch.setattr("sys.stdin", zero)
        with pytest.raises(ConfigError, match="-: 1,000,001 bytes; a configuration has at most 1,000,000"):
            config.read("-")
    config._piped.cache_clear()
