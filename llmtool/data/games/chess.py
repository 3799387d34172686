"""Chess: the rules on a board of 64 bytes; moves are written as UCI does (`e2e4`, `e7e8q`, castling `e1g1`).

A square is 8 * rank + file, a1 is 0. Records may be written in standard algebraic notation (`Nf3`), with
comments, variations and move numbers between the moves, or in UCI's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from llmtool.data.games import notation
from llmtool.data.games.rules import Flaw, Rules, Unreadable

FILES, RANKS = "abcdefgh", "12345678"
SQUARES = [file + rank for rank in RANKS for file in FILES]
NUMBER = {name: number for number, name in enumerate(SQUARES)}
EMPTY = ord(".")
VALUES = {"p": 1, "n": 3, "b": 3, "r": 5, "q": 9, "k": 0}  # the usual worth of the pieces, in pawns
NAMES = ("pawn", "knight", "bishop", "rook", "queen", "king")
STRAIGHT, DIAGONAL = ((0, 1), (1, 0), (0, -1), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1))
JUMPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))
# What stays of the rights to castle (1 White's king side, 2 queen side, 4 and 8 Black's), a square touched.
KEPT = {0: 13, 4: 12, 7: 14, 56: 7, 60: 3, 63: 11}
QUIET = 150  # half-moves without a pawn's move or a capture, after which a game ends (the laws' 75 moves)


def _steps(square: int, ways: Sequence[tuple[int, int]], far: bool) -> tuple[tuple[int, ...], ...]:
    """Of each way, the squares that lie on it, the nearest first."""
    rank, file = divmod(square, 8)
    found = []
    for up, right in ways:
        ray = []
        for distance in range(1, 8 if far else 2):
            r, f = rank + up * distance, file + right * distance
            if not (0 <= r < 8 and 0 <= f < 8):
                break
            ray.append(8 * r + f)
        if ray:
            found.append(tuple(ray))
    return tuple(found)


_ROOK = [_steps(square, STRAIGHT, True) for square in range(64)]
_BISHOP = [_steps(square, DIAGONAL, True) for square in range(64)]
_QUEEN = [_ROOK[square] + _BISHOP[square] for square in range(64)]
_KNIGHT = [sum(_steps(square, JUMPS, False), ()) for square in range(64)]
_KING = [sum(_steps(square, STRAIGHT + DIAGONAL, False), ()) for square in range(64)]
# _PAWN[white][square]: where a pawn of that side on that square takes.
_PAWN = [
    [sum(_steps(square, ((way, 1), (way, -1)), False), ()) for square in range(64)] for way in (-1, 1)
]  # fmt: skip
_RAYS = {"b": _BISHOP, "r": _ROOK, "q": _QUEEN}


class Board(NamedTuple):
    """squares: 64 bytes, `PNBRQK` White's and `pnbrqk` Black's, `.` empty; white: whether White is to move.

    castling: the rights that are left, as in KEPT. passant: the square behind a pawn that has just gone two,
    else -1. quiet: half-moves since a pawn moved or a piece was taken.
    """

    squares: bytes
    white: bool
    castling: int
    passant: int
    quiet: int


START = Board(b"RNBQKBNRPPPPPPPP" + b"." * 32 + b"pppppppprnbqkbnr", True, 15, -1, 0)


class Played(list[str]):
    """Moves that have been played up to the last one, which is the flaw where there is one."""

    flaw: Flaw | None = None


class Chess(Rules[Board]):
    """White begins; the game ends by mate, stalemate, too little material, or 75 moves without progress."""

    name = "chess"
    sides = ("white", "black")
    board: ClassVar[tuple[int, int]] = (8, 8)
    contents = ("empty", *(f"my {piece}" for piece in NAMES), *(f"their {piece}" for piece in NAMES))
    absolute = ("empty", *(f"white {piece}" for piece in NAMES), *(f"black {piece}" for piece in NAMES))
    finishes = False

    def vocabulary(self) -> list[str]:
        """The 1,968 ways from square to square that any piece has, a pawn's promotions apart."""
        moves = []
        for square, name in enumerate(SQUARES):
            targets = {*_KNIGHT[square], *(target for ray in _QUEEN[square] for target in ray)}
            moves += [name + SQUARES[target] for target in sorted(targets)]
            if square // 8 in (1, 6):
                way = 8 if square // 8 == 6 else -8
                ends = sorted({square + way, *_PAWN[way > 0][square]})
                moves += [name + SQUARES[end] + piece for end in ends for piece in "qrbn"]
        return moves

    def parts(self, move: str) -> tuple[str, ...]:
        """From where, to where, and what a pawn becomes."""
        return (f"from {move[:2]}", f"to {move[2:4]}", *move[4:])

    def split(self, text: str) -> list[str]:
        """Moves in algebraic notation or UCI's, without the numbers, comments, variations and marks around
        them. Algebraic notation is read by playing, so what comes back has been judged (`flaws`)."""
        position, moves = START, Played()
        for word in notation.words(text):
            try:
                move = read(position, word)
            except ValueError as error:
                number = f"{len(moves) // 2 + 1}.{'..' if len(moves) % 2 else ''}{word}"
                if not notation.is_move(word):
                    raise Unreadable(moves, f"{number}: {error}") from None
                moves.flaw = Flaw(len(moves) + 1, f"{number}: {error}")
                moves.append(word)
                break
            position = self.after(position, move)
            moves.append(move)
        return moves

    def flaws(self, games: Sequence[Sequence[str]]) -> list[Flaw | None]:
        """What `split` has found; other moves are played."""
        return [moves.flaw if isinstance(moves, Played) else self._flaw(moves) for moves in games]

    def start(self) -> Board:
        """All pieces on their first squares, White to move."""
        return START

    def legal(self, position: Board) -> list[str]:
        """The moves that do not leave one's king to be taken."""
        return sorted(_legal(position), key=_ORDER.__getitem__)

    def play(self, position: Board, move: str) -> Board:
        """Castling moves the rook too, a pawn that takes in passing removes the other's."""
        check(position, move)
        return self.after(position, move)

    def mover(self, position: Board) -> int:
        """0 for White."""
        return 0 if position.white else 1

    def over(self, position: Board) -> bool:
        """Mate, stalemate, kings with at most one minor piece, or 75 moves without a pawn's or a capture."""
        if position.quiet >= QUIET or _bare(position.squares):
            return True
        return next(_legal(position), None) is None

    def result(self, position: Board) -> int:
        """1 where Black is mated, -1 where White is, else a draw."""
        if next(_legal(position), None) is not None or not in_check(position):
            return 0
        return -1 if position.white else 1

    def gain(self, position: Board, move: str) -> float:
        """The worth of what is taken, and of what a pawn becomes; a mate is worth more than anything."""
        after = self.after(position, move)
        if in_check(after) and next(_legal(after), None) is None:
            return 1000.0
        return _material(after.squares, position.white) - _material(position.squares, position.white)

    def squares(self, position: Board, absolute: bool = False) -> np.ndarray:
        """Piece by piece; the eighth rank first."""
        table = _CODES[int(not absolute and not position.white)]
        return table[np.frombuffer(position.squares, np.uint8)].reshape(8, 8)[::-1].reshape(64).copy()

    def squares_named(self) -> list[str]:
        """a8 to h8 first, as a board is drawn with White below."""
        return [file + rank for rank in reversed(RANKS) for file in FILES]

    def after(self, position: Board, move: str) -> Board:
        """The position after a move that is known to be legal."""
        source, target, white = NUMBER[move[:2]], NUMBER[move[2:4]], position.white
        squares = bytearray(position.squares)
        piece, taken = squares[source], squares[target]
        pawn = piece | 32 == 112  # "p"
        squares[source], squares[target] = EMPTY, piece
        passant = -1
        if pawn:
            if target == position.passant:
                squares[target - 8 if white else target + 8] = EMPTY
            elif abs(target - source) == 16:
                passant = (source + target) // 2
            if len(move) == 5:
                squares[target] = ord(move[4].upper() if white else move[4])
        elif piece | 32 == 107 and abs(target - source) == 2:  # "k"
            rook, beside = (source + 3, source + 1) if target > source else (source - 4, source - 1)
            squares[rook], squares[beside] = EMPTY, squares[rook]
        castling = position.castling & KEPT.get(source, 15) & KEPT.get(target, 15)
        quiet = 0 if pawn or taken != EMPTY else position.quiet + 1
        return Board(bytes(squares), not white, castling, passant, quiet)


