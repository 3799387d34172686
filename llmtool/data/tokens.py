"""The `tokens` encoding: texts become one stream of token ids with the ends of its documents."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core.config import Section
from llmtool.core.contracts import Tokens
from llmtool.core.engine import Engine, Packed, Pending
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.encoding import Chunks, Refusals
from llmtool.data.features import find_column
from llmtool.data.store import CARD, ArrayWriter, Dataset
from llmtool.data.tokenizers import (
    CONFIG,
    FILE,
    BpeTokenizer,
    FileTokenizer,
    FittedTokenizer,
    TokenizerConfig,
    utf8_length,
)

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

BLOCK = 1 << 13  # characters of a document encoded at once; shorter and longer ones are slower, measured
BATCH = 1 << 20  # characters handed to the tokenizer's threads at once
BATCH_TEXTS = 1 << 12  # and at most so many texts
TAILS = (256, 4096)  # a block is cut at a word's border within its last characters, few or many
_CUTS = (re.compile(r"\S(?= \S)"), re.compile(r"\S\n(?=\S)"))


class TokensEncode(Section):
    """A stream of token ids for language models: which column is the text, how it is cut into tokens."""

    gives: ClassVar[type] = Tokens
    as_: Literal["tokens"] = Field(
        default="tokens", alias="as", description="Token ids, for language models."
    )
    text: str = Field(default="text", description="The column that holds the text.")
    tokenizer: TokenizerConfig = Field(default=BpeTokenizer(), description="How text is cut into tokens.")
    start_of_document: bool | None = Field(
        default=None,
        description="Put the begin token before every document; default: where a given tokenizer's own "
        "settings do.",
    )
    end_of_document: bool = Field(default=True, description="Add the end token after every whole document.")
    like: str | None = Field(
        default=None, description="A prepared directory whose tokenizer is used again, as it is."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set - {"as_", "like", "text"}
        if self.like is not None and given:
            raise ValueError(
                f"like takes the tokenizer as it is; {', '.join(sorted(given))} cannot stand beside it"
            )
        return self

    def files(self) -> list[Path]:
        """What preparing reads besides the source: the tokenizer's file, or that of `like`."""
        if self.like is not None:
            return files_of(Path(self.like))
        return self.tokenizer.files() if isinstance(self.tokenizer, FileTokenizer) else []

    def build(self, seed: int = 0) -> TokenEncoder:
        """An encoder that has learned nothing yet; with `like`, one that has its tokenizer."""
        return TokenEncoder(self) if self.like is None else _taken(self, self.like)


def files_of(like: Path) -> list[Path]:
    """What is taken from prepared data: its card, its tokenizer, and what says which tokens have a role."""
    config = like / CONFIG
    return [like / CARD, like / FILE, *([config] if config.is_file() else [])]


def _taken(config: TokensEncode, like: str) -> TokenEncoder:
    try:
        card = Dataset.open(like).card
        if card["encoder"].get("as") != "tokens":
            raise ConfigError(f"data.encode.like: {like} holds {card['encoding']}, not tokens")
        taken = TokenEncoder.from_state(card["encoder"], Path(like))
    except DataError as error:
        raise ConfigError(f"data.encode.like: {error}") from None
    taken.config = config
    return taken


