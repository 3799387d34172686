"""Probes a model of games for the board: which positions, the model and an untrained one, what was read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from llmtool.core import seeds
from llmtool.core.errors import ConfigError
from llmtool.data.games import rules_of
from llmtool.data.games.legality import rows_of
from llmtool.data.store import Dataset
from llmtool.evaluation.probe import Boards, ProbeConfig, best, by_game, commonest, errors, fit, hidden_states
from llmtool.evaluation.report import PROBED
from llmtool.models.causal import Transformer
from llmtool.stages.assemble import Assembled, new_model


def probe(assembled: Assembled, config: ProbeConfig | None) -> dict[str, Any]:
    """What report.json says of the probes: accuracy by layer, errors by square of the best one; nothing where
    none are asked for.

    The model is one of games: `assemble.refuse_unknown_figures` comes first. ConfigError where the data has
    no split to score on.
    """
    if config is None:
        return {}
    dataset, model = assembled.dataset, cast(Transformer, assembled.model)
    split = next((name for name in ("test", "validation") if name in dataset.splits), "")
    if not split:
        raise ConfigError("evaluate.probe: needs a split test or validation to be scored on")
    rules = rules_of(dataset.targets["game"])
    train = boards(dataset, "train", config.games, config.positions, assembled.seed)
    test = boards(dataset, split, config.scored, config.positions, assembled.seed)
    layers, misread = _read(model, train, test, assembled.device, assembled.seed)
    found: dict[str, Any] = {
        "split": split,
        "games": {"train": len(train.rows), split: len(test.rows)},
        "positions": {"train": len(train.turns), split: len(test.turns)},
        "views": {"relative": list(rules.contents), "absolute": list(rules.absolute)},
        "layers": layers,
        "best": best(layers, "relative"),
        "commonest": {view: commonest(getattr(train, view), getattr(test, view)) for view in PROBED},
        "board": list(rules.board),
        "squares": rules.squares_named(),
        "errors": misread,
        "untrained": None,
    }
    if config.untrained:
        with torch.random.fork_rng():
            torch.manual_seed(seeds.derive(assembled.seed, "untrained"))
            new = cast(Transformer, new_model(model.config, model.outputs, dataset)).to(assembled.device)
        found["untrained"] = _read(new, train, test, assembled.device, assembled.seed)[0]
    return found


def boards(dataset: Dataset, split: str, games: int, positions: int, seed: int) -> Boards:
    """Games of a split drawn by chance, and positions of each: before a move that was played."""
    rules, total = rules_of(dataset.targets["game"]), dataset.split(split).rows
    chance = seeds.generator(seed, "probe", split)
    chosen = np.sort(chance.choice(total, min(games, total), replace=False))
    rows, moves = rows_of(dataset, split, chosen), rules.vocabulary()
    turns, relative, absolute = [], [], []
    for game, row in enumerate(rows.tolist()):
        played = [moves[token - 1] for token in row[1:] if token]
        wanted = set(chance.permutation(len(played))[:positions].tolist())
        position = rules.start()
        for turn, move in enumerate(played):
            if turn in wanted:
                turns.append((game, turn))
                relative.append(rules.squares(position))
                absolute.append(rules.squares(position, absolute=True))
            position = rules.play(position, move)
    return Boards(rows[:, :-1], np.array(turns), np.stack(relative), np.stack(absolute))


def _read(
    model: Transformer, train: Boards, test: Boards, device: torch.device, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Each layer's accuracies with intervals; by view, the errors by square of the best layer."""
    learned, scored = hidden_states(model, train, device), hidden_states(model, test, device)
    layers: list[dict[str, Any]] = []
    guesses: list[dict[str, np.ndarray]] = []
    for number, (before, after) in enumerate(zip(learned, scored, strict=True)):
        one: dict[str, Any] = {"layer": number}
        guesses.append({})
        for view in PROBED:
            squares, truth = getattr(train, view), getattr(test, view)
            reader = fit(before, squares, int(max(squares.max(), truth.max())) + 1)
            guesses[-1][view] = reader.read(after)
            value, low, high = by_game(guesses[-1][view] == truth, test.turns[:, 0], seed)
            one |= {view: value, f"{view}_interval": [low, high]}
        layers.append(one)
    at = {view: best(layers, view) for view in PROBED}
    return layers, {view: errors(guesses[at[view]][view], getattr(test, view)) for view in PROBED}