_ORDER = {move: number for number, move in enumerate(Chess().vocabulary())}
_CODES = np.zeros((2, 256), np.int8)  # [seen from Black's side, piece] -> index into contents
for _number, _piece in enumerate("PNBRQKpnbrqk"):
    _CODES[0, ord(_piece)] = _number + 1
    _CODES[1, ord(_piece)] = (_number + 6) % 12 + 1


# --- what stands where ------------------------------------------------------------------------------------


def attacked(squares: bytes, square: int, white: bool) -> bool:
    """Whether White (or Black) could take on this square."""
    king, queen, rook, bishop, knight, pawn = b"KQRBNP" if white else b"kqrbnp"
    for other in _KNIGHT[square]:
        if squares[other] == knight:
            return True
    for rays, slider in ((_ROOK, rook), (_BISHOP, bishop)):
        for ray in rays[square]:
            for other in ray:
                piece = squares[other]
                if piece != EMPTY:
                    if piece in (slider, queen):
                        return True
                    break
    for other in _PAWN[not white][square]:  # a pawn takes from where one of the other side would take it
        if squares[other] == pawn:
            return True
    return any(squares[other] == king for other in _KING[square])


def in_check(position: Board) -> bool:
    """Whether the king of the side to move could be taken."""
    king = position.squares.find(b"K" if position.white else b"k")
    return attacked(position.squares, king, not position.white)


