"""The task of game records: figures equal a slow reference, move by move through the rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import ConfigError
from llmtool.data.games.legality import Legality
from llmtool.data.games.othello import MOVES, SQUARES, Othello
from llmtool.data.games.othello_many import random_games
from llmtool.stages.verify import unpacked
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
    assert games.rules == 0
    taught = LanguageConfig(rules=0.5).build(card | {"targets": {**targets, "game": "othello"}})
    assert isinstance(taught, GamesTask)
    assert taught.rules == 0.5
    with pytest.raises(ConfigError, match=r"^task\.rules: is for records of games"):
        LanguageConfig(rules=0.5).build(card)


def test_what_the_rules_allow_is_taught_beside_the_moves() -> None:
    batch, legality = _games(5), Legality("othello")
    allowed = torch.from_numpy(legality.after(batch.inputs.numpy()))
    table = torch.randn(61, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)  # 3 unused
    task = GamesTask(legality, rules=2.0)
    plain, taught = (task.loss(_Guesses(table), one) for one in (batch, replace(batch, allowed=allowed)))
    expected = 0.0
    for at in (batch.targets != IGNORE).nonzero().tolist():
        shares = table.detach()[batch.inputs[*at]].double().softmax(dim=0)
        legal = allowed[*at].nonzero()[:, 0]
        expected -= 2.0 * shares[legal].sum().log().item()
    assert (taught.total - plain.total).item() == pytest.approx(expected, rel=1e-5)
    assert taught.count == plain.count
    taught.total.backward()
    assert table.grad is not None
    assert torch.isfinite(table.grad).all()


def test_packed_games_are_taught_the_same_as_each_alone() -> None:
    batch, legality = _games(6), Legality("othello")
    short = [20, 25, 15, 30, 10, 20]
    rows = batch.inputs.new_zeros(2, 60), batch.targets.new_full((2, 60), IGNORE), torch.zeros(2, 60).int()
    packed = Batch(*rows, allowed=torch.zeros(2, 60, 61, dtype=torch.bool))
    assert packed.segments is not None
    assert packed.allowed is not None
    after = torch.from_numpy(legality.after(batch.inputs.numpy()))
    for row in range(2):
        at = 0
        for number, game in enumerate(range(3 * row, 3 * row + 3), start=1):
            here, length = slice(at, at + short[game]), short[game]
            packed.inputs[row, here] = batch.inputs[game, :length]
            packed.targets[row, here] = batch.targets[game, :length]
            packed.segments[row, here] = number
            packed.allowed[row, here] = after[game, :length]
            at += length
    table = torch.randn(61, 61, generator=torch.Generator().manual_seed(0))
    task, alone = GamesTask(legality, rules=1.0), unpacked(packed)
    assert len(alone) == 6
    one, other = (task.loss(_Guesses(table), each) for each in (packed, alone))
    assert float(one.total) == pytest.approx(float(other.total), rel=1e-6)
    assert one.count == other.count == sum(short)
