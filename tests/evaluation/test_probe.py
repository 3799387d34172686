"""Probes: a planted linear code is read back, noise is not; intervals and errors by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from llmtool.core.contracts import NextToken, Tokens
from llmtool.evaluation.probe import Boards, by_game, commonest, errors, fit, hidden_states
from llmtool.models.transformer import TransformerConfig

SQUARES, WIDTH = 6, 32


def planted(count: int, noise: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """States in which one linear code writes 3 contents of each square: (n, D), (n, S)."""
    code = np.random.default_rng(0).normal(size=(SQUARES, 3, WIDTH))
    chance = np.random.default_rng(seed)
    squares = chance.integers(0, 3, (count, SQUARES)).astype(np.int8)
    states = code[np.arange(SQUARES), squares].sum(axis=1) + noise * chance.normal(size=(count, WIDTH))
    return torch.from_numpy(states).float() + 7, squares


def test_a_planted_linear_code_is_read_back() -> None:
    reader = fit(*planted(2000, 0.3, 1), 3)
    states, squares = planted(500, 0.3, 2)
    assert (reader.read(states) == squares).mean() > 0.97
    shuffled = np.random.default_rng(3).permutation(squares)
    assert (reader.read(states) == shuffled).mean() < 0.4


def test_what_is_not_there_is_not_read() -> None:
    states, squares = planted(2000, 0.3, 1)
    noise = torch.randn(2500, WIDTH, generator=torch.Generator().manual_seed(0))
    reader = fit(noise[:2000], squares, 3)
    assert (reader.read(noise[2000:]) == planted(500, 0.3, 2)[1]).mean() < 0.4
    assert len(states) == 2000


def test_it_reads_as_well_as_scikit_learns_logistic_regression() -> None:
    states, squares = planted(1500, 2.0, 1)
    more, truth = planted(1500, 2.0, 2)
    ours = fit(states, squares, 3, rounds=60).read(more)
    for square in range(SQUARES):
        other = LogisticRegression(max_iter=500).fit(states.numpy(), squares[:, square])
        theirs = other.predict(more.numpy())
        agree = (ours[:, square] == theirs).mean()
        assert agree > 0.97
        assert abs((ours[:, square] == truth[:, square]).mean() - (theirs == truth[:, square]).mean()) < 0.01


def test_shares_and_errors_by_hand() -> None:
    guesses, truth = np.array([[0, 1], [1, 1], [2, 0]]), np.array([[0, 1], [1, 2], [2, 2]])
    assert errors(guesses, truth) == [0.0, 0.666667]
    value, low, high = by_game(guesses == truth, np.array([4, 4, 9]), 0)
    assert value == pytest.approx(4 / 6)
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.75))
    assert commonest(np.array([[0, 2], [0, 2], [1, 1]]), np.array([[0, 1], [1, 2]])) == 0.5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hidden_states_are_those_of_the_positions_asked_for(architecture: str) -> None:
    config = TransformerConfig(architecture=architecture, width=16, depth=2, heads=2, context=8)  # type: ignore[arg-type]
    model = config.build(Tokens(11), NextToken(11))
    rows = np.random.default_rng(0).integers(1, 11, (70, 8))
    turns = np.array([[0, 3], [0, 0], [65, 7], [69, 2]])
    empty = np.zeros((4, 1), np.int8)
    layers = hidden_states(model, Boards(rows, turns, empty, empty), torch.device("cpu"))
    assert [tuple(layer.shape) for layer in layers] == [(4, 16)] * 3
    for number, (game, turn) in enumerate(turns):
        alone = Boards(rows[game : game + 1, : turn + 1], np.array([[0, turn]]), empty, empty)
        for layer, found in zip(layers, hidden_states(model, alone, torch.device("cpu")), strict=True):
            torch.testing.assert_close(layer[number], found[0], rtol=1e-4, atol=1e-5)
    assert not model._forward_hooks
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