def check(position: Board, move: str) -> None:
    """ValueError, which says why, unless the move is legal."""
    if move not in _ORDER:
        raise ValueError(f"{move!r} is no move of chess")
    source, target = NUMBER[move[:2]], NUMBER[move[2:4]]
    piece = position.squares[source]
    if piece == EMPTY:
        raise ValueError(f"no piece stands on {move[:2]}")
    if (piece < 97) != position.white:
        raise ValueError(f"the piece on {move[:2]} is the other side's")
    if target not in _targets(position, source):
        raise ValueError(f"the {_name(piece)} on {move[:2]} cannot go to {move[2:4]}")
    last = target // 8 in (0, 7) and piece | 32 == 112
    if last != (len(move) == 5):
        raise ValueError(f"{move} {'must name what the pawn becomes' if last else 'promotes no pawn'}")
    if not _safe(position, source, target):
        raise ValueError(f"{move} leaves the king in check")


def _name(piece: int) -> str:
    return NAMES["pnbrqk".index(chr(piece).lower())]


def _targets(position: Board, source: int) -> Iterator[int]:
    """Where the piece on `source` may go, whatever becomes of its king; castling is safe already."""
    squares, white = position.squares, position.white
    piece = chr(squares[source] | 32)
    if piece == "p":
        yield from _pawn_targets(position, source)
        return
    if piece in _RAYS:
        for ray in _RAYS[piece][source]:
            for target in ray:
                other = squares[target]
                if other == EMPTY:
                    yield target
                    continue
                if (other < 97) != white:
                    yield target
                break
        return
    for target in (_KNIGHT if piece == "n" else _KING)[source]:
        other = squares[target]
        if other == EMPTY or (other < 97) != white:
            yield target
    if piece == "k":
        yield from _castling(position, source)


def _pawn_targets(position: Board, source: int) -> Iterator[int]:
    squares, white = position.squares, position.white
    way = 8 if white else -8
    if squares[source + way] == EMPTY:
        yield source + way
        if source // 8 == (1 if white else 6) and squares[source + 2 * way] == EMPTY:
            yield source + 2 * way
    for target in _PAWN[white][source]:
        other = squares[target]
        if target == position.passant or (other != EMPTY and (other < 97) != white):
            yield target


def _castling(position: Board, king: int) -> Iterator[int]:
    """The king's two squares, where nothing stands between it and the rook and nobody attacks its way."""
    squares, white = position.squares, position.white
    rights = position.castling if white else position.castling >> 2
    if not rights & 3 or king != (4 if white else 60):
        return
    free = [step for step, right, empty in ((1, 1, (1, 2)), (-1, 2, (-1, -2, -3)))
            if rights & right and all(squares[king + by] == EMPTY for by in empty)]  # fmt: skip
    if free and not attacked(squares, king, not white):
        yield from (king + 2 * s for s in free if not attacked(squares, king + s, not white))


