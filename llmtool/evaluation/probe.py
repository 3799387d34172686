"""Linear probes: is the board written in a model's hidden states, though it was told nothing but moves?

Li et al. 2022 (https://arxiv.org/abs/2210.13382) read the board of Othello out of a model of its moves; Nanda
et al. 2023 (https://arxiv.org/abs/2309.00941): a linear map does, once squares are called mine and theirs, as
seen by the side to move, and not black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from llmtool.core import seeds
from llmtool.core.config import Section
from llmtool.evaluation.loop import eval_mode
from llmtool.models.causal import Transformer

ROUNDS = 20  # steps; 80 give the same accuracy within 1e-4, measured
RIDGE = 1.0  # beside sums over thousands of positions
DRAWS = 1000
AT_ONCE = 64  # games that go through the model together


class ProbeConfig(Section):
    """Linear maps from the hidden states after each block to the squares of the board."""

    games: int = Field(
        default=1000, gt=9, le=1_000_000, description="games of train that the probes are learned from"
    )
    scored: int = Field(
        default=300, gt=9, le=1_000_000, description="games of test (or validation) that they are scored on"
    )
    positions: int = Field(
        default=20, gt=0, le=1000, description="of each game; neighbours say nearly the same"
    )
    untrained: bool = Field(
        default=True, description="also probe a model of the same shape with new weights, as a control"
    )


@dataclass(frozen=True)
class Boards:
    """Positions to probe. rows: (g, T) tokens of games. turns: (n, 2) game and how many moves were played.
    relative, absolute: (n, S) what stands on each square."""

    rows: np.ndarray
    turns: np.ndarray
    relative: np.ndarray
    absolute: np.ndarray


def hidden_states(model: Transformer, boards: Boards, device: torch.device) -> list[Tensor]:
    """(n, D) float32 for each layer: what goes into the first block (0), and what comes out of each."""
    kept: list[list[Tensor]] = [[] for _ in range(len(model.blocks) + 1)]
    found: list[Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda module, given: found.append(given[0]))]
    for block in model.blocks:
        hooks.append(block.register_forward_hook(lambda module, given, made: found.append(made)))
    try:
        with eval_mode(model), torch.no_grad():
            for first in range(0, len(boards.rows), AT_ONCE):
                games, turns = boards.turns.T
                here = (games >= first) & (games < first + AT_ONCE)
                found.clear()
                model.hidden(torch.from_numpy(boards.rows[first : first + AT_ONCE]).to(device))
                at = (
                    torch.from_numpy(games[here] - first).to(device),
                    torch.from_numpy(turns[here]).to(device),
                )
                for layer, states in zip(kept, found, strict=True):
                    layer.append(states[at].float().cpu())  # (here, D)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(layer) for layer in kept]


@dataclass(frozen=True)
class Reader:
    """A linear map, fitted. weights: (C, D + 1, S), the last row added to every position's."""

    mean: Tensor
    scale: Tensor
    weights: Tensor

    def read(self, states: Tensor) -> np.ndarray:
        """(n, S) what is likeliest on each square."""
        wide = _extended((states - self.mean) / self.scale)
        return (wide @ self.weights).argmax(dim=0).numpy()  # of (C, n, S)


def fit(states: Tensor, squares: np.ndarray, contents: int, rounds: int = ROUNDS) -> Reader:
    """Multinomial logistic regression of every square at once. states: (n, D). squares: (n, S) < contents.

    Each step divides the gradient by a bound of the curvature that is the same for all squares (Boehning
    1992, https://doi.org/10.1007/BF00048682): no step size, and the likelihood never falls.
    """
    mean, scale = states.mean(dim=0), states.std(dim=0).clamp(min=1e-6)
    wide = _extended((states - mean) / scale)  # (n, D + 1)
    ridge = RIDGE * torch.eye(wide.shape[1], dtype=torch.float64)
    factor = torch.linalg.cholesky(wide.double().T @ wide.double() / 2 + ridge)
    inverse = torch.cholesky_inverse(factor).float()
    truth = torch.stack([torch.from_numpy(squares == content) for content in range(contents)])  # (C, n, S)
    weights = torch.zeros(contents, wide.shape[1], squares.shape[1])
    for _ in range(rounds):
        shares = (wide @ weights).softmax(dim=0)  # (C, n, S)
        weights += inverse @ (wide.T @ (truth.float() - shares) - RIDGE * weights)
    return Reader(mean, scale, weights)


def _extended(states: Tensor) -> Tensor:
    return torch.cat([states, torch.ones(len(states), 1)], dim=1)


def by_game(right: np.ndarray, games: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The share of right squares and its 95 % interval, games drawn. right: (n, S) bool, games: (n,)."""
    names, at = np.unique(games, return_inverse=True)
    hits = np.bincount(at, right.mean(axis=1))
    counts = np.bincount(at)
    draws = seeds.generator(seed, "probe").multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    low, high = np.quantile((draws @ hits) / (draws @ counts), [0.025, 0.975])
    value = float(right.mean())
    return value, min(float(low), value), max(float(high), value)


def commonest(train: np.ndarray, test: np.ndarray) -> float:
    """How often what stands on a square most often in train stands there in test: what to beat."""
    contents = int(max(train.max(), test.max())) + 1
    usual = [np.bincount(column, minlength=contents).argmax() for column in train.T]
    return float((test == np.array(usual)).mean())


def errors(guesses: np.ndarray, truth: np.ndarray) -> list[float]:
    """(S,) the share of positions in which each square is misread."""
    return [round(float(value), 6) for value in (guesses != truth).mean(axis=0)]


def best(layers: Sequence[dict[str, float]], key: str) -> int:
    """The layer that reads best."""
    return max(range(len(layers)), key=lambda at: layers[at][key])
