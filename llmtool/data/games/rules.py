"""What a game is to the rest of the program: its moves as tokens, what is legal, and the board they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np

Position = TypeVar("Position")


@dataclass(frozen=True)
class Flaw:
    """Why a record cannot be played: the number of the move, from 1, and the reason."""

    move: int
    reason: str

    def __str__(self) -> str:
        return f"move {self.move}: {self.reason}"


class Unreadable(ValueError):
    """Text that is no move. before: the moves that stand in front of it."""

    def __init__(self, before: Sequence[str], reason: str) -> None:
        super().__init__(f"move {len(before) + 1}: {reason}")
        self.before = list(before)


class Rules(ABC, Generic[Position]):
    """A game of two sides that is played move by move; a position never changes, `play` makes another.

    name: in `game:`. sides: what the one who begins and the other are called. board: rows and columns.
    contents: what `squares` counts from 0, seen from the side to move; absolute: the same seen from nobody.
    finishes: whether a record that is whole ends where the rules end the game (nobody gives up or agrees to a
    draw before). sample: positions of a split whose legality `evaluate` looks at, about; None: all of them,
    because `legal_along` is fast.
    """

    name: ClassVar[str]
    sides: ClassVar[tuple[str, str]]
    board: ClassVar[tuple[int, int]]
    contents: ClassVar[tuple[str, ...]]
    absolute: ClassVar[tuple[str, ...]]
    finishes: ClassVar[bool]
    sample: ClassVar[int | None] = 20_000

    @abstractmethod
    def vocabulary(self) -> list[str]:
        """Every move that can occur in any game, each once, always in the same order; no blanks in a move."""

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """The moves that a record's text writes down, as tokens. Raises Unreadable."""

    @abstractmethod
    def start(self) -> Position:
        """Where every game begins."""

    @abstractmethod
    def legal(self, position: Position) -> list[str]:
        """The moves that may be played, in the vocabulary's order; none where the game is over."""

    @abstractmethod
    def play(self, position: Position, move: str) -> Position:
        """The position after this move. ValueError says why where it is not legal."""

    @abstractmethod
    def mover(self, position: Position) -> int:
        """Whose move it is: 0 for the side that began, 1 for the other."""

    @abstractmethod
    def result(self, position: Position) -> int:
        """1 where the side that began has won, -1 where it has lost, 0 for a draw; of a game that is over."""

    @abstractmethod
    def gain(self, position: Position, move: str) -> float:
        """What the greedy opponent looks at: what this legal move wins at once (discs, material)."""

    @abstractmethod
    def squares(self, position: Position, absolute: bool = False) -> np.ndarray:
        """(rows * columns,) int8 what stands on each square, in the order of `squares_named`: an index into
        `contents`, or into `absolute`."""

    @abstractmethod
    def squares_named(self) -> list[str]:
        """The names of the squares, row by row as the board is drawn."""

    def parts(self, move: str) -> tuple[str, ...]:
        """What a move is put together of and has in common with others; nothing where moves are few enough
        for each to be seen often."""
        return ()

    def over(self, position: Position) -> bool:
        """Whether the game is at its end."""
        return not self.legal(position)

    def flaws(self, games: Sequence[Sequence[str]]) -> list[Flaw | None]:
        """Of each record, the first thing the rules do not allow. One that ends early has none here."""
        return [self._flaw(moves) for moves in games]

    def ended(self, games: Sequence[Sequence[str]]) -> list[bool]:
        """Whether the rules end each of these games, which have no flaw, after its last move."""
        return [self.over(self.replay(moves)) for moves in games]

    def legal_along(self, games: np.ndarray) -> np.ndarray:
        """(n, T + 1, M) bool: the moves of the vocabulary that are legal after each of 0 to T moves.

        games: (n, T) numbers of moves, of games that have no flaw; -1 after the last, where nothing is legal.
        """
        moves = self.vocabulary()
        number = {move: at for at, move in enumerate(moves)}
        found = np.zeros((len(games), games.shape[1] + 1, len(moves)), dtype=bool)
        for row, game in zip(found, games.tolist(), strict=True):
            position = self.start()
            row[0, [number[move] for move in self.legal(position)]] = True
            for turn, move in enumerate(game, 1):
                if move < 0:
                    break
                position = self.after(position, moves[move])
                row[turn, [number[move] for move in self.legal(position)]] = True
        return found

    def after(self, position: Position, move: str) -> Position:
        """The position after a move that is known to be legal."""
        return self.play(position, move)

    def replay(self, moves: Sequence[str]) -> Position:
        """The position after these moves. ValueError where one is not legal."""
        position = self.start()
        for move in moves:
            position = self.play(position, move)
        return position

    def _flaw(self, moves: Sequence[str]) -> Flaw | None:
        position = self.start()
        for number, move in enumerate(moves, 1):
            try:
                position = self.play(position, move)
            except ValueError as error:
                return Flaw(number, str(error))
        return None
