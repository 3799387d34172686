"""Othello's rules: move counts as published, passes, why a move is refused, many games at once."""

from __future__ import annotations

import numpy as np
import pytest

from llmtool.data.games import othello_many, rules_of
from llmtool.data.games.othello import BIT, MOVES, SQUARES, Board, Othello, movable, turned
from llmtool.data.games.othello_many import judged, random_games

RULES = Othello()
# Move sequences of each length, passes counted as a move (from the start to 8 there is none),
# https://www.aartbik.com/MISC/reversi.html
PERFT = [1, 4, 12, 56, 244, 1_396, 8_200, 55_092, 390_216, 3_005_288]


def test_move_sequences_are_as_many_as_published() -> None:
    positions = [RULES.start()]
    for count in PERFT[1:7]:
        positions = [RULES.play(one, move) for one in positions for move in RULES.legal(one)]
        assert len(positions) == count


def test_many_at_once_as_many_as_published() -> None:
    mine = np.array([othello_many.START_BLACK], dtype=np.uint64)
    theirs = np.array([othello_many.START_WHITE], dtype=np.uint64)
    for depth in range(8):
        moves = othello_many.movable(mine, theirs)
        parts = []
        for square in range(64):
            bit = np.uint64(1 << square)
            able = moves & bit != 0
            bits = np.full(int(able.sum()), bit)
            flipped = othello_many.turned(mine[able], theirs[able], bits)
            parts.append((theirs[able] & ~flipped, mine[able] | flipped | bits))
        mine, theirs = (np.concatenate(side) for side in zip(*parts, strict=True))
        assert len(mine) == PERFT[depth + 1]
    moves = np.bitwise_count(othello_many.movable(mine, theirs)).astype(int)
    passes = (moves == 0) & (othello_many.movable(theirs, mine) != 0)
    assert moves.sum() + passes.sum() == PERFT[9]
    assert passes.sum() == 24


def _slow_legal(board: np.ndarray) -> list[str]:
    """By walking over the squares: 0 empty, 1 mine, 2 theirs."""
    grid, found = board.reshape(8, 8), []
    for number, name in enumerate(SQUARES):
        row, column = divmod(number, 8)
        if grid[row, column]:
            continue
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                r, c, passed = row + down, column + right, 0
                while 0 <= r < 8 and 0 <= c < 8 and grid[r, c] == 2:
                    r, c, passed = r + down, c + right, passed + 1
                if passed and 0 <= r < 8 and 0 <= c < 8 and grid[r, c] == 1 and name not in found:
                    found.append(name)
    return found


def test_whole_games_agree_with_walking_over_the_squares() -> None:
    passes = finished = 0
    for game in random_games(5, 0, 40):
        position = RULES.start()
        for square in game[game >= 0]:
            assert RULES.legal(position) == _slow_legal(RULES.squares(position))
            before = position
            position = RULES.play(position, SQUARES[square])
            passes += RULES.mover(before) == RULES.mover(position)
            assert position.mine & position.theirs == 0
        finished += RULES.over(position)
        black = int((RULES.squares(position, absolute=True) == 1).sum())
        white = int((RULES.squares(position, absolute=True) == 2).sum())
        assert RULES.result(position) == np.sign(black - white)
    assert finished == 40
    assert passes > 0


def test_a_side_without_a_move_passes_as_part_of_the_others_move() -> None:
    # White has no disc left after 9 moves (the shortest game there is): nobody can move, the game is over.
    end = RULES.replay(RULES.split("e6f4e3f6g5d6e7f5c5"))
    assert RULES.over(end)
    assert RULES.legal(end) == []
    assert RULES.result(end) == 1
    with pytest.raises(ValueError, match="a1 comes after the end of the game"):
        RULES.play(end, "a1")
    # Black closes in g1; the one disc left to White, b8, cannot close in anything.
    position = Board(mine=BIT["f1"] | BIT["a8"], theirs=BIT["g1"] | BIT["b8"], black=True)
    after = RULES.play(position, "h1")
    assert after.black
    assert RULES.legal(after) == ["c8"]


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("f5d6c3", ["f5", "d6", "c3"]),
        ("F5 D6, C3", ["f5", "d6", "c3"]),
        ("1. f5 2. d6 pass 3. c3\n", ["f5", "d6", "c3"]),
        ("f5-- d6", ["f5", "d6"]),
        ("", []),
    ],
)
def test_records_are_read_however_they_are_written(text: str, moves: list[str]) -> None:
    assert RULES.split(text) == moves


@pytest.mark.parametrize(
    ("text", "says"),
    [("f5 d9", "move 2: 'd9' is no square"), ("f5d6x3", "move 3: 'x3' is no square"), ("f", "move 1: 'f'")],
)
def test_what_is_no_square_is_named_with_the_moves_number(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RULES.split(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("f5 f5", "move 2: f5 is occupied"),
        ("d4", "move 1: d4 is occupied"),
        ("a1", "move 1: a1 turns no disc"),
        ("d6", "move 1: d6 turns no disc for Black, whose move it is (it would for White)"),
        ("e6 f4 e3 f6 g5 d6 e7 f5 c5 a1", "move 10: a1 comes after the end of the game"),
    ],
)
def test_an_illegal_move_is_refused_with_its_reason(text: str, says: str) -> None:
    records = [RULES.split(text), RULES.split("f5 d6 c3")]
    flaw, good = RULES.flaws(records)
    assert str(flaw) == says
    assert good is None


def test_records_judged_together_as_one_by_one() -> None:
    games = random_games(11, 0, 300)
    rng = np.random.default_rng(0)
    for game in games[:200]:  # a wrong square somewhere, or cut short
        at = rng.integers(0, (game >= 0).sum())
        if rng.random() < 0.5:
            game[at] = rng.integers(0, 64)
        else:
            game[at:] = -1
    records = [[SQUARES[square] for square in game[game >= 0]] for game in games]
    good, over = judged(games)
    slow = [RULES._flaw(record) for record in records]
    assert good.tolist() == [flaw is None for flaw in slow]
    assert not good.all()
    assert RULES.flaws(records) == slow
    fine = [record for record, flaw in zip(records, slow, strict=True) if flaw is None]
    assert over[good].tolist() == RULES.ended(fine) == [RULES.over(RULES.replay(record)) for record in fine]
    assert 0 < sum(over[good]) < len(fine)


def test_a_random_game_is_a_function_of_its_number() -> None:
    some = random_games(3, 0, 50)
    assert np.array_equal(random_games(3, 20, 10), some[20:30])
    assert not np.array_equal(random_games(4, 0, 50), some)
    assert len(np.unique(some, axis=0)) == 50
    good, over = judged(some)
    assert good.all()
    assert over.all()


def test_every_legal_move_is_as_likely() -> None:
    first, counts = np.unique(random_games(1, 0, 8000)[:, 0], return_counts=True)
    assert [SQUARES[square] for square in first] == ["d3", "c4", "f5", "e6"]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(8000 * 0.25 * 0.75)


def test_what_the_greedy_opponent_sees() -> None:
    position = RULES.replay(["f5", "d6"])
    assert {move: RULES.gain(position, move) for move in ("c6", "c3")} == {"c6": 1, "c3": 1}
    assert turned(position.mine, position.theirs, BIT["c3"])
    assert movable(position.mine, position.theirs)


def test_the_vocabulary_is_every_square_but_the_four_in_the_middle() -> None:
    assert rules_of("othello").vocabulary() == MOVES
    assert len(MOVES) == 60
    assert MOVES[0] == "a1"
