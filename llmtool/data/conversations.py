"""The forms in which conversations are written down, read as one: a list of messages with a role each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError

Form = Literal["messages", "sharegpt", "alpaca", "prompt"]
Part = Literal[
    "messages", "system", "history", "tools", "instruction", "input", "output", "prompt", "completion"
]

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# What others call them (ShareGPT, https://github.com/lm-sys/FastChat, and those who followed).
NAMES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "function_call": "call",
    "observation": "tool", "tool": "tool", "function_response": "tool", "developer": "developer",
}  # fmt: skip
# The columns that a form can have: its own names first.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages", "conversation", "conversations", "dialog", "dialogue", "chat")},
    "sharegpt": {"messages": ("conversations", "conversation", "messages", "items")},
    "alpaca": {
        "instruction": ("instruction",),
        "output": ("output", "response", "answer", "completion"),
        "input": ("input", "context"),
        "history": ("history",),
    },
    "prompt": {
        "prompt": ("prompt", "question", "query", "problem"),
        "completion": ("completion", "response", "answer", "solution", "output"),
    },
}
BESIDE = {"system": ("system", "system_prompt"), "tools": ("tools",)}  # of every form
_HALF = re.compile("[\ud800-\udfff]")
OPTIONAL = ("input", "history", "system", "tools")


class BadConversation(Exception):
    """This row holds no conversation that can be learned from; the message is the reason."""


@dataclass(frozen=True)
class Layout:
    """A form, and the column of each of its parts. found: whether somebody looked for it."""

    form: str
    columns: dict[str, str]
    found: bool

    def describe(self) -> str:
        """For a person, with the columns that are read: `sharegpt (conversations, tools)`."""
        return f"{self.form} ({', '.join(self.columns.values())})"


def layout(form: str, named: Mapping[Any, str], available: Sequence[str]) -> Layout:
    """The form of a source with these columns, and which of them are read.

    form: "auto" looks for the first whose columns are there. named: the columns of some parts, as the user
    has named them. Raises ConfigError where a named column, or any form's, is not there.
    """
    for part, column in named.items():
        if column not in available:
            known = ", ".join(map(str, available[:20]))
            near = suggest(column, list(available))
            raise ConfigError(
                f"data.encode.columns.{part}: the data has no column {column!r}{near} (columns: {known})"
            )
    for name in COLUMNS if form == "auto" else [form]:
        columns = _columns(name, named, available)
        if columns is not None:
            return Layout(name, columns, found=form == "auto")
    known = ", ".join(map(str, available[:20]))
    if form != "auto":
        wanted = [
            f"{part} ({' or '.join(names)})" for part, names in COLUMNS[form].items() if part not in OPTIONAL
        ]
        raise ConfigError(
            f"data.encode.format: {form} needs the columns {', '.join(wanted)}; the data has {known}: name "
            "them in data.encode.columns"
        )
    raise ConfigError(
        f"data.encode.format: the columns ({known}) are those of no form that is known: messages; "
        "conversations; instruction, output; prompt, completion. Name them in data.encode.columns, for "
        "example {prompt: question, completion: answer}"
    )


def _columns(form: str, named: Mapping[Any, str], available: Sequence[str]) -> dict[str, str] | None:
    parts = COLUMNS[form] | BESIDE
    if any(part not in parts for part in named):
        return None
    found: dict[str, str] = {}
    for part, names in parts.items():
        column = named.get(part) or next((name for name in names if name in available), None)
        if column is not None and column not in found.values():
            found[part] = column
        elif part not in OPTIONAL:
            return None
    return found


def read(row: Mapping[str, Any], columns: Mapping[str, str], form: str) -> tuple[list[Message], Any]:
    """(messages, tools or None) of a row; columns: those of `layout`. Raises BadConversation.

    A message has `role` and `content`; one that calls functions has `calls`, as the data spells them; an
    answer may have `weight`: 0 where it is not to be learned.
    """
    cell = {part: row.get(column) for part, column in columns.items()}
    if form in ("messages", "sharegpt"):
        messages = _turns(cell["messages"], form)
    elif form == "alpaca":
        messages = [*_history(cell.get("history")), _turn("user", _instruction(cell))]
        messages.append(_turn("assistant", _text(cell["output"], "output")))
    else:
        messages = _spoken(cell["prompt"], "user") + _spoken(cell["completion"], "assistant")
    system = cell.get("system")
    if isinstance(system, str) and system.strip():
        messages.insert(0, _turn("system", system))
    _check(messages)
    return messages, _tools(cell.get("tools"))


def asked(messages: Any, tools: Any = None) -> tuple[list[Message], Any]:
    """(messages, tools or None) of a conversation that is to be answered, as `read` gives them of one that is
    learned. Raises BadConversation."""
    found = _turns(messages, "messages")
    refuse_text(found)
    return found, _tools(tools)


def _tools(cell: Any) -> Any:
    tools = _parsed(cell)
    if isinstance(tools, str):
        raise BadConversation("tools are not JSON")
    refuse_text(tools)
    return tools or None


def _turns(cell: Any, form: str) -> list[Message]:
    turns = _parsed(cell)
    if cell is None:
        raise BadConversation("no messages")
    if not isinstance(turns, list):
        raise BadConversation("messages are not a list")
    return [_message(turn, form) for turn in turns]


def _message(turn: Any, form: str) -> Message:
    if not isinstance(turn, dict):
        raise BadConversation("a turn is not an object")
    role = turn.get("role", turn.get("from"))
    keys = ("role", "content") if form == "messages" else ("from", "value")
    if not isinstance(role, str):
        raise BadConversation(f"a turn without {keys[0]}")
    name = NAMES.get(role.strip().lower())
    if name is None:
        raise BadConversation(f"unknown role {role[:30]!r}")
    content = turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None and not calls:
        raise BadConversation(f"a turn without {keys[1]}" if "content" not in turn else "an empty turn")
    if not isinstance(content, str | None):
        raise BadConversation("content that is not text")
    message = _turn("assistant" if name == "call" else name, content or "")
    if name == "call":
        message["calls"] = content
    elif calls:
        message["calls"] = calls
    for key in ("reasoning_content", "thinking", "name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    weight = turn.get("weight")
    if weight is not None and message["role"] == "assistant":
        if isinstance(weight, bool) or weight not in (0, 1):
            raise BadConversation("an answer whose weight is neither 0 (it is not learned) nor 1")
        message["weight"] = int(weight)
    return message


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _instruction(cell: Mapping[str, Any]) -> str:
    instruction, more = _text(cell["instruction"], "instruction"), cell.get("input")
    return f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction


def _history(cell: Any) -> list[Message]:
    pairs = _parsed(cell)
    if pairs is None or pairs == "":
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadConversation("history is not a list of pairs")
    texts = [_text(part, "history") for pair in pairs for part in pair]
    return [_turn(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]


def _spoken(cell: Any, role: str) -> list[Message]:
    """A prompt or completion: text, or (as JSON) a list of messages."""
    if isinstance(cell, str) and cell.lstrip().startswith('[{"'):
        turns = _parsed(cell)
        if isinstance(turns, list):
            return [_message(turn, "messages") for turn in turns]
    return [_turn(role, _text(cell, "prompt" if role == "user" else "completion"))]


def _text(value: Any, name: str) -> str:
    if value is None:
        raise BadConversation(f"{name} is missing")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadConversation(f"{name} is not text")
    return value


def _parsed(cell: Any) -> Any:
    """A nested value, which the sources hand over as its JSON text; text that is no JSON stays as it is."""
    if not isinstance(cell, str) or not cell.strip():
        return None if isinstance(cell, str) else cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _check(messages: list[Message]) -> None:
    """What no template should be asked for."""
    roles = [message["role"] for message in messages]
    systems = [at for at, role in enumerate(roles) if role in ("system", "developer")]
    if len(systems) > 1:
        raise BadConversation("two system turns")
    if systems and systems[0]:
        raise BadConversation("a system turn that is not the first")
    if "assistant" not in roles:
        raise BadConversation("no assistant turn")
    for message in messages:
        if not message["content"].strip() and not message.get("calls") and message["role"] != "tool":
            raise BadConversation("an empty turn")
        refuse_text(message)


def refuse_text(value: Any) -> None:
    """BadConversation for a text anywhere in it that no tokenizer can be given."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            refuse_text(item)
    elif isinstance(value, str):
        if "\0" in value:
            raise BadConversation("a NUL character")
        if not value.isascii() and _HALF.search(value):
            raise BadConversation("half a surrogate pair")


def prepared(messages: list[Message], calls: bool) -> list[Message]:
    """The messages as a template takes them.

    calls: whether it writes `tool_calls`; of one that does not, a call is the text that the data has for it.
    Raises BadConversation for a call that cannot be read.
    """
    made = []
    for message in messages:
        given = message.get("calls")
        message = {key: value for key, value in message.items() if key != "calls"}
        if given is not None and calls:
            message |= {
                "content": message["content"] if not isinstance(given, str) else "",
                "tool_calls": _calls(given),
            }
        elif given is not None and not message["content"]:
            message["content"] = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        made.append(message)
    return made


def _calls(given: Any) -> list[dict[str, Any]]:
    """Function calls as templates read them: [{id, "type": "function", "function": {name, arguments}}], the
    id where the data has one."""
    found = _parsed(given)
    if isinstance(found, str):
        raise BadConversation("a function call that is not JSON")
    calls = []
    for call in found if isinstance(found, list) else [found]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadConversation("a function call without a name")
        arguments = _parsed(function.get("arguments"))
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        function = {"name": function["name"], "arguments": arguments or {}}
        calls.append({**named, "type": "function", "function": function})
    return calls
