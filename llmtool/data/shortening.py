"""What becomes of conversations that are too long: whole exchanges only, each answer with its end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from llmtool.data.conversations import Message
from llmtool.data.rendering import Rendered, Renderer


def cut(renderer: Renderer, messages: list[Message], tools: Any, limit: int) -> list[Rendered]:
    """The conversation up to the last answer with which it has at most `limit` tokens; empty if none does."""
    ends = [at + 1 for at, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
    for end in reversed(ends):
        rendered = renderer.render(messages[:end], tools)
        if len(rendered.ids) <= limit:
            return [rendered]
    return []


def split(renderer: Renderer, messages: list[Message], tools: Any, limit: int) -> tuple[list[Rendered], int]:
    """The conversation in parts of at most `limit` tokens, and how many exchanges were left out that alone
    are too long.

    An exchange begins with a user's turn that follows an answer. Each part begins with the system's turn.
    """
    system = [message for message in messages[:1] if message["role"] in ("system", "developer")]
    roles = [message["role"] for message in messages]
    first = len(system)
    borders = [
        at for at in range(first + 1, len(roles)) if roles[at] == "user" and roles[at - 1] == "assistant"
    ]
    edges = [first, *borders, len(messages)]
    exchanges = [messages[a:b] for a, b in pairwise(edges)]
    exchanges = [part for part in exchanges if any(message["role"] == "assistant" for message in part)]
    parts: list[Rendered] = []
    left_out = 0
    held: list[Message] = []  # the exchanges of the part at hand
    fitting: Rendered | None = None
    for exchange in exchanges:
        longer = renderer.render([*system, *held, *exchange], tools)
        if len(longer.ids) > limit and fitting is not None:  # a new part begins
            parts.append(fitting)
            held = []
            longer = renderer.render([*system, *exchange], tools)
        if len(longer.ids) > limit:
            left_out, fitting = left_out + 1, None
        else:
            held, fitting = [*held, *exchange], longer
    return [*parts, *([fitting] if fitting is not None else [])], left_out
