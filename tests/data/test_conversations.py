"""The forms of conversations, read as one, and what is wrong with those that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtool.core.errors import ConfigError
from llmtool.data.conversations import BadConversation, layout, prepared, read

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def turns(*pairs: tuple[str, Any], keys: tuple[str, str] = ("role", "content")) -> str:
    return json.dumps([dict(zip(keys, pair, strict=True)) for pair in pairs])


def through(row: dict[str, Any], form: str = "auto", **named: str) -> tuple[list[dict[str, Any]], Any]:
    found = layout(form, named, list(row))
    return read(row, found.columns, found.form)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": turns(("user", "q"), ("assistant", "a"))}, "messages"),
        (
            {"id": "1", "conversations": turns(("human", "q"), ("gpt", "a"), keys=("from", "value"))},
            "messages",
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": None, "output": "a", "system": " "}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt"),
        ({"question": "q", "answer": "a"}, "prompt"),
        ({"prompt": turns(("user", "q")), "completion": turns(("assistant", "a"))}, "prompt"),
    ],
)
def test_every_form_is_found_and_read(row: dict[str, Any], form: str) -> None:
    assert layout("auto", {}, list(row)).form == form
    assert through(row) == ([QUESTION, ANSWER], None)


def test_parts_beside_the_question() -> None:
    row = {
        "instruction": "q", "input": "more", "output": 7, "system": "be kind",
        "history": json.dumps([["one", "two"], ["three", "four"]]), "tools": json.dumps([{"name": "f"}]),
    }  # fmt: skip
    messages, tools = through(row)
    assert [message["content"] for message in messages] == [
        "be kind",
        "one",
        "two",
        "three",
        "four",
        "q\n\nmore",
        "7",
    ]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3]
    assert tools == [{"name": "f"}]


def test_columns_that_the_user_names() -> None:
    assert through({"frage": "q", "antwort": "a"}, prompt="frage", completion="antwort")[0] == [
        QUESTION,
        ANSWER,
    ]
    found = layout("auto", {"messages": "talk"}, ["talk", "output", "instruction"])
    assert (found.form, found.columns) == ("messages", {"messages": "talk"})
    with pytest.raises(
        ConfigError, match=r'columns.prompt: the data has no column \'fragen\'; did you mean "frage"'
    ):
        layout("prompt", {"prompt": "fragen"}, ["frage", "antwort"])
    with pytest.raises(ConfigError, match=r"alpaca needs the columns instruction .*the data has text"):
        layout("alpaca", {}, ["text"])
    with pytest.raises(ConfigError, match=r"the columns \(text, label\) are those of no form"):
        layout("auto", {}, ["text", "label"])


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("user", "q"), ("wizard", "a")], "unknown role 'wizard'"),
        ([("user", "q"), ("assistant", " \n")], "an empty turn"),
        ([("user", "q"), ("assistant", None)], "an empty turn"),
        ([("system", "a"), ("system", "b"), ("user", "q"), ("assistant", "a")], "two system turns"),
        ([("user", "q"), ("system", "b"), ("assistant", "a")], "a system turn that is not the first"),
        ([("user", "q")], "no assistant turn"),
        ([], "no assistant turn"),
        ([("user", "q"), ("assistant", "a\0b")], "a NUL character"),
        ([("user", "q"), ("assistant", "a\ud800b")], "half a surrogate pair"),
        ([("user", [{"type": "image"}]), ("assistant", "a")], "content that is not text"),
        ([("user", 5), ("assistant", "a")], "content that is not text"),
        ([(5, "q"), ("assistant", "a")], "a turn without role"),
    ],
)
def test_what_holds_no_conversation(pairs: list[tuple[str, Any]], reason: str) -> None:
    with pytest.raises(BadConversation, match=reason):
        through({"messages": turns(*pairs)})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "no messages"),
        ({"messages": "[{"}, "messages are not a list"),
        ({"messages": '{"role": "user"}'}, "messages are not a list"),
        ({"messages": '["a"]'}, "a turn is not an object"),
        ({"messages": "[" * 5000}, "messages are not a list"),
        ({"prompt": "q", "completion": None}, "completion is missing"),
        ({"instruction": True, "output": "a"}, "instruction is not text"),
        ({"instruction": "q", "output": "a", "history": '[["x"]]'}, "history is not a list of pairs"),
        ({"messages": turns(("user", "q"), ("assistant", "a")), "tools": "{"}, "tools are not JSON"),
    ],
)
def test_cells_that_are_something_else(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadConversation, match=reason):
        through(row)


def test_calls_of_functions() -> None:
    call = json.dumps({"name": "f", "arguments": {"x": 1}})
    pairs = [("human", "q"), ("function_call", call), ("observation", "5"), ("gpt", "a")]
    messages, _ = through({"conversations": turns(*pairs, keys=("from", "value"))})
    plain = prepared(messages, calls=False)
    assert [message["role"] for message in plain] == ["user", "assistant", "tool", "assistant"]
    assert plain[1] == {"role": "assistant", "content": call}
    written = prepared(messages, calls=True)[1]
    assert written["content"] == ""
    assert written["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    openai = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": written["tool_calls"]},
    ]
    again, _ = through({"messages": json.dumps(openai)})
    assert prepared(again, calls=True)[1]["tool_calls"] == written["tool_calls"]
    assert json.loads(prepared(again, calls=False)[1]["content"]) == written["tool_calls"]
    for bad, reason in (
        ("not json", "that is not JSON"),
        ('{"arguments": {}}', "without a name"),
        ("[5]", "without a name"),
    ):
        broken, _ = through(
            {"conversations": turns(("human", "q"), ("function_call", bad), keys=("from", "value"))}
        )
        with pytest.raises(BadConversation, match=reason):
            prepared(broken, calls=True)


def test_calls_and_what_came_of_them_keep_their_id() -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    given = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "abcdefghi", "name": "f"},
        ANSWER,
    ]
    messages = prepared(through({"messages": json.dumps(given)})[0], calls=True)
    assert messages == [given[0], given[1] | {"content": ""}, *given[2:]]


@pytest.mark.parametrize("weight", [2, -1, 0.5, "0", True, [0]])
def test_an_answer_is_learned_or_not(weight: Any) -> None:
    told = [{**QUESTION, "weight": 5}, {**ANSWER, "weight": 0.0}, QUESTION, {**ANSWER, "weight": None}]
    messages, _ = through({"messages": json.dumps(told)})
    assert messages == [QUESTION, {**ANSWER, "weight": 0}, QUESTION, ANSWER]
    with pytest.raises(BadConversation, match="whose weight is neither 0"):
        through({"messages": json.dumps([QUESTION, {**ANSWER, "weight": weight}])})
