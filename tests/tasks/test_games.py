"""The task of game records: figures equal a slow reference, move by move through the rules."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from llmtool.core.contracts import IGNORE, Batch
from llmtool.data.games.legality import Legality
from llmtool.data.games.othello import MOVES, SQUARES, Othello
from llmtool.data.games.othello_many import random_games
from llmtool.tasks.language import GamesTask, LanguageConfig, LanguageTask

TOKEN = np.array([1 + MOVES.index(square) if square in MOVES else 0 for square in SQUARES])


class _Guesses(nn.Module):
    """Logits of a table: the same for every position that follows the same token."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, inputs: torch.Tensor, segments: None) -> torch.Tensor:
        return self.table[inputs]


def _games(count: int) -> Batch:
    rows = np.zeros((count, 61), np.int64)
    rows[:, 1:] = np.where((games := random_games(7, 0, count)) >= 0, TOKEN[games], 0)
    targets = torch.from_numpy(rows[:, 1:].copy())
    targets[targets == 0] = IGNORE
    return Batch(torch.from_numpy(rows[:, :-1].copy()), targets, None, torch.arange(count)[:, None])


def test_a_games_figures_are_those_of_going_through_it_move_by_move() -> None:
    batch, rules = _games(6), Othello()
    table = torch.randn(61, 61, generator=torch.Generator().manual_seed(0))
    found = GamesTask(Legality("othello")).measure(_Guesses(table), batch)
    for game, (inputs, targets) in enumerate(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)):
        position, sums = rules.start(), np.zeros(6)
        for token, target in zip(inputs, targets, strict=True):
            if target == IGNORE:
                break
            shares = table[token].double().softmax(dim=0)
            legal = rules.legal(position)
            numbers = [1 + MOVES.index(move) for move in legal]
            guess = int(table[token].argmax())
            mass = float(shares[numbers].sum())
            sums += [-float(shares[target].log()), 1, guess == target, guess in numbers, mass, 1]
            position = rules.play(position, MOVES[target - 1])
        np.testing.assert_allclose(found.sums()[:, game], sums, rtol=1e-5)


def test_only_the_games_that_the_hash_chooses_are_judged() -> None:
    batch = _games(40)
    legality = Legality("othello", 0.5)
    table = torch.randn(61, 61, generator=torch.Generator().manual_seed(0))
    found = GamesTask(legality).measure(_Guesses(table), batch)
    assert ((found.sums()[5] > 0) == legality.judged(np.arange(40))).all()
    assert 0 < found.judged < found.tokens
    whole = GamesTask(Legality("othello")).measure(_Guesses(table), batch)
    assert np.array_equal(whole.sums()[:3], found.sums()[:3])
    judged = legality.judged(np.arange(40))
    assert np.array_equal(whole.sums()[:, judged], found.sums()[:, judged])


def test_the_card_says_which_task_it_is() -> None:
    targets = {"kind": "next_token", "vocabulary": 61}
    card = {"targets": targets, "splits": {"train": {"tokens": 9}}}
    assert type(LanguageConfig().build(card)) is LanguageTask
    games = LanguageConfig().build(card | {"targets": {**targets, "game": "othello"}})
    assert type(games) is GamesTask
