"""The `moves` encoding: every move of a game is a token, and every record is played by the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from llmtool.core.config import Section
from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.encoding import Chunks, Refusals
from llmtool.data.features import find_column
from llmtool.data.games import Game, rules_of
from llmtool.data.games.rules import Rules, Unreadable
from llmtool.data.store import ArrayWriter
from llmtool.data.tokenizers import FittedTokenizer

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

START = "<start>"
MISSING, EMPTY = "no record", "a record without moves"
GARBLED, ILLEGAL, EARLY = "a move that cannot be read", "an illegal move", "a record that ends early"


class MovesEncode(Section):
    """Records of games, a token for each move, for language models."""

    gives: ClassVar[type] = Tokens
    like: ClassVar[None] = None  # the rules give the vocabulary
    as_: Literal["moves"] = Field(
        default="moves", alias="as", description="Records of games, a token for each move."
    )
    game: Game = Field(description="Whose rules the records are played by.")
    moves: str = Field(default="moves", description="The column that holds the moves of a game.")
    illegal: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="A record with a move that is illegal or unreadable is quarantined, or kept up to it.",
    )
    unfinished: Literal["auto", "keep", "refuse"] = Field(
        default="auto",
        description="A record that stops before the rules end the game; auto: refused of games that are "
        "played to their end (Othello).",
    )
    length: int | None = Field(
        default=None, gt=1, description="Moves kept of a longer game; default: all of them."
    )
    packing: bool = Field(
        default=True,
        description="In training, short games share a row, kept apart by a mask; false: one a row.",
    )

    def files(self) -> list[Path]:
        """Nothing is read besides the source."""
        return []

    def build(self, seed: int = 0) -> MovesEncoder:
        """Nothing is learned: the rules say which moves there are."""
        return MovesEncoder(self)


def tokenizer_of(rules: Rules[Any]) -> FittedTokenizer:
    """The moves with a blank between them; token 0 begins a game, the others follow the rules' vocabulary."""
    moves = rules.vocabulary()
    numbers = {token: number for number, token in enumerate([START, *moves])}
    tokenizer = Tokenizer(models.WordLevel(vocab=numbers))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(START, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, 0)]
    )
    return FittedTokenizer("moves", tokenizer, len(numbers), end=None, begin=0)


def parts_of(game: str) -> list[tuple[str, ...]]:
    """Of each token what its move is put together of; nothing of the one that begins a game."""
    rules = rules_of(game)
    return [(), *(rules.parts(move) for move in rules.vocabulary())]


@dataclass(frozen=True)
class Judged:
    """A record as the rules see it: the moves that are kept, or why there are none, and where that is."""

    moves: Sequence[str]
    reason: str = ""
    detail: str = ""


