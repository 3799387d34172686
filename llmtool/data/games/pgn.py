"""Games of chess in Portable Game Notation: a row for each game, its tags as columns, its moves as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from llmtool.core.errors import DataError
from llmtool.data import readers
from llmtool.data.readers import BadRow
from llmtool.data.sources import DecodedSource, Layout, Record

TAGS = {
    "Event": "event", "Site": "site", "Date": "date", "Round": "round", "White": "white", "Black": "black",
    "Result": "result", "WhiteElo": "white_elo", "BlackElo": "black_elo", "ECO": "eco",
    "TimeControl": "time_control", "Variant": "variant", "FEN": "fen",
}  # fmt: skip
LONGEST = 1 << 20  # characters of a game; with a comment at every move it has some ten thousand
START = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq"  # as FEN writes it
ORDINARY = ("", "?", "standard", "normal", "chess", "from position")  # what Variant says of ordinary chess
_TAG = re.compile(r'\s*\[\s*(\w+)\s+"((?:[^"\\]|\\.)*)"\s*\]\s*$')
_ESCAPED = re.compile(r'\\(["\\])')


class PgnSource(DecodedSource):
    """Chess games. Columns: moves (as they stand, with their comments), event, site, date, round, white,
    black, result, white_elo, black_elo, eco, time_control, variant and fen, where a game has these tags."""

    suffixes: ClassVar[tuple[str, ...]] = (".pgn",)

    format: Literal["pgn"]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        layout.columns = ["moves", *TAGS.values()]
        found = 0
        for game in _games(path, self.encoding):
            found += 1
            if layout.thin is None or layout.thin.keeps(game.size):
                problem = game.problem(self.encoding)
                row = game.row()
                bad = BadRow(str(path), game.line, problem, str(row["moves"]), row) if problem else None
                yield bad or (game.line, row)
        if not found:
            raise DataError(f'{path}: no game in it; games of PGN begin with tags, as in [Event "..."]')


@dataclass
class _Game:
    """The lines of one game; line: where it begins, from 1."""

    line: int
    tags: dict[str, str] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    size: int = 0
    whole: bool = True
    commented: bool = False  # whether a comment that has begun goes on

    def problem(self, encoding: str) -> str:
        """Why this game cannot be used, or nothing."""
        if not self.whole:
            return f"a game of more than {LONGEST:,} characters"
        if self.commented:
            return "a comment begins with { and never ends"
        if not self.tags.get("FEN", START).startswith(START):
            return "begins from another position (its tag FEN)"
        if (variant := self.tags.get("Variant", "")).lower() not in ORDINARY:
            return f"of another game (its tag Variant is {variant[:40]!r})"
        flaws = (readers.flaw(part, encoding) for part in (*self.tags.values(), *self.text))
        return next((flaw for flaw in flaws if flaw), "")

    def row(self) -> dict[str, str | None]:
        moves = "\n".join(self.text).strip()
        return {"moves": moves or None, **{name: self.tags.get(tag) or None for tag, name in TAGS.items()}}

    def add(self, text: str, complete: bool) -> None:
        """Take in a line of moves."""
        self.size += len(text)
        self.whole = self.whole and complete and self.size <= LONGEST
        if self.whole:
            self.text.append(text)
        for sign in re.findall(r"[{};]", text):
            if sign == ";" and not self.commented:
                break  # the rest of the line is a comment
            self.commented = sign == "{" or (self.commented and sign != "}")


def _games(path: Path, encoding: str) -> Iterator[_Game]:
    """A game ends where the tags of the next begin; inside a comment a line may look like a tag."""
    game: _Game | None = None
    for number, text, complete in readers.lines(path, encoding, LONGEST):
        tag = None if game is not None and game.commented and not _begins(text) else _TAG.match(text)
        if tag is not None:
            if game is None or game.text:
                if game is not None:
                    yield game
                game = _Game(number)
            game.tags.setdefault(tag[1], _ESCAPED.sub(r"\1", tag[2]))
            game.size += len(text)
        elif text.strip() and not text.startswith("%"):
            game = game or _Game(number)
            game.add(text, complete)
    if game is not None:
        yield game


def _begins(text: str) -> bool:
    """Whether a line is what every game begins with: a comment that never ends costs one game."""
    return text.startswith("[Event ")
