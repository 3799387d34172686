"""Sources of game records: the WTHOR files of the French Othello federation, and random Othello games."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from llmtool.core.errors import DataError
from llmtool.data import readers
from llmtool.data.games.othello import SQUARES
from llmtool.data.games.othello_many import BLOCK, random_games
from llmtool.data.readers import BadRow, BrokenFile
from llmtool.data.sampling import Thin
from llmtool.data.sources import Chunk, Layout, Record, RowSource, Source, frame

HEADER, RECORD = 16, 68  # bytes
COLUMNS = ["moves", "black_discs", "year", "black", "white", "tournament"]
# What a byte of a record stands for: ten times the row plus the column, from 1; 0 for no move.
_NAMES = ["", *(f"{'abcdefgh'[byte % 10 - 1]}{byte // 10}" if 1 <= byte % 10 <= 8 and 1 <= byte // 10 <= 8
                else f"?{byte}" for byte in range(1, 256))]  # fmt: skip


class WthorSource(Source):
    """Othello games as WTHOR files hold them (https://www.ffothello.org/wthor/Format_WThor.pdf): columns
    moves, black_discs, year, and the numbers of black, white and the tournament."""

    suffixes: ClassVar[tuple[str, ...]] = (".wtb",)

    format: Literal["wthor"]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        layout.columns = list(COLUMNS)
        found = readers.blocks(path)
        held = b""
        while len(held) < HEADER and (block := next(found, b"")):
            held += block
        games, year = wthor_header(path, held)
        held = held[HEADER:]
        number = 0
        while number < games:
            while len(held) < RECORD and (block := next(found, b"")):
                held += block
            if len(held) < RECORD:
                raise BrokenFile(f"{path}: its header says {games:,} games, and it ends after {number:,}")
            whole = min(len(held) // RECORD, games - number)
            yield from _games(path, held[: whole * RECORD], year, number, layout.thin)
            number, held = number + whole, held[whole * RECORD :]
        if held or next(found, b""):
            raise DataError(f"{path}: its header says {games:,} games, and it goes on after them")


def wthor_header(path: Path, head: bytes) -> tuple[int, int]:
    """How many games a WTHOR file has and the year in which they were played, by its first HEADER bytes.
    DataError where these are no header."""
    if len(head) < HEADER:
        raise DataError(f"{path}: {len(head)} bytes; a WTHOR file begins with {HEADER}")
    if not 1 <= head[2] <= 12 or not 1 <= head[3] <= 31:
        raise DataError(f"{path}: no WTHOR file (bytes 3 and 4 are {head[2]}.{head[3]}, no month and day)")
    if head[12] not in (0, 8):
        raise DataError(f"{path}: games on a board of {head[12]} x {head[12]}; only 8 x 8 is read")
    return int.from_bytes(head[4:8], "little"), int.from_bytes(head[10:12], "little")


def _games(path: Path, data: bytes, year: int, before: int, thin: Thin | None) -> Iterator[Record | BadRow]:
    for at in range(0, len(data), RECORD):
        if thin is not None and not thin.keeps(RECORD):
            continue
        record, number = data[at : at + RECORD], before + at // RECORD + 1
        names = [_NAMES[byte] for byte in record[8:]]
        count = names.index("") if "" in names else len(names)
        moves = names[:count]
        text = " ".join(moves)
        tournament, black, white = (int.from_bytes(record[i : i + 2], "little") for i in (0, 2, 4))
        row = [text, str(record[6]), str(year), str(black), str(white), str(tournament)]
        if any(names[count:]):
            yield BadRow(str(path), number, f"move {count + 1} is missing, others follow", text, row)
        elif "?" in text:
            wrong = next(place for place, name in enumerate(moves) if name[0] == "?")
            yield BadRow(str(path), number, f"move {wrong + 1} is no square: {record[8 + wrong]}", text, row)
        else:
            yield number, row


class OthelloRandomSource(RowSource):
    """Othello games in which every legal move was as likely as the others: column moves. Game i of a seed is
    the same however many there are."""

    format: Literal["othello_random"]
    games: int = Field(gt=0, le=100_000_000, description="how many are made up")
    seed: int = Field(default=0, ge=0, description="other seeds give other games")

    def read(self, rows: int = 8192) -> Iterator[Chunk]:
        """The games from the first on."""
        most = min(rows, BLOCK)
        for first in range(0, self.games, most):
            squares = random_games(self.seed, first, min(most, self.games - first))
            texts = [" ".join([SQUARES[move] for move in game if move >= 0]) for game in squares.tolist()]
            index = np.arange(first, first + len(texts), dtype=np.int64)
            file = np.zeros(len(texts), np.int32)
            characters = sum(map(len, texts))
            yield Chunk(frame(["moves"], texts, index), index, file, index + 1, characters=characters)

    def names(self) -> list[str]:
        """What places of rows are called."""
        return [f"othello_random {self.seed}"]

    def shortened(self, characters: int) -> OthelloRandomSource:
        """So many of the first games that they have about this many characters."""
        return self.model_copy(update={"games": max(1, min(self.games, characters // 180))})
