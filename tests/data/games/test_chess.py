"""The rules of chess: published counts of positions, an independent program beside, algebraic notation."""

from __future__ import annotations

import random
import re

import pytest

from llmtool.data.games import rules_of
from llmtool.data.games.chess import NUMBER, START, Board, Chess, in_check, read
from llmtool.data.games.rules import Flaw, Unreadable

RULES = Chess()


def board(fen: str) -> Board:
    """A position written down in Forsyth-Edwards notation."""
    pieces, side, castling, passant, quiet, _ = fen.split()
    ranks = [re.sub(r"\d", lambda empty: "." * int(empty[0]), rank) for rank in reversed(pieces.split("/"))]
    rights = sum({"K": 1, "Q": 2, "k": 4, "q": 8}[sign] for sign in castling if sign != "-")
    passed = -1 if passant == "-" else NUMBER[passant]
    return Board("".join(ranks).encode(), side == "w", rights, passed, int(quiet))


def counted(position: Board, depth: int) -> int:
    """The ways to play `depth` half-moves."""
    moves = RULES.legal(position)
    if depth == 1:
        return len(moves)
    return sum(counted(RULES.play(position, move), depth - 1) for move in moves)


@pytest.mark.parametrize(
    ("fen", "counts"),
    [  # the positions and counts of https://www.chessprogramming.org/Perft_Results
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1", [20, 400, 8902]),
        ("r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1", [48, 2039]),
        ("8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1", [14, 191, 2812]),
        ("r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1", [6, 264, 9467]),
        ("rnbq1k1r/pp1Pbppp/2p5/8/2B5/8/PPP1NnPP/RNBQK2R w KQ - 1 8", [44, 1486]),
    ],
)
def test_there_are_as_many_ways_to_play_as_published(fen: str, counts: list[int]) -> None:
    position = board(fen)
    assert [counted(position, depth) for depth in range(1, len(counts) + 1)] == counts


def test_moves_signs_and_ends_are_those_of_another_program() -> None:
    chess = pytest.importorskip("chess")
    chance, ends = random.Random(0), 0
    for _ in range(12):
        ours, theirs = START, chess.Board()
        while not theirs.is_checkmate() and not theirs.is_stalemate() and ours.quiet < 100:
            moves = RULES.legal(ours)
            assert sorted(moves) == sorted(move.uci() for move in theirs.legal_moves), theirs.fen()
            assert in_check(ours) == theirs.is_check()
            move = chance.choice(moves)
            sign = theirs.san(chess.Move.from_uci(move))
            assert read(ours, sign.rstrip("+#")) == move, (theirs.fen(), sign)
            ours = RULES.play(ours, move)
            theirs.push_uci(move)
        ends += theirs.is_checkmate() or theirs.is_stalemate()
        if theirs.is_checkmate():
            assert RULES.over(ours)
            assert RULES.result(ours) == (-1 if theirs.turn else 1)
    assert ends, "some of these games come to an end"


def test_the_vocabulary_holds_every_move_once() -> None:
    moves = RULES.vocabulary()
    assert len(moves) == len(set(moves)) == 1968
    assert rules_of("chess").vocabulary() == moves


def test_a_record_is_read_whatever_stands_between_its_moves() -> None:
    plain = RULES.split("e4 e5 Nf3 Nc6 Bb5")
    assert plain == ["e2e4", "e7e5", "g1f3", "b8c6", "f1b5"]
    annotated = (
        "1. e4 {best by test (they say)} e5 $1 2.Nf3! (2. f4 exf4 (2... d5)) 2... Nc6?! ; so\n3. Bb5 *"
    )
    assert RULES.split(annotated) == plain
    assert RULES.split("e2e4 e7e5 g1f3 b8c6 f1b5") == plain


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ("e4 e5 Nf6", 3, "2.Nf6: no knight can go to f6"),
        ("e4 e5 Bb5 e4", 4, "2...e4: no pawn can go to e4"),
        ("e4 e5 O-O", 3, "2.O-O: the king on e1 cannot go to g1"),
        ("e2e5", 1, "1.e2e5: the pawn on e2 cannot go to e5"),
        ("e7e5", 1, "1.e7e5: the piece on e7 is the other side's"),
        ("e4 f6 d4 g5 Qh5# a6", 6, "3...a6: no pawn can go to a6"),
        ("e2e4 f7f6 d2d4 g7g5 d1h5 a7a6", 6, "3...a7a6: a7a6 leaves the king in check"),
        ("e3 e6 Nc3 a6 Nge2 a5 Nd4 a4 Nb5", 9, "5.Nb5: the knights on c3 and d4 can both go to b5"),
    ],
)
def test_what_cannot_be_played_is_named(text: str, number: int, message: str) -> None:
    moves = RULES.split(text)
    (flaw,) = RULES.flaws([moves])
    assert (flaw, len(moves)) == (Flaw(number, message), number)


def test_what_is_no_move_is_named() -> None:
    with pytest.raises(Unreadable, match=r"move 3: 2\.hello: this is no move") as caught:
        RULES.split("e4 e5 hello")
    assert caught.value.before == ["e2e4", "e7e5"]


def test_moves_from_elsewhere_are_judged_too() -> None:
    assert RULES.flaws([["e2e4", "e7e5"], ["e2e4", "e2e4"]]) == [
        None,
        Flaw(2, "no piece stands on e2"),
    ]


def test_a_pawn_says_what_it_becomes_and_takes_in_passing() -> None:
    position = board("7k/P7/8/8/8/8/8/K7 w - - 0 1")
    assert read(position, "a8=N") == "a7a8n"
    with pytest.raises(ValueError, match="must name what the pawn becomes"):
        read(position, "a8")
    passing = RULES.replay(["e2e4", "a7a6", "e4e5", "d7d5", "e5d6"])
    assert passing.squares[NUMBER["d5"]] == ord(".")


def test_what_a_move_wins_is_told_for_the_greedy_opponent() -> None:
    position = RULES.replay(["e2e4", "d7d5"])
    assert RULES.gain(position, "e4d5") == 1
    assert RULES.gain(position, "a2a3") == 0
    assert RULES.gain(board("7k/P7/8/8/8/8/8/K7 w - - 0 1"), "a7a8q") == 8
    mate = RULES.replay(["f2f3", "e7e5", "g2g4"])
    assert RULES.gain(mate, "d8h4") == 1000
    assert RULES.result(RULES.play(mate, "d8h4")) == -1


def test_a_board_is_seen_from_the_side_to_move() -> None:
    position = RULES.play(START, "e2e4")  # Black to move
    names = RULES.squares_named()
    seen = dict(zip(names, (RULES.contents[code] for code in RULES.squares(position)), strict=True))
    assert (seen["e4"], seen["e8"], seen["e2"]) == ("their pawn", "my king", "empty")
    seen = dict(zip(names, (RULES.absolute[code] for code in RULES.squares(position, True)), strict=True))
    assert (seen["e4"], seen["d8"], seen["h1"]) == ("white pawn", "black queen", "white rook")


def test_bare_kings_and_75_quiet_moves_end_a_game() -> None:
    assert RULES.over(board("7k/8/8/8/8/8/8/KN6 w - - 0 1"))
    assert not RULES.over(board("7k/8/8/8/8/8/7p/K7 w - - 0 1"))
    assert RULES.over(board("7k/8/8/8/8/8/7p/K7 w - - 150 1"))
