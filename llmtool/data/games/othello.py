"""Othello: the rules on bitboards, as plain integers; passes are not written down.

Bit 8 * row + column is a square, a1 (row 0, column 0) the lowest. A side that has no move passes at once, as
part of its opponent's move: whoever is to move has one, unless the game is over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from llmtool.data.games import othello_many
from llmtool.data.games.othello_many import DIRECTIONS, FULL, START_BLACK, START_WHITE
from llmtool.data.games.rules import Flaw, Rules, Unreadable

SQUARES = [f"{column}{row}" for row in range(1, 9) for column in "abcdefgh"]
CENTRE = ("d4", "e4", "d5", "e5")
MOVES = [square for square in SQUARES if square not in CENTRE]
BIT = {square: 1 << number for number, square in enumerate(SQUARES)}
_SIGN = re.compile(r"[a-hA-H][1-8]")
_PASS = re.compile(r"(?:pass|pa|ps|--|@@)(?![a-zA-Z0-9])", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:[\s,;]|\d+\.)*")


class Board(NamedTuple):
    """mine, theirs: the discs of the side to move and of the other; black: whether Black is to move."""

    mine: int
    theirs: int
    black: bool


class Othello(Rules[Board]):
    """Black begins; a move turns the rows of the other's discs that it closes in, and must turn one."""

    name = "othello"
    sides = ("black", "white")
    board: ClassVar[tuple[int, int]] = (8, 8)
    contents = ("empty", "mine", "theirs")
    absolute = ("empty", "black", "white")
    finishes = True
    sample = None

    def vocabulary(self) -> list[str]:
        """The 60 squares that are empty at the start, row by row."""
        return list(MOVES)

    def split(self, text: str) -> list[str]:
        """`f5d6c3`, `F5 D6 C3` and `1. f5 2. d6` alike; passes that are written out are left out."""
        words = text.split() if " " in text else [text[at : at + 2] for at in range(0, len(text), 2)]
        if all(word in BIT for word in words):  # as most are
            return words
        moves: list[str] = []
        at = _skip(_BETWEEN, text, 0)
        while at < len(text):
            if passed := _PASS.match(text, at):
                at = _skip(_BETWEEN, text, passed.end())
                continue
            found = _SIGN.match(text, at)
            if not found:
                raise Unreadable(moves, f"{text[at : at + 8]!r} is no square (a1 to h8)")
            moves.append(found[0].lower())
            at = _skip(_BETWEEN, text, found.end())
        return moves

    def start(self) -> Board:
        """Four discs in the middle, Black to move."""
        return Board(START_BLACK, START_WHITE, True)

    def legal(self, position: Board) -> list[str]:
        """The squares where a disc would turn another."""
        return [SQUARES[number] for number in bits(movable(position.mine, position.theirs))]

    def play(self, position: Board, move: str) -> Board:
        """Others turn, and the other side is to move, or this one again where that must pass."""
        mine, theirs, black = position
        bit = BIT.get(move)
        if bit is None:
            raise ValueError(f"{move!r} is no square (a1 to h8)")
        if bit & (mine | theirs):
            raise ValueError(f"{move} is occupied")
        flipped = turned(mine, theirs, bit)
        if not flipped:
            raise ValueError(_why_not(position, move))
        mine, theirs = theirs & ~flipped, mine | flipped | bit
        if movable(mine, theirs) or not movable(theirs, mine):
            return Board(mine, theirs, not black)
        return Board(theirs, mine, black)

    def mover(self, position: Board) -> int:
        """0 for Black."""
        return 0 if position.black else 1

    def result(self, position: Board) -> int:
        """Who has more discs."""
        difference = position.mine.bit_count() - position.theirs.bit_count()
        sign = (difference > 0) - (difference < 0)
        return sign if position.black else -sign

    def gain(self, position: Board, move: str) -> float:
        """Discs that the move turns."""
        return turned(position.mine, position.theirs, BIT[move]).bit_count()

    def squares(self, position: Board, absolute: bool = False) -> np.ndarray:
        """(64,) int8 0 empty, 1 mine, 2 theirs; absolute: 1 black, 2 white."""
        mine, theirs, black = position
        first, second = (mine, theirs) if black or not absolute else (theirs, mine)
        boards = np.array([first, second], dtype="<u8").view(np.uint8).reshape(2, 8)
        found = np.unpackbits(boards, axis=1, bitorder="little").astype(np.int8)  # (2, 64)
        return found[0] + 2 * found[1]

    def squares_named(self) -> list[str]:
        """a1, b1, ... h8."""
        return list(SQUARES)

    def flaws(self, games: Sequence[Sequence[str]]) -> list[Flaw | None]:
        """All records at once; what is wrong is then said by playing the bad ones."""
        good, _ = othello_many.judged(_numbers(games))
        return [None if fine else self._flaw(moves) for moves, fine in zip(games, good, strict=True)]

    def legal_along(self, games: np.ndarray) -> np.ndarray:
        """All games at once."""
        numbers = np.array([SQUARES.index(move) for move in MOVES])
        squares = np.where(games >= 0, numbers[games], -1)
        return othello_many.legal_along(squares)[:, :, numbers]

    def ended(self, games: Sequence[Sequence[str]]) -> list[bool]:
        """All records at once."""
        return othello_many.judged(_numbers(games))[1].tolist()


def movable(mine: int, theirs: int) -> int:
    """The squares where the side to move may put a disc."""
    found = 0
    for shift, inner in DIRECTIONS:
        between = theirs & inner
        run = between & _shifted(mine, shift)
        for _ in range(5):
            run |= between & _shifted(run, shift)
        found |= _shifted(run, shift)
    return found & ~(mine | theirs) & FULL


def turned(mine: int, theirs: int, bit: int) -> int:
    """The discs that a disc of the side to move on the square `bit` turns."""
    found = 0
    for shift, inner in DIRECTIONS:
        between = theirs & inner
        run, step = 0, _shifted(bit, shift)
        while step & between:
            run |= step
            step = _shifted(step, shift)
        if step & mine:
            found |= run
    return found


def bits(board: int) -> Iterator[int]:
    """The numbers of the squares that are set, from the lowest."""
    while board:
        lowest = board & -board
        yield lowest.bit_length() - 1
        board ^= lowest


def _shifted(board: int, shift: int) -> int:
    return board << shift if shift > 0 else board >> -shift


def _why_not(position: Board, move: str) -> str:
    side, other = ("Black", "White") if position.black else ("White", "Black")
    if not movable(position.mine, position.theirs):
        return f"{move} comes after the end of the game"
    if turned(position.theirs, position.mine, BIT[move]):
        return f"{move} turns no disc for {side}, whose move it is (it would for {other})"
    return f"{move} turns no disc"


def _numbers(games: Sequence[Sequence[str]]) -> np.ndarray:
    """(games, longest) int8 the square of each move, -1 after the last, 64 for what is no square."""
    longest = max((len(moves) for moves in games), default=0)
    found = np.full((len(games), longest), -1, dtype=np.int8)
    number: Callable[[Any], int] = {square: at for at, square in enumerate(SQUARES)}.get  # type: ignore[assignment]
    for row, moves in zip(found, games, strict=True):
        row[: len(moves)] = [64 if (at := number(move)) is None else at for move in moves]
    return found


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
