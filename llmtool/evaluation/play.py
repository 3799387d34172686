"""Whole games of a model that has learned moves against an opponent that follows a simple rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from llmtool.core import seeds
from llmtool.core.errors import ConfigError
from llmtool.data.games import Game, rules_of
from llmtool.data.games.rules import Rules
from llmtool.evaluation.loop import eval_mode
from llmtool.evaluation.questions import Suite, Tick, numbered
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally

TOGETHER = 256  # games played side by side


@dataclass
class Match:
    """A game that is being played. side: 0 where the model begins. opening: moves that chance has played."""

    number: int
    side: int
    opening: list[str]
    moves: list[str] = field(default_factory=list)
    guesses: int = 0
    illegal: int = 0
    result: int | None = None  # for the model: 1 won, 0 drawn, -1 lost


class Play(Suite):
    """Games against a fixed opponent, half of them begun by the model: `won`, `drawn`, `lost`, `score`.

    The model plays its likeliest move. Two games share each opening, once with either side. A game that is
    longer than the model's context is drawn.
    """

    kind: Literal["play"] = Field(description="whole games, of a model that has learned moves")
    game: Game = Field(description="whose rules are played by")
    against: Literal["random", "greedy"] = Field(
        description="random: every legal move is as likely; greedy: the move that wins most at once"
    )
    games: int = Field(default=100, gt=1, le=100_000, multiple_of=2, description="how many; an even number")
    opening: int = Field(
        default=4, ge=0, le=40, description="moves at the start that chance plays, so that games differ"
    )
    illegal: Literal["replace", "lose"] = Field(
        default="replace",
        description="a move that is not legal: the likeliest legal one is played and it is counted, or the "
        "game is lost",
    )
    seed: int = Field(default=0, ge=0, description="other openings, another opponent's chance")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.against)  # frozen for everybody but the one who makes it
        return self

    def fewer(self, count: int) -> Self:
        """The same with at most about so many games."""
        return self.model_copy(update={"games": min(self.games, max(2, count - count % 2))})

    def questions(self) -> list[Match]:
        """The games, with their openings played."""
        rules, found = rules_of(self.game), []
        for pair in range(self.games // 2):
            opening: list[str] = []
            chance, position = seeds.generator(self.seed, "opening", pair), rules.start()
            for _ in range(self.opening):
                if not (legal := rules.legal(position)):
                    break
                opening.append(legal[int(chance.integers(len(legal)))])
                position = rules.play(position, opening[-1])
            found += [Match(2 * pair + side, side, opening) for side in (0, 1)]
        return found

    def answers(self, questions: list[Match], scorer: Scorer, tick: Tick) -> SuiteTally:
        """Each game played to its end."""
        rules = rules_of(self.game)
        numbers = _numbers(rules, scorer)
        for start in range(0, len(questions), TOGETHER):
            self._play(questions[start : start + TOGETHER], rules, numbers, scorer)
            tick(len(questions[start : start + TOGETHER]))
        records = (
            {
                "model": rules.sides[one.side],
                "won": one.result == 1,
                "drawn": one.result == 0,
                "lost": one.result == -1,
                "score": ((one.result or 0) + 1) / 2,
                "illegal": one.illegal,
                "guesses": one.guesses,
                "opening": len(one.opening),
                "moves": " ".join(one.moves),
            }
            for one in questions
        )
        return SuiteTally(self.kind, numbered(records))

    def _play(self, matches: list[Match], rules: Rules[Any], numbers: np.ndarray, scorer: Scorer) -> None:
        """All at once: the opponent moves until it is the model's turn, then the model does in all."""
        place = {move: at for at, move in enumerate(rules.vocabulary())}
        positions = [rules.replay(one.opening) for one in matches]
        chances = [seeds.generator(self.seed, self.against, one.number) for one in matches]
        for one in matches:
            one.moves = list(one.opening)
        while True:
            turn = []
            for at, one in enumerate(matches):
                while one.result is None and not self._is_over(rules, positions[at], one, scorer):
                    if rules.mover(positions[at]) == one.side:
                        turn.append(at)
                        break
                    move = self._reply(rules, positions[at], chances[at])
                    positions[at] = rules.play(positions[at], move)
                    one.moves.append(move)
            if not turn:
                return
            scores = _next(scorer, numbers, [[place[move] for move in matches[at].moves] for at in turn])
            for at, row in zip(turn, scores, strict=True):
                self._answer(rules, positions, at, matches[at], place, numbers, row)

    def _is_over(self, rules: Rules[Any], position: Any, one: Match, scorer: Scorer) -> bool:
        if rules.over(position):
            one.result = rules.result(position) * (1 if one.side == 0 else -1)
        elif len(one.moves) >= scorer.model.context:
            one.result = 0
            scorer.cut += 1
        return one.result is not None

    def _reply(self, rules: Rules[Any], position: Any, chance: np.random.Generator) -> str:
        legal = rules.legal(position)
        if self.against == "greedy":
            gains = [rules.gain(position, move) for move in legal]
            legal = [move for move, gain in zip(legal, gains, strict=True) if gain == max(gains)]
        return legal[int(chance.integers(len(legal)))]

    def _answer(
        self,
        rules: Rules[Any],
        positions: list[Any],
        at: int,
        one: Match,
        place: dict[str, int],
        numbers: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        """The model's move. scores: (V,) of every token."""
        legal = rules.legal(positions[at])
        of_legal = numbers[[place[move] for move in legal]]
        one.guesses += 1
        if int(scores.argmax()) not in of_legal:
            one.illegal += 1
            if self.illegal == "lose":
                one.result = -1
                return
        move = legal[int(scores[of_legal].argmax())]
        positions[at] = rules.play(positions[at], move)
        one.moves.append(move)


def _numbers(rules: Rules[Any], scorer: Scorer) -> np.ndarray:
    """(M,) the model's token of each move. ConfigError for a model that has learned something else."""
    found = [scorer.tokenizer.tokenizer.token_to_id(move) for move in rules.vocabulary()]
    if None in found or scorer.tokenizer.begin is None:
        raise ConfigError(f"`kind: play` is for a model that has learned the moves of {rules.name}")
    return np.array(found)


def _next(scorer: Scorer, numbers: np.ndarray, games: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, V) scores of what follows these games, given as numbers of moves."""
    longest = max(map(len, games)) + 1
    rows = torch.full((len(games), longest), int(scorer.tokenizer.begin or 0))
    for row, moves in zip(rows, games, strict=True):
        row[1 : len(moves) + 1] = torch.from_numpy(numbers[list(moves)])
    last = torch.tensor([len(moves) for moves in games], device=scorer.device)
    with eval_mode(scorer.model), torch.no_grad(), scorer.autocast():
        hidden = scorer.model.hidden(rows.to(scorer.device))  # (n, T, D): what stands behind is not seen
        scores = scorer.model.logits(hidden[torch.arange(len(games), device=scorer.device), last])
    return scores.float().cpu().numpy()
