"""The cleaning step that drops rows in which text of evaluation files stands: a run of words in common.

GPT-3's training text was cleaned by runs of 13 words (https://arxiv.org/abs/2005.14165, appendix C). There
the passage around a run was cut out; here the row is dropped, and what it shares can be looked at.

Memory: the texts of the evaluation files and 16 bytes for each of their words; 12 bytes for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, field_validator

from llmtool.core.errors import DataError
from llmtool.data import readers, remote
from llmtool.data.cleaning import WholeSource, need
from llmtool.data.csv_source import CsvSource, TsvSource
from llmtool.data.endings import ROW_FORMATS, ending
from llmtool.data.json_sources import JsonlSource, JsonSource
from llmtool.data.parquet_source import ParquetSource
from llmtool.data.shingles import numbered, runs, spoken
from llmtool.data.sources import Chunk, Source, TextSource
from llmtool.data.writing_systems import WORD

if TYPE_CHECKING:
    import pandas as pd

SIEVE = 24  # bits of a run's hash by which most runs that stand nowhere are told at once


class Decontaminate(WholeSource):
    """Drop rows that share a run of words with evaluation files. Where source.path names files for each
    split, rows of train are compared with those of validation and test too, and only they can leave."""

    step: Literal["decontaminate"]
    column: str = Field(description="column of text; a row without text stays")
    against: list[str] = Field(
        default=[],
        description="evaluation files, folders or globs: CSV, TSV, JSON, JSONL, Parquet, by their names; all "
        "else is text. Every text in them counts",
    )
    ngram: int = Field(
        default=13, ge=1, le=100, description="words of a run; in scripts without blanks, characters"
    )
    _runs: Any = PrivateAttr(default=None)  # EvaluationRuns, once they were read

    @field_validator("against")
    @classmethod
    def _names_something(cls, against: list[str]) -> list[str]:
        if "" in against:
            raise ValueError("names no file")
        if any(map(remote.is_url, against)):
            raise ValueError("evaluation files are read from this machine: copy them here")
        return against

    def files(self) -> list[Path]:
        """The evaluation files. Raises DataError where one is missing."""
        try:
            found = [file for path in self.against for file in readers.expand(path, _SUFFIXES)]
        except DataError as error:
            raise DataError(f"decontaminate: against: {error}") from None
        return list(dict.fromkeys(found))

    def learn(self, found: EvaluationRuns | None) -> None:
        """Take over what is looked for, for the time of one preparation."""
        self._runs = found

    @property
    def learned(self) -> EvaluationRuns:
        """What is looked for."""
        assert isinstance(self._runs, EvaluationRuns), "the evaluation files are read first"
        return self._runs

    def keys(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ordinals of rows with words, (n, 1) int32: the first evaluation run in each, or -1."""
        need(frame, [self.column], "decontaminate")
        words, counts = numbered(map(spoken, frame[self.column].tolist()))
        taken = counts > 0
        return frame.index.to_numpy()[taken], self.learned.first(words, counts)[taken, None]


# --- what is looked for -------------------------------------------------------------------------------------


@dataclass
class EvaluationRuns:
    """Every run of `length` words of the evaluation texts; the first text that has it counts.

    texts, places: each with its (file, line). total, short: file -> how many texts with words it has, and how
    many of these have fewer words than a run, and cannot be found.
    """

    length: int
    texts: list[str] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    short: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    _parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, texts: Sequence[str], places: Sequence[tuple[str, int]]) -> None:
        """Take in texts; one without words is passed over."""
        words, counts = numbered(texts)
        values, many = runs(words, counts, self.length)
        text = np.repeat(np.arange(len(texts)), many)
        word = np.arange(len(values)) - np.repeat(np.cumsum(many) - many, many)
        for (file, _), count in zip(places, counts.tolist(), strict=True):
            self.total[file] = self.total.get(file, 0) + (count > 0)
            self.short[file] = self.short.get(file, 0) + (0 < count < self.length)
        self._parts.append((values, (text + len(self.texts)).astype(np.int32), word.astype(np.int32)))
        self.texts += texts
        self.places += places

    def close(self) -> Self:
        """Sort what was taken in."""
        values, text, word = (
            np.concatenate([part[column] for part in self._parts]) if self._parts else np.zeros(0, kind)
            for column, kind in enumerate((np.uint64, np.int32, np.int32))
        )
        self.values, first = np.unique(values, return_index=True)
        self.text, self.word = text[first], word[first]
        self.sieve = np.zeros(1 << SIEVE, bool)
        self.sieve[self.values >> np.uint64(64 - SIEVE)] = True
        self._parts = []
        return self

    def first(self, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(texts,) int32, the number of the first of these runs that stands in each text, -1: none does."""
        found = np.full(len(counts), -1, np.int32)
        values, many = runs(words, counts, self.length)
        likely = np.flatnonzero(self.sieve[values >> np.uint64(64 - SIEVE)])
        number = np.minimum(np.searchsorted(self.values, values[likely]), max(len(self.values) - 1, 0))
        hit = self.values[number] == values[likely] if len(self.values) else np.zeros(0, bool)
        text = np.searchsorted(np.cumsum(many), likely[hit], side="right")
        texts, at = np.unique(text, return_index=True)
        found[texts] = number[hit][at]
        return found

    def says(self, number: int) -> dict[str, Any]:
        """Where a run stands, and its words: file, line, ngram."""
        text, word = self.texts[self.text[number]], int(self.word[number])
        found = list(WORD.finditer(text.casefold()))[word : word + self.length]
        file, line = self.places[self.text[number]]
        return {"file": file, "line": line, "ngram": text.casefold()[found[0].start() : found[-1].end()]}


# --- evaluation files ---------------------------------------------------------------------------------------

_KINDS: dict[str | None, type[Source]] = {
    "csv": CsvSource, "tsv": TsvSource, "jsonl": JsonlSource, "json": JsonSource, "parquet": ParquetSource,
}  # fmt: skip
_SUFFIXES = (*ROW_FORMATS, *TextSource.suffixes)  # of the files in a folder


def read_evaluation(step: Decontaminate) -> EvaluationRuns:
    """The runs of the step's evaluation files. Raises DataError for a line that cannot be read."""
    found = EvaluationRuns(step.ngram)
    for file in step.files():
        form = ROW_FORMATS.get(ending(file.name))
        keys = {"format": form} if form else {"format": "text", "documents": "blank"}
        for chunk in _KINDS.get(form, TextSource).model_validate({**keys, "path": str(file)}).read():
            for bad in chunk.bad[:1]:
                raise DataError(f"decontaminate: against: {bad.file}, line {bad.line}: {bad.reason}")
            take(found, chunk, [str(file)], list(chunk.frame.columns))
    return found


def take(found: EvaluationRuns, chunk: Chunk, names: Sequence[str], columns: Sequence[str]) -> None:
    """Add the cells of these columns. names: of the files that the chunk counts."""
    lines = chunk.line.tolist()
    places = [(names[file], line) for file, line in zip(chunk.file.tolist(), lines, strict=True)]
    for column in columns:
        found.add([spoken(cell) for cell in chunk.frame[column].tolist()], places)
