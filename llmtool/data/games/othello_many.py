"""Othello played in many games at once: boards as (n,) arrays of 64 bits; records judged, games made up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmtool.core import seeds

Boards = NDArray[np.uint64]

FULL = (1 << 64) - 1
START_BLACK = 1 << 28 | 1 << 35  # e4, d5
START_WHITE = 1 << 27 | 1 << 36  # d4, e5
_INNER = 0x7E7E7E7E7E7E7E7E  # all columns but the outermost: a run along a row cannot go around the edge
# How far a step moves a bit, and where the discs in between may stand.
DIRECTIONS = [(shift, FULL if abs(shift) == 8 else _INNER) for shift in (1, -1, 8, -8, 9, -9, 7, -7)]
BLOCK = 8192  # games played together: their boards stay in the processor's cache
LONGEST = 60


def _shifted(boards: Boards, shift: int) -> Boards:
    return boards << np.uint64(shift) if shift > 0 else boards >> np.uint64(-shift)


def movable(mine: Boards, theirs: Boards) -> Boards:
    """(n,) the squares where the side to move may put a disc."""
    found = np.zeros_like(mine)
    for shift, inner in DIRECTIONS:
        between = theirs & np.uint64(inner)
        run = between & _shifted(mine, shift)
        for _ in range(5):
            run |= between & _shifted(run, shift)
        found |= _shifted(run, shift)
    return found & ~(mine | theirs)


def turned(mine: Boards, theirs: Boards, bit: Boards) -> Boards:
    """(n,) the discs that a disc of the side to move on the squares `bit` turns."""
    found = np.zeros_like(mine)
    for shift, inner in DIRECTIONS:
        between = theirs & np.uint64(inner)
        run = between & _shifted(bit, shift)
        for _ in range(5):
            run |= between & _shifted(run, shift)
        closed = (_shifted(run, shift) & mine) != 0
        found |= np.where(closed, run, np.uint64(0))
    return found


def _played(mine: Boards, theirs: Boards, bit: Boards, flipped: Boards) -> tuple[Boards, Boards, Boards]:
    """After the moves `bit`: the boards of whoever is to move, passes made, and where that may put a disc."""
    mine, theirs = theirs & ~flipped, mine | flipped | bit
    moves = movable(mine, theirs)
    stuck = moves == 0
    if stuck.any():
        again = movable(theirs[stuck], mine[stuck])
        mine[stuck], theirs[stuck] = (
            np.where(again != 0, theirs[stuck], mine[stuck]),
            np.where(again != 0, mine[stuck], theirs[stuck]),
        )
        moves[stuck] = again
    return mine, theirs, moves


def judged(games: np.ndarray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) whether every move of a record is legal, and whether the game is over after its last.

    games: (n, T) int8 squares 0 to 63, -1 after the last move, anything above 63 illegal.
    """
    good, over = np.ones(len(games), dtype=bool), np.zeros(len(games), dtype=bool)
    for first in range(0, len(games), BLOCK):
        part = slice(first, first + BLOCK)
        good[part], over[part] = _judged(games[part])
    return good, over


def _judged(games: np.ndarray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    mine = np.full(len(games), START_BLACK, dtype=np.uint64)
    theirs = np.full(len(games), START_WHITE, dtype=np.uint64)
    good = np.ones(len(games), dtype=bool)
    moves = movable(mine, theirs)
    for squares in games.T:
        playing = (squares >= 0) & good
        known = playing & (squares < 64)
        bit = np.where(known, np.uint64(1) << np.where(known, squares, 0).astype(np.uint64), np.uint64(0))
        good &= ~playing | (known & (bit & moves != 0))
        on = known & good
        if not on.any():
            break
        flipped = turned(mine[on], theirs[on], bit[on])
        mine[on], theirs[on], moves[on] = _played(mine[on], theirs[on], bit[on], flipped)
    return good, good & (moves == 0)


def legal_along(games: np.ndarray) -> NDArray[np.bool_]:
    """(n, T + 1, 64) where a disc may be put after each of the first 0 to T moves of games without a flaw.

    games: (n, T) squares, -1 after the last move, where nothing is legal.
    """
    found = np.zeros((len(games), games.shape[1] + 1, 64), dtype=bool)
    mine = np.full(len(games), START_BLACK, dtype=np.uint64)
    theirs = np.full(len(games), START_WHITE, dtype=np.uint64)
    moves, on = movable(mine, theirs), np.arange(len(games))
    found[:, 0] = unpacked(moves)
    for turn, squares in enumerate(games.T):
        going = squares[on] >= 0
        on, mine, theirs = on[going], mine[going], theirs[going]
        if not len(on):
            break
        bit = np.uint64(1) << squares[on].astype(np.uint64)
        mine, theirs, moves = _played(mine, theirs, bit, turned(mine, theirs, bit))
        found[on, turn + 1] = unpacked(moves)
    return found


def unpacked(boards: Boards) -> NDArray[np.bool_]:
    """(n, 64) bool of each square."""
    found = np.unpackbits(boards.astype("<u8").view(np.uint8), bitorder="little")
    return found.reshape(len(boards), 64).astype(bool)


def random_games(seed: int, first: int, count: int) -> NDArray[np.int8]:
    """(count, 60) int8 squares of the games first to first + count, -1 after the last move.

    Every legal move is as likely as the others. Game i is a function of (seed, i) alone, however many are
    made at once.
    """
    found = np.full((count, LONGEST), -1, dtype=np.int8)
    for at in range(0, count, BLOCK):
        part = found[at : at + BLOCK]
        part[:] = _random_games(seed, first + at, len(part))
    return found


def _random_games(seed: int, first: int, count: int) -> NDArray[np.int8]:
    found = np.full((count, LONGEST), -1, dtype=np.int8)
    stream = seeds.scrambled(np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GOLDEN))
    stream = seeds.scrambled(stream + np.uint64(seed & FULL))
    mine = np.full(count, START_BLACK, dtype=np.uint64)
    theirs = np.full(count, START_WHITE, dtype=np.uint64)
    moves, games = movable(mine, theirs), np.arange(count)
    for turn in range(LONGEST):
        chance = seeds.scrambled(stream[games] + np.uint64((turn + 1) * _GOLDEN & FULL)) >> np.uint64(32)
        number = np.bitwise_count(moves).astype(np.uint64)
        which = (chance * number) >> np.uint64(32)  # (n,) below their number
        square = _nth_set(moves, which)
        found[games, turn] = square
        bit = np.uint64(1) << square.astype(np.uint64)
        mine, theirs, moves = _played(mine, theirs, bit, turned(mine, theirs, bit))
        on = moves != 0
        if not on.all():
            mine, theirs, moves, games = mine[on], theirs[on], moves[on], games[on]
        if not len(games):
            break
    return found


def _nth_set(boards: Boards, which: Boards) -> NDArray[np.int64]:
    """(n,) the number of the bit that has `which` set bits below it."""
    at = np.zeros(len(boards), dtype=np.int64)
    left = which.astype(np.int64)
    for width in (32, 16, 8, 4, 2, 1):  # halves: in which of them it lies
        low = (boards >> at.astype(np.uint64)) & np.uint64((1 << width) - 1)
        below = np.bitwise_count(low).astype(np.int64)
        up = left >= below
        left -= np.where(up, below, 0)
        at += np.where(up, width, 0)
    return at


_GOLDEN = 0x9E3779B97F4A7C15