def _safe(position: Board, source: int, target: int) -> bool:
    """Whether one's king cannot be taken after going from source to target."""
    squares, white = bytearray(position.squares), position.white
    piece = squares[source]
    if target == position.passant and piece | 32 == 112:
        squares[target - 8 if white else target + 8] = EMPTY
    squares[source], squares[target] = EMPTY, piece
    king = squares.find(b"K" if white else b"k")
    return not attacked(bytes(squares), king, not white)


def _legal(position: Board) -> Iterator[str]:
    squares, white = position.squares, position.white
    king = squares.find(b"K" if white else b"k")
    checked = attacked(squares, king, not white)
    pinned = _lines(squares, king, white)
    for source, piece in enumerate(squares):
        if piece == EMPTY or (piece < 97) != white:
            continue
        pawn = piece | 32 == 112
        for target in _targets(position, source):
            risky = checked or source == king or source in pinned or (pawn and target == position.passant)
            if risky and not _safe(position, source, target):
                continue
            move = SQUARES[source] + SQUARES[target]
            if pawn and target // 8 in (0, 7):
                yield from (move + piece for piece in "qrbn")
            else:
                yield move


def _lines(squares: bytes, king: int, white: bool) -> set[int]:
    """One's own pieces that stand nearest to the king on a line: only these can be pinned."""
    found = set()
    for ray in _QUEEN[king]:
        for square in ray:
            piece = squares[square]
            if piece != EMPTY:
                if (piece < 97) == white:
                    found.add(square)
                break
    return found


def _material(squares: bytes, white: bool) -> int:
    """One's pieces less the other's, in pawns."""
    return sum(
        worth * (squares.count(mine.encode()) - squares.count(mine.swapcase().encode()))
        for piece, worth in VALUES.items()
        for mine in [piece.upper() if white else piece]
    )


def _bare(squares: bytes) -> bool:
    """Whether nobody can be mated any more: the kings, and at most one knight or bishop."""
    left = bytes(squares).translate(None, b".").lower()
    return len(left) <= 3 and set(left) <= set(b"kbn")


# --- algebraic notation -----------------------------------------------------------------------------------


def read(position: Board, word: str) -> str:
    """The move that a word of a record stands for. ValueError where there is none, or more than one."""
    if notation.UCI.fullmatch(word):
        move = word.lower()
        check(position, move)
        return move
    if castled := notation.CASTLING.fullmatch(word):
        king = 4 if position.white else 60
        move = SQUARES[king] + SQUARES[king - 2 if castled[2] else king + 2]
        if position.squares[king] | 32 != 107:
            raise ValueError("the king is not where it could castle")
        check(position, move)
        return move
    found = notation.SAN.fullmatch(word)
    if found is None:
        raise ValueError("this is no move")
    letter, file, rank, goal, becomes = found.groups()
    target, piece = NUMBER[goal], (letter or "P").lower()
    possible = [
        source
        for source in _sources(position, piece, target)
        if (file is None or source % 8 == FILES.index(file))
        and (rank is None or source // 8 == int(rank) - 1)
    ]
    possible = [source for source in possible if _safe(position, source, target)]
    if len(possible) != 1:
        name = _name(ord(piece))
        if not possible:
            raise ValueError(f"no {name} can go to {goal}")
        both = " and ".join(SQUARES[source] for source in possible)
        raise ValueError(f"the {name}s on {both} can both go to {goal}")
    last = piece == "p" and target // 8 in (0, 7)
    if last != (becomes is not None):
        raise ValueError("it must name what the pawn becomes" if last else "it promotes no pawn")
    return SQUARES[possible[0]] + goal + (becomes or "").lower()


def _sources(position: Board, piece: str, target: int) -> Iterator[int]:
    """Where pieces of one kind stand that may go to `target`, whatever becomes of the king."""
    squares, white = position.squares, position.white
    own = ord(piece.upper() if white else piece)
    other = squares[target]
    if other != EMPTY and (other < 97) == white:
        return
    if piece == "p":
        yield from (
            source
            for source in range(8, 56)
            if squares[source] == own and target in _pawn_targets(position, source)
        )
    elif piece in _RAYS:
        for ray in _RAYS[piece][target]:
            for source in ray:
                if squares[source] != EMPTY:
                    if squares[source] == own:
                        yield source
                    break
    else:
        yield from (s for s in (_KNIGHT if piece == "n" else _KING)[target] if squares[s] == own)
