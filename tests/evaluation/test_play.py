"""Games against fixed opponents: the same by seed, by the rules, illegal guesses counted as what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from llmtool.core.errors import ConfigError
from llmtool.data.games.moves import tokenizer_of
from llmtool.data.games.othello import MOVES, Othello
from llmtool.data.prompts import PromptTokenizer
from llmtool.evaluation.play import Play
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally

RULES = Othello()
TOKENIZER = PromptTokenizer(tokenizer_of(RULES).tokenizer, 0, None)


class Model(torch.nn.Module):
    """Scores that a function of the moves so far gives; it sees no further than the row's position."""

    caches = False

    def __init__(self, choose: Any, context: int = 60) -> None:
        super().__init__()
        self.choose, self.context = choose, context

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[..., None].expand(-1, -1, inputs.shape[1])[:, :, :].transpose(1, 2)  # (n, T, T) tokens

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(rows), 61)
        for score, row in zip(scores, rows.tolist(), strict=True):
            for place, move in enumerate(self.choose([MOVES[token - 1] for token in row if token])):
                score[1 + MOVES.index(move)] = 10 - place
        return scores


def best(moves: list[str]) -> list[str]:
    """The move that turns most."""
    position = RULES.replay(moves)
    return sorted(RULES.legal(position), key=lambda move: -RULES.gain(position, move))


def occupied(moves: list[str]) -> list[str]:
    """Always a square that is taken, then what turns most."""
    return [moves[0], *best(moves)]


def play(choose: Any, context: int = 60, **keys: Any) -> SuiteTally:
    suite = Play.model_validate({"kind": "play", "game": "othello", "against": "random", "games": 12} | keys)
    scorer = Scorer(Model(choose, context), TOKENIZER, torch.device("cpu"))  # type: ignore[arg-type]
    done: list[int] = []
    tally = suite.answers(suite.questions(), scorer, done.append)
    assert sum(done) == suite.games
    return tally


@pytest.mark.parametrize("against", ["random", "greedy"])
def test_every_game_goes_by_the_rules_to_its_end(against: str) -> None:
    tally = play(best, against=against)
    for number, record in enumerate(tally.records):
        moves = record["moves"].split()
        position = RULES.replay(moves)
        assert RULES.over(position)
        side = 1 if record["model"] == "black" else -1
        result = RULES.result(position) * side
        assert [record["won"], record["drawn"], record["lost"]] == [result == 1, result == 0, result == -1]
        assert record["score"] == (result + 1) / 2
        assert record["illegal"] == 0
        other = tally.records[number ^ 1]["moves"].split()
        assert moves[:4] == other[:4]
        assert record["model"] == ("black", "white")[number % 2]
        assert _model_moves(moves, side, 4) == record["guesses"]
    metrics = tally.metrics()
    assert metrics["won"] + metrics["drawn"] + metrics["lost"] == pytest.approx(1)


def _model_moves(moves: list[str], side: int, opening: int) -> int:
    position, count = RULES.start(), 0
    for at, move in enumerate(moves):
        count += at >= opening and RULES.mover(position) == (0 if side == 1 else 1)
        position = RULES.play(position, move)
    return count


def test_games_are_the_same_by_seed_and_others_by_another() -> None:
    first = [record["moves"] for record in play(best).records]
    assert [record["moves"] for record in play(best).records] == first
    assert [record["moves"] for record in play(best, seed=1).records] != first
    assert len(set(first)) == 12
    # few games are the first of many
    assert [record["moves"] for record in play(best, games=4).records] == first[:4]


def test_the_greedy_opponent_turns_most() -> None:
    for record in play(best, against="greedy", games=4).records:
        position, side = RULES.start(), 0 if record["model"] == "black" else 1
        for at, move in enumerate(record["moves"].split()):
            gains = [RULES.gain(position, other) for other in RULES.legal(position)]
            if at >= 4 and RULES.mover(position) != side:
                assert RULES.gain(position, move) == max(gains)
            position = RULES.play(position, move)


def test_illegal_guesses_are_replaced_and_counted_or_lose() -> None:
    replaced = play(occupied)
    assert replaced.metrics()["illegal"] == 1
    assert [record["moves"] for record in replaced.records] == [r["moves"] for r in play(best).records]
    lost = play(occupied, illegal="lose")
    assert lost.metrics()["lost"] == 1
    assert all(record["guesses"] == record["illegal"] == 1 for record in lost.records)


def test_a_game_longer_than_the_models_context_is_drawn() -> None:
    tally = play(best, context=20)
    assert tally.metrics()["drawn"] == 1
    assert {len(record["moves"].split()) for record in tally.records} == {20}


def test_what_cannot_be_played_is_said() -> None:
    with pytest.raises(ValidationError, match="multiple of 2"):
        play(best, games=3)
    suite = Play.model_validate({"kind": "play", "game": "othello", "against": "greedy"})
    assert (suite.name, suite.files(), suite.fewer(5).games) == ("greedy", [], 4)
    words = PromptTokenizer(tokenizer_of(RULES).tokenizer, None, None)
    scorer = Scorer(Model(best), words, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="that has learned the moves of othello"):
        suite.answers(suite.questions(), scorer, lambda count: None)


def test_a_better_player_wins_more() -> None:
    chance = np.random.default_rng(0)

    def anything(moves: list[str]) -> list[str]:
        legal = RULES.legal(RULES.replay(moves))
        return [legal[int(chance.integers(len(legal)))]]

    assert play(best, games=60).metrics()["score"] > play(anything, games=60).metrics()["score"]