class MovesEncoder:
    """Reads and judges records."""

    encoded = None  # its games have been read when rows were refused

    def __init__(self, config: MovesEncode) -> None:
        self.config, self.rules = config, rules_of(config.game)
        self.fitted = tokenizer_of(self.rules)
        self.notes: list[str] = []

    def columns(self, available: list[str]) -> list[str]:
        """The column of moves; ConfigError where the data lacks it."""
        find_column(self.config.moves, available, "moves")
        return [self.config.moves]

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows whose record cannot be used, and at which move that shows."""
        judged = self.judge(frame[self.config.moves].tolist())
        rows = zip(frame.index.tolist(), judged, strict=True)
        reasons = dict.fromkeys(one.reason for one in judged if one.reason)
        return Refusals(
            bad={reason: np.array([one.reason == reason for one in judged]) for reason in reasons},
            details={row: one.detail for row, one in rows if one.detail and one.reason},
            alike=frame.assign(**{self.config.moves: [" ".join(one.moves) for one in judged]}),
        )

    def judge(self, cells: Sequence[Any]) -> list[Judged]:
        """What each cell's record is worth."""
        found = [self._read(cell) for cell in cells]
        readable = [at for at, one in enumerate(found) if one.moves]
        flaws = self.rules.flaws([found[at].moves for at in readable])
        for at, flaw in zip(readable, flaws, strict=True):
            if flaw is not None:
                found[at] = self._wrong(found[at].moves[: flaw.move - 1], ILLEGAL, str(flaw))
        unfinished = self.config.unfinished
        if unfinished == "refuse" or (unfinished == "auto" and self.rules.finishes):
            whole = [at for at, one in enumerate(found) if one.moves and not one.detail]
            ended = self.rules.ended([found[at].moves for at in whole])
            for at, over in zip(whole, ended, strict=True):
                if not over:
                    count = len(found[at].moves)
                    found[at] = Judged([], EARLY, f"after move {count} the game goes on")
        most = self.config.length
        return [Judged(one.moves[:most], one.reason, one.detail) for one in found]

    def _read(self, cell: Any) -> Judged:
        if not isinstance(cell, str):
            return Judged([], MISSING)
        try:
            moves = self.rules.split(cell)
        except Unreadable as error:
            return self._wrong(error.before, GARBLED, str(error))
        return Judged(moves) if moves else Judged([], EMPTY)

    def _wrong(self, before: Sequence[str], reason: str, detail: str) -> Judged:
        """Refused, or kept up to the move in question; then the detail alone says that it was cut."""
        if self.config.illegal == "cut" and before:
            return Judged(before, "", detail)
        return Judged([], reason, detail)

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """Moves have no target: ConfigError."""
        raise ConfigError(
            "data.split.by: stratified needs a target, games have none; name a column with `on`"
        )

    def fit(self, chunks: Chunks) -> None:
        """Learns nothing."""

    @property
    def inputs(self) -> dict[str, Any]:
        """{"kind": "tokens", "vocabulary": V}."""
        return {"kind": "tokens", "vocabulary": self.fitted.vocabulary}

    @property
    def targets(self) -> dict[str, Any]:
        """{"kind": "next_token", "vocabulary": V, "game": its name}."""
        return {"kind": "next_token", "vocabulary": self.fitted.vocabulary, "game": self.config.game}

    def writer(self, directory: Path, split: str) -> MovesWriter:
        """Writes `{split}.tokens.bin`, `.documents.bin`, `.origin.bin`, and the tokenizer's files."""
        self.fitted.save(directory)
        return MovesWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """The game and its vocabulary."""
        tokenizer = self.fitted.state()
        config = self.config
        return {
            "as": "moves",
            "game": config.game,
            "moves": config.moves,
            "packing": config.packing,
            "tokenizer": tokenizer,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> MovesEncoder:
        """As it was. DataError where the game or its vocabulary are other ones here."""
        packing = state.get("packing", False)  # data from before there was the key
        try:
            encoder = cls(MovesEncode(game=state["game"], moves=state["moves"], packing=packing))
            known = state["tokenizer"]["hash"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        if encoder.fitted.state()["hash"] != known:
            raise DataError(f"{directory}: was prepared with another vocabulary of moves; prepare it again")
        return encoder


class MovesWriter:
    """tokens (n,) uint16, documents (d,) int64 ends of games, origin (d, 2) int64: file and line of each."""

    def __init__(self, encoder: MovesEncoder, directory: Path, split: str) -> None:
        self._encoder, self._split = encoder, split
        dtype = "<u2" if encoder.fitted.vocabulary < 1 << 16 else "<u4"
        self._tokens = ArrayWriter(directory / f"{split}.tokens.bin", dtype)
        self._documents = ArrayWriter(directory / f"{split}.documents.bin", "<i8")
        self._origin = ArrayWriter(directory / f"{split}.origin.bin", "<i8", (2,))
        self._numbers = {START: 0} | {m: at for at, m in enumerate(encoder.rules.vocabulary(), 1)}
        self._longest, self._cut = 0, Counter[str]()
        self._shortest: list[int] = []  # moves of the two shortest games

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Write these games; refuses none that `refuse` has not named."""
        frame, most = chunk.frame, self._encoder.config.length
        refused: dict[int, str] = {}
        numbers: list[int] = []
        ends: list[int] = []
        places: list[tuple[int, int]] = []
        rows = zip(frame.index.tolist(), chunk.file.tolist(), chunk.line.tolist(), strict=True)
        judged = self._encoder.judge(frame[self._encoder.config.moves].tolist())
        for one, (ordinal, file, line) in zip(judged, rows, strict=True):
            if one.reason:
                refused[ordinal] = one.reason
                continue
            numbers += [0, *(self._numbers[move] for move in one.moves)]
            ends.append(len(numbers))
            places.append((file, line))
            self._longest = max(self._longest, len(one.moves))
            self._shortest = sorted([*self._shortest, len(one.moves)])[:2]
            self._cut["at a move that is illegal or cannot be read"] += bool(one.detail)
            if most is not None and len(one.moves) == most:
                self._cut[f"to {most} moves, or are just so long"] += 1
        self._documents.append(np.array(ends, np.int64) + self._tokens.rows)
        self._tokens.append(np.array(numbers, dtype=self._tokens.dtype))
        self._origin.append(np.array(places, np.int64).reshape(-1, 2))
        return refused

    def close(self) -> dict[str, Any]:
        """Finish the files. whole: a game is one row of training and one unit of evaluation, never cut."""
        self._encoder.notes += [
            f"{self._split}: {count:,} games cut {how}" for how, count in self._cut.items() if count
        ]
        arrays = {"tokens": self._tokens, "documents": self._documents, "origin": self._origin}
        return {
            "rows": self._documents.rows,
            "tokens": self._tokens.rows,
            "documents": self._documents.rows,
            "longest": self._longest,
            "two_shortest": sum(self._shortest),
            "whole": True,
            "arrays": {name: array.close() for name, array in arrays.items()},
        }
