"""Which moves are legal at every position of game records, as tokens; computed once for each game."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmtool.core import seeds
from llmtool.data.games import rules_of
from llmtool.data.store import Dataset

TOGETHER = 512  # games whose legal moves are taken at once
KEPT = 50_000  # games whose legal moves are remembered


class Legality:
    """The legal moves of one game's records. share: of the games that are judged, which a hash chooses."""

    def __init__(self, game: str, share: float = 1.0) -> None:
        self.rules, self.share = rules_of(game), share
        self.vocabulary = 1 + len(self.rules.vocabulary())  # the one that begins a game in front
        self._kept: dict[bytes, np.ndarray] = {}

    @classmethod
    def of(cls, card: dict[str, Any]) -> Legality:
        """For the dataset with this card: at most about `rules.sample` positions of validation or test."""
        game = card["targets"]["game"]
        tokens = [meta["tokens"] for name, meta in card["splits"].items() if name != "train"]
        sample, most = rules_of(game).sample, max(tokens, default=1)
        return cls(game, 1.0 if sample is None else min(1.0, sample / most))

    def judged(self, units: np.ndarray) -> np.ndarray:
        """(n,) bool which of these games are: always the same ones of a split."""
        if self.share >= 1:
            return np.ones(len(units), dtype=bool)
        drawn = seeds.scrambled(units.astype(np.uint64)) >> np.uint64(11)  # of 53 bits
        return drawn.astype(np.float64) / 2.0**53 < self.share

    def after(self, rows: np.ndarray) -> np.ndarray:
        """(n, T, V) bool: the tokens that are legal next. rows: (n, T) tokens of games, each from its start;
        what follows a game (token 0 again) does not matter."""
        found = np.zeros((*rows.shape, self.vocabulary), dtype=bool)
        keys = [np.trim_zeros(row, "b").tobytes() for row in rows.astype(np.uint16)]  # however far padded
        if len(self._kept) > KEPT:
            self._kept = {}
        known = self._kept  # another thread, which reads rows ahead, may begin anew meanwhile
        new = [at for at, key in enumerate(keys) if key not in known]
        if new:
            made = self.rules.legal_along(rows[new, 1:].astype(np.int64) - 1)  # (n, T, V - 1)
            for at, legal in zip(new, made, strict=True):
                known[keys[at]] = np.flatnonzero(legal).astype(np.int32)
        for at, key in enumerate(keys):
            place, move = np.divmod(known[key], self.vocabulary - 1)
            found[at, place, move + 1] = True
        return found

    def counted(self, dataset: Dataset, split: str, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u,) of each game how many guesses are legal, and how many were judged. guess: (n,) for each token
        of the split."""
        ends = np.asarray(dataset.split(split).arrays["documents"], np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        legal, judged = np.zeros(len(ends)), np.zeros(len(ends))
        chosen = np.flatnonzero(self.judged(np.arange(len(ends))))
        for games in np.array_split(chosen, max(1, len(chosen) // TOGETHER)):
            allowed = self.after(rows_of(dataset, split, games))
            for game, after in zip(games.tolist(), allowed, strict=True):
                guessed = guess[starts[game] + 1 : ends[game]]  # the first token of a game is not guessed
                legal[game] = after[np.arange(len(guessed)), guessed].sum()
                judged[game] = len(guessed)
        return legal, judged


def rows_of(dataset: Dataset, split: str, games: np.ndarray) -> np.ndarray:
    """(n, T) int64 tokens of these games of a split, from the start of each, 0 after its last move."""
    arrays = dataset.split(split).arrays
    edges = np.concatenate([[0], np.asarray(arrays["documents"], np.int64)])
    lengths = (edges[1:] - edges[:-1])[games]
    rows = np.zeros((len(games), int(lengths.max(initial=1))), np.int64)
    for row, game, length in zip(rows, games.tolist(), lengths.tolist(), strict=True):
        row[:length] = arrays["tokens"][edges[game] : edges[game] + length]
    return rows
