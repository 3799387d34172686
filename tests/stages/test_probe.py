"""The boards that are probed are those of the games, before moves that were played."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmtool.data import DataConfig
from llmtool.data.games.othello import MOVES, Othello
from llmtool.data.store import Dataset
from llmtool.stages.prepare import prepare
from llmtool.stages.probe import boards


def test_boards_are_those_after_the_moves_so_far(tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {
            "source": {"format": "othello_random", "games": 60},
            "encode": {"as": "moves", "game": "othello"},
        }
    )
    prepare(config, 0, tmp_path)
    dataset, rules = Dataset.open(tmp_path), Othello()
    found = boards(dataset, "train", 10, 5, seed=3)
    assert found.rows.shape == (10, 60)
    assert len(found.turns) == 50
    assert len(np.unique(found.turns, axis=0)) == 50
    for (game, turn), relative, absolute in zip(found.turns, found.relative, found.absolute, strict=True):
        position = rules.replay([MOVES[token - 1] for token in found.rows[game, 1 : turn + 1]])
        assert not rules.over(position)
        assert np.array_equal(relative, rules.squares(position))
        assert np.array_equal(absolute, rules.squares(position, absolute=True))
    again = boards(dataset, "train", 10, 5, seed=3)
    assert np.array_equal(again.turns, found.turns)
    assert np.array_equal(again.rows, found.rows)
