"""Legal moves at every position: as the rules say one by one, for the same games always."""

from __future__ import annotations

import numpy as np
import pytest

from llmtool.data.games import legality
from llmtool.data.games.legality import Legality
from llmtool.data.games.othello import MOVES, SQUARES, Othello
from llmtool.data.games.othello_many import random_games
from llmtool.data.games.rules import Rules


def rows(count: int) -> np.ndarray:
    """(count, 61) tokens of games from the start on; those that end early have 0 behind."""
    games = random_games(2, 0, count)
    number = {square: at for at, square in enumerate(SQUARES)}
    token = np.zeros(64, dtype=np.int64)
    for at, move in enumerate(MOVES, 1):
        token[number[move]] = at
    return np.concatenate([np.zeros((count, 1), np.int64), np.where(games >= 0, token[games], 0)], axis=1)


def test_legal_moves_are_those_of_the_rules_at_every_position() -> None:
    found = Legality("othello").after(rows(12))
    rules = Othello()
    for row, allowed in zip(rows(12), found, strict=True):
        position = rules.start()
        for token, legal in zip([*row[1:], 0], allowed, strict=True):
            assert [MOVES[at - 1] for at in np.flatnonzero(legal)] == rules.legal(position)
            if token == 0:
                break
            position = rules.play(position, MOVES[token - 1])
    assert not found[:, :, 0].any()


def test_many_at_once_as_one_by_one_and_as_remembered() -> None:
    games = rows(30)[:, 1:] - 1
    slow = Rules.legal_along(Othello(), games)
    assert np.array_equal(Othello().legal_along(games), slow)
    legality = Legality("othello")
    first = legality.after(rows(30))
    assert np.array_equal(legality.after(rows(30)), first)
    assert np.array_equal(first[:, :, 1:], slow)


def test_what_is_remembered_is_forgotten_without_losing_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legality, "KEPT", 2)
    games, remembers = rows(6), Legality("othello")
    remembers.after(games[:4])
    assert np.array_equal(remembers.after(games[2:]), Legality("othello").after(games[2:]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_judged_games_are_a_fixed_part(share: float) -> None:
    chosen = Legality("othello", share).judged(np.arange(20_000))
    assert chosen.mean() == pytest.approx(share, abs=0.01)
    assert np.array_equal(chosen[50:60], Legality("othello", share).judged(np.arange(50, 60)))


def test_a_large_split_is_sampled_where_rules_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"targets": {"game": "othello"}, "splits": {"train": {"tokens": 10**9}, "test": {"tokens": 10**6}}}
    assert Legality.of(card).share == 1
    monkeypatch.setattr(Othello, "sample", 20_000)
    assert Legality.of(card).share == 0.02
