"""The rows of a source for `prepare`: read as often as they are wanted, with every column there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llmtool.data.mixture import MixtureSource
from llmtool.data.sources import Chunk, RowSource

if TYPE_CHECKING:
    import pandas as pd

SMALL = 2**26  # a source of at most so many bytes in memory, by estimate, is read once
CELL = 64  # bytes of an object in memory beside its characters


def complete(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The frame with every column of the source, those that did not come up yet empty."""
    if list(frame.columns) == columns:
        return frame
    import pandas as pd

    missing = {name: pd.Series([None] * len(frame), index=frame.index, dtype=object)
               for name in columns if name not in frame.columns}  # fmt: skip
    return frame.assign(**missing)[columns]


def _columns_of(chunks: Iterable[Chunk]) -> list[str]:
    """Those of all chunks, by first appearance."""
    return list(dict.fromkeys(name for chunk in chunks for name in chunk.frame.columns))


class MoreColumnsError(Exception):
    """A row has a column that the first ones have not."""


class Rows:
    """The source's chunks, as often as they are wanted: a small source is kept, a large one read anew."""

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self.kept: list[Chunk] | None = None

    def __iter__(self) -> Iterator[Chunk]:
        if self.kept is not None:
            yield from (replace(chunk) for chunk in self.kept)
            return
        kept: list[Chunk] = []
        size = 0
        for chunk in self.source.read():
            size += chunk.characters + CELL * chunk.frame.size
            if size <= SMALL:
                kept.append(replace(chunk))
            else:
                kept.clear()
            yield chunk
        if size <= SMALL:
            self.kept = kept

    def columns(self, guess: bool) -> list[str]:
        """All columns. JSON objects may bring new ones anywhere: they are read to the end; guess: of each
        part of a mixture only the first chunk is."""
        if not self.source.grows_columns:
            return self.source.columns()
        if guess:
            source = self.source
            parts = source.sources.values() if isinstance(source, MixtureSource) else [source]
            if found := _columns_of(next(part.read()) for part in parts):  # else no row there can be read
                return found
        return _columns_of(self)

    def within(self, columns: list[str]) -> Iterator[Chunk]:
        """The chunks; MoreColumnsError at one with another column than these."""
        for chunk in self:
            if not chunk.frame.columns.isin(columns).all():
                raise MoreColumnsError
            yield chunk