class TokenEncoder:
    """Fits a tokenizer on the train texts, then writes any texts as token ids."""

    encoded = None  # documents go on from row to row; the writer has other processes tokenise

    def __init__(self, config: TokensEncode) -> None:
        self.config = config
        self.start_of_document, self.end_of_document = config.start_of_document, config.end_of_document
        self.tokenizer: FittedTokenizer | None = None
        self.notes: list[str] = []
        self.engine: Engine | None = None  # what tokenises for the writers; None: each has a thread for it
        self._saved: Path | None = None
        self._last: dict[int, int] = {}  # unit -> last ordinal that any split's writer has seen of it

    def columns(self, available: list[str]) -> list[str]:
        """The text column; ConfigError when the data lacks it."""
        find_column(self.config.text, available, "text")
        return [self.config.text]

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows whose text is missing, empty, no text, or not valid Unicode."""
        problems = [problem_of(value) for value in frame[self.config.text].tolist()]
        reasons = dict.fromkeys(problem for problem in problems if problem)
        name = self.config.text
        return Refusals({f"{name} {reason}": np.array([p == reason for p in problems]) for reason in reasons})

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """Tokens have no target: ConfigError."""
        raise ConfigError(
            "data.split.by: stratified needs a target, tokens have none; name a column with `on`"
        )

    def fit(self, chunks: Chunks) -> None:
        """Train the tokenizer, unless it was taken over."""
        if self.tokenizer is not None:
            return
        self.tokenizer = self.config.tokenizer.fit(lambda: self._blocks(chunks))
        self.notes += self.tokenizer.notes
        if self.start_of_document and self.tokenizer.begin is None:
            raise ConfigError(
                "data.encode.start_of_document: the tokenizer has no token that it puts before a text"
            )
        if self.end_of_document and self.tokenizer.end is None:
            raise ConfigError(
                "data.encode.tokenizer.end: the tokenizer has no known end token; name it, "
                "or set end_of_document: false"
            )

    def _blocks(self, chunks: Chunks) -> Iterator[str]:
        rows = 0
        joiner = _Joiner()
        for chunk in chunks:
            rows += len(chunk.frame)
            ordinals = chunk.frame.index.tolist()
            for text, unit, at in zip(
                chunk.frame[self.config.text], chunk.unit.tolist(), ordinals, strict=True
            ):
                if not problem_of(text):
                    yield from (block.text for block in joiner.add(text, unit, at))
        yield from (block.text for block in joiner.finish())
        if rows == 0:
            raise DataError("the train split has no rows; nothing can be learned from it")

    @property
    def fitted(self) -> FittedTokenizer:
        assert self.tokenizer is not None, "fit() comes first"
        return self.tokenizer

    @property
    def inputs(self) -> dict[str, Any]:
        """{"kind": "tokens", "vocabulary": V}."""
        return {"kind": "tokens", "vocabulary": self.fitted.vocabulary}

    @property
    def targets(self) -> dict[str, Any]:
        """{"kind": "next_token", "vocabulary": V}."""
        return {"kind": "next_token", "vocabulary": self.fitted.vocabulary}

    def writer(self, directory: Path, split: str) -> TokenWriter:
        """Writes `{split}.tokens.bin`, `.documents.bin` and `.origin.bin`, and the tokenizer's files once."""
        if self._saved != directory:
            self.fitted.save(directory)
            self._saved = directory
        return TokenWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """What tokenizer.json beside the card does not hold."""
        return {
            "as": "tokens",
            "text": self.config.text,
            "start_of_document": self.start_of_document,
            "end_of_document": self.end_of_document,
            "tokenizer": self.fitted.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> TokenEncoder:
        """The encoder whose `state()` this is, with tokenizer.json from `directory`."""
        try:
            begin, end = state.get("start_of_document"), state["end_of_document"]
            encoder = cls(TokensEncode(text=state["text"], start_of_document=begin, end_of_document=end))
            encoder.tokenizer = FittedTokenizer.from_state(state["tokenizer"], directory)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        return encoder

    def see(self, unit: int, ordinal: int) -> None:
        """A writer has this row; rows come in the order of the source, so old units can be forgotten."""
        self._last[unit] = max(ordinal, self._last.get(unit, ordinal))
        while len(self._last) > 64:
            del self._last[min(self._last)]

    def is_cut(self, unit: int, ordinal: int) -> bool:
        """Whether a later row of this unit went elsewhere: the document does not end here."""
        return self._last.get(unit, ordinal) > ordinal


@dataclass(slots=True)
class _Block:
    """A stretch of one document; `first`, `last`: nothing of it is before it, or follows, in this split."""

    text: str
    unit: int
    ordinal: int
    first: bool
    last: bool


class _Joiner:
    """Joins the pieces of a document into blocks of about BLOCK characters, cut where words end, or (not
    `cuts`) into one."""

    def __init__(self, cuts: bool = True) -> None:
        self._most = BLOCK + TAILS[-1] if cuts else sys.maxsize
        self._first = True
        self._pieces: list[str] = []
        self._characters, self.unit, self.ordinal = 0, -1, -1

    def add(self, text: str, unit: int, ordinal: int) -> Iterator[_Block]:
        """Take in a row; gives out the blocks that are complete."""
        if self._pieces and not (unit == self.unit and ordinal == self.ordinal + 1):
            yield from self.finish()
        self.unit, self.ordinal = unit, ordinal
        self._pieces.append(text)
        self._characters += len(text)
        if self._characters > self._most:
            joined = "".join(self._pieces)
            while len(joined) > self._most:
                at = cut(joined[: self._most])
                yield _Block(joined[:at], unit, ordinal, self._first, last=False)
                joined, self._first = joined[at:], False
            self._pieces, self._characters = [joined], len(joined)

    def finish(self) -> Iterator[_Block]:
        """The document is over as far as these rows go."""
        if self._pieces:
            yield _Block("".join(self._pieces), self.unit, self.ordinal, self._first, last=True)
        self._pieces, self._characters, self._first = [], 0, True


def cut(text: str) -> int:
    """Where to cut `text`, near its end, so that both sides split into words as the whole does."""
    for tail in TAILS:
        for pattern in _CUTS:
            places = [match.end() for match in pattern.finditer(text, max(len(text) - tail, 1))]
            if places:
                return places[-1]
    return len(text)


class TokenWriter:
    """tokens (n,), documents (d,) int64 ends, origin (d, 2) int64: file and line where each starts."""

    def __init__(self, encoder: TokenEncoder, directory: Path, split: str) -> None:
        self._encoder, self._tokenizer, self._split = encoder, encoder.fitted, split
        dtype = "<u2" if self._tokenizer.vocabulary < 1 << 16 else "<u4"
        self._tokens = ArrayWriter(directory / f"{split}.tokens.bin", dtype)
        self._documents = ArrayWriter(directory / f"{split}.documents.bin", "<i8")
        self._origin = ArrayWriter(directory / f"{split}.origin.bin", "<i8", (2,))
        self._joiner = _Joiner(cuts=self._tokenizer.is_local)
        self._begin = None if encoder.start_of_document is False else self._tokenizer.begin
        self._starts: deque[tuple[int, int]] = deque()  # file and line where the next documents start
        self._batch: list[_Block] = []
        self._characters = self._rows = self._bytes = self._unknown = 0
        self._engine = encoder.engine or Engine()
        self._work = _Encode(self._tokenizer)
        self._name = f"tokens-{self._tokenizer.state()['hash'][-16:]}-{split}"
        self._submitted = 0
        self._running: deque[tuple[list[_Block], Pending]] = deque()

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Take in these rows; refuses none but those that `refuse` names."""
        if len(chunk.frame) == 0:
            return {}
        refused: dict[int, str] = {}
        ordinals, units = chunk.frame.index.tolist(), chunk.unit.tolist()
        column = self._encoder.config.text
        places = zip(chunk.file.tolist(), chunk.line.tolist(), strict=True)
        for text, unit, ordinal, place in zip(chunk.frame[column], units, ordinals, places, strict=True):
            if problem := problem_of(text):
                refused[ordinal] = f"{column} {problem}"
                continue
            self._rows += 1
            if not (unit == self._joiner.unit and ordinal == self._joiner.ordinal + 1):
                self._starts.append(place)
            for block in self._joiner.add(text, unit, ordinal):
                self._push(block)
        self._encoder.see(units[0], _last_of(units[0], units, ordinals))
        self._encoder.see(units[-1], ordinals[-1])
        return refused

    def close(self) -> dict[str, Any]:
        """Encode and write what is left."""
        for block in self._joiner.finish():
            self._push(block)
        self._submit()
        while self._running:
            self._write(*self._running.popleft())
        if self._encoder.engine is None:
            self._engine.close()
        if self._unknown:
            self._encoder.notes.append(
                f"{self._split}: {self._unknown:,} of {self._tokens.rows:,} tokens are unknown ones"
            )
        arrays = {"tokens": self._tokens, "documents": self._documents, "origin": self._origin}
        return {
            "rows": self._rows,
            "tokens": self._tokens.rows,
            "documents": self._documents.rows,
            "bytes": self._bytes,
            "arrays": {name: array.close() for name, array in arrays.items()},
        }

    def _push(self, block: _Block) -> None:
        self._batch.append(block)
        self._characters += len(block.text)
        if self._characters >= BATCH or len(self._batch) >= BATCH_TEXTS:
            self._submit()

    def _submit(self) -> None:
        """Start encoding the batch; write the ones before while others work."""
        if self._batch:
            texts = [block.text for block in self._batch]
            name = f"{self._name}-{self._submitted:06d}"
            self._running.append((self._batch, self._engine.submit(self._work, texts, name)))
            self._submitted += 1
        self._batch, self._characters = [], 0
        while len(self._running) > self._engine.ahead:
            self._write(*self._running.popleft())

    def _write(self, blocks: list[_Block], pending: Pending) -> None:
        _, found = pending.result()
        ids, lengths = found["ids"], found["lengths"]
        if self._tokenizer.unknown is not None:
            self._unknown += int((ids == self._tokenizer.unknown).sum())
        self._bytes += sum(utf8_length(block.text) for block in blocks)
        last = np.fromiter((block.last for block in blocks), dtype=bool, count=len(blocks))
        ends = np.cumsum(lengths)
        if self._begin is not None:
            first = np.array([block.first for block in blocks], dtype=bool)
            ids = np.insert(ids.astype(self._tokens.dtype), (ends - lengths)[first], self._begin)
            ends = ends + np.cumsum(first)
        if self._encoder.end_of_document:
            closed = [block.last and not self._encoder.is_cut(block.unit, block.ordinal) for block in blocks]
            mask = np.array(closed, dtype=bool)
            assert self._tokenizer.end is not None
            ids = np.insert(ids.astype(self._tokens.dtype), ends[mask], self._tokenizer.end)
            ends = ends + np.cumsum(mask)
        starts = [self._starts.popleft() for _ in range(int(last.sum()))]
        self._documents.append(ends[last] + self._tokens.rows)
        self._origin.append(np.array(starts, dtype=np.int64).reshape(-1, 2))
        self._tokens.append(ids)


@dataclass(frozen=True)
class _Encode:
    """The ids of texts, one after the other, and how many each has."""

    tokenizer: FittedTokenizer

    def __call__(self, texts: list[str]) -> Packed:
        ids, lengths = self.tokenizer.ids(self.tokenizer.encode(texts))
        if self.tokenizer.vocabulary < 1 << 16:
            ids = ids.astype(np.uint16, copy=False)
        return {}, {"ids": ids, "lengths": lengths}


def _last_of(unit: int, units: list[int], ordinals: list[int]) -> int:
    """The last ordinal of the run of rows of `unit` that the rows begin with."""
    last = ordinals[0]
    for other, ordinal in zip(units, ordinals, strict=True):
        if other != unit:
            break
        last = ordinal
    return last


def problem_of(text: Any) -> str:
    """Why a cell is no text that can be encoded, or ""."""
    if not isinstance(text, str):
        return "is missing" if text is None or text != text else "is not text"
    if not text:
        return "is empty"
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode (half a surrogate pair)"
    return ""
