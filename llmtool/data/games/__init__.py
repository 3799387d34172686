"""The games that records are read of: each one's rules, by the name that `game:` gives it."""

from __future__ import annotations

from typing import Any, Literal, get_args

from llmtool.data.games.chess import Chess
from llmtool.data.games.othello import Othello
from llmtool.data.games.rules import Rules

Game = Literal["othello", "chess"]

_RULES: dict[str, Rules[Any]] = {"othello": Othello(), "chess": Chess()}
assert set(_RULES) == set(get_args(Game)), "every game has rules"


def rules_of(game: str) -> Rules[Any]:
    """The rules of a game."""
    return _RULES[game]
