"""Rows that come in for a trained model: every one in its place, those that cannot be read marked as such."""

from __future__ import annotations

import io
import select
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import SourceConfig, image_sources, readers, remote
from llmtool.data.csv_source import CsvSource
from llmtool.data.endings import plain
from llmtool.data.pictures import ENDINGS
from llmtool.data.readers import BadRow
from llmtool.data.sources import (
    CHUNK_CHARACTERS,
    Layout,
    Record,
    RowSource,
    Source,
    TextSource,
    frame,
    too_long,
)

if TYPE_CHECKING:
    import pandas as pd

STANDARD = "-"  # standard input, or standard output
ROWS = 8192  # of a stretch, at most
SOURCES: dict[str, type[Source]] = {
    typing.get_args(source.model_fields["format"].annotation)[0]: source
    for source in typing.get_args(typing.get_args(SourceConfig)[0])
    if issubclass(source, Source) and source._records is not Source._records
}


@dataclass
class Stretch:
    """Some rows that follow each other.

    frame: those that could be read, cells as they were written; its index is their place among all, from 0.
    lines: of each row, where it begins, from 1. bad: place -> why that row could not be read. kept: place ->
    column -> cell, of what could be read of such a row.
    """

    frame: pd.DataFrame
    lines: list[int]
    bad: dict[int, str] = field(default_factory=dict)
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)


class Piped:
    """Standard input, in place of a file. Its beginning can be read several times, until `begin`; from then
    on `wait` is called before what is not there yet is waited for."""

    suffix = ""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._kept, self._keep = stream, list[bytes](), True
        self._wait: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return "standard input"

    def begin(self, wait: Callable[[], None]) -> None:
        """From now on what is read is gone."""
        self._keep, self._wait = False, wait

    def piped(self) -> Iterator[bytes]:
        """Blocks of bytes, those that were kept first."""
        kept = self._kept if self._keep else [self._kept.pop(0) for _ in list(self._kept)]
        yield from list(kept)
        read = getattr(self._stream, "read1", self._stream.read)  # what is there, without waiting for more
        while True:
            if not self._keep and not self._is_there():
                self._wait()
            if not (block := read(readers.BLOCK)):
                return
            if self._keep:
                self._kept.append(block)
            yield block

    def _is_there(self) -> bool:
        """Whether there is more, or the end, already; also where that cannot be told."""
        try:
            return bool(select.select([self._stream], [], [], 0)[0])
        except (OSError, ValueError):
            return True


def input_form(path: str, given: RowSource | None) -> str:
    """The format of an input: what its name announces, else that of the data the model learned from."""
    if path != STANDARD:
        for form, source in SOURCES.items():
            if plain(path).endswith(source.suffixes or ("/",)):
                return form
    if given is None or given.format not in SOURCES:  # type: ignore[attr-defined]
        what = "standard input" if path == STANDARD else path
        raise ConfigError(f"{what}: which format is it? Say with --format {'|'.join(SOURCES)}")
    return str(given.format)  # type: ignore[attr-defined]


def source_of(path: str, form: str | None, given: RowSource | None) -> Source:
    """How this input is read: with what `given` says (delimiter, encoding, ...), where its format is that.

    given: the source of the data that the model learned from. ConfigError for a format that does not exist.
    """
    if remote.is_url(path):
        try:
            remote.check(path)
        except ValueError as error:
            raise ConfigError(f"--input {error}") from None
    form = form or input_form(path, given)
    if form not in SOURCES:
        raise ConfigError(
            f"--format {form}: no such format{suggest(form, list(SOURCES))} (choices: {', '.join(SOURCES)})"
        )
    if isinstance(given, Source) and given.format == form:  # type: ignore[attr-defined]
        return given.model_copy(update={"path": path})
    more = {"documents": "line"} if form == "text" else {}
    if isinstance(given, CsvSource) and issubclass(SOURCES[form], CsvSource):
        more["decimal"] = given.decimal
    return SOURCES[form].model_validate({"format": form, "path": path, **more})


def opened(path: str, source: Source, stdin: BinaryIO) -> Path:
    """The file, or standard input in its place. DataError where there is no such regular file."""
    if path == STANDARD:
        if source.format == "parquet":  # type: ignore[attr-defined]
            raise ConfigError("Parquet cannot be read from standard input: its end comes first")
        return cast(Path, Piped(stdin))  # readers ask for nothing else of a path than its bytes and its name
    if Path(path).is_dir():
        raise DataError(f"{path}: a folder; give one file of rows")
    found = readers.expand(path, source.suffixes)
    if len(found) > 1:
        raise DataError(f"{path}: {len(found):,} files match; give one file of rows")
    return found[0]


def settled(source: Source, path: Path, targets: Sequence[str]) -> Source:
    """The source with its delimiter found out, and, where its columns are named in the configuration and the
    rows are narrower by just the targets, without these."""
    if not isinstance(source, CsvSource):
        return source
    if source.delimiter == "auto":
        found = readers.sniff_delimiter(path, source.encoding, source.comment, source.quote)
        source = source.model_copy(update={"delimiter": found})
    if isinstance(source.header, list):
        records = readers.csv_records(
            path, source.encoding, source.delimiter, source.quote, source.comment, source.skip_space
        )
        first = next((record for record in records if not isinstance(record, BadRow)), None)
        inputs = [name for name in source.header if name not in targets]
        if first is not None and len(first[1]) == len(inputs) < len(source.header):
            source = source.model_copy(update={"header": inputs})
    return source


def read(
    source: Source,
    path: Path,
    take: Callable[[Stretch], None],
    rows: int = ROWS,
    early: Callable[[list[str]], bool] | None = None,
) -> None:
    """Give `take` the rows of an input in stretches, in memory that does not grow with it; one at least,
    perhaps empty.

    source: as `settled` gave it. early: of standard input, whether the rows that have come are given when no
    more are waiting, by the columns known so far. DataError for a file that is empty or breaks off in the
    middle.
    """
    layout = Layout(columns=[])
    filling = _Filling(layout, source.delimiter if isinstance(source, CsvSource) else "")

    def wait() -> None:
        if early is not None and filling.lines and early(layout.columns):
            take(filling.stretch())

    if isinstance(path, Piped):
        path.begin(wait)
    for item in _records(source, path, layout):
        filling.add(item)
        if len(filling.lines) >= rows or filling.characters > CHUNK_CHARACTERS:
            take(filling.stretch())
    if filling.lines or not filling.given:
        take(filling.stretch())


class _Filling:
    """The rows of the stretch that is not full yet. given: whether there was one before."""

    def __init__(self, layout: Layout, delimiter: str) -> None:
        self.layout, self.delimiter, self.given = layout, delimiter, False
        self._clear()

    def _clear(self) -> None:
        self.lines, self.places, self.values = list[int](), list[int](), list[Any]()
        self.bad, self.kept = dict[int, str](), dict[int, dict[str, Any]]()
        self.characters = 0

    def add(self, item: Record | BadRow) -> None:
        """Take in a row."""
        place = len(self.lines)
        if isinstance(item, BadRow):
            self.bad[place] = f"{item.reason} (line {item.line:,})"
            line, value = item.line, item.row
            if value is not None:
                self.kept[place] = _cells(value, self.layout.columns, self.delimiter)
        else:
            line, value = item
            self.places.append(place)
            self.values.append(value)
        self.lines.append(line)
        self.characters += 0 if value is None else _size(value)

    def stretch(self) -> Stretch:
        """The rows, which are no longer here then."""
        rows = frame(self.layout.columns, self.values, np.array(self.places, np.int64))
        found = Stretch(rows, self.lines, self.bad, self.kept)
        self.given = True
        self._clear()
        return found


def _cells(row: Any, columns: list[str], delimiter: str) -> dict[str, Any]:
    """What a bad row holds, by column: of too few cells the first columns, and the last column all of those
    that are too many. A cell that is no text is left out."""
    if not isinstance(row, dict):
        last = len(columns) - 1
        joined = [*row[:last], delimiter.join(row[last:])] if len(row) > len(columns) else row
        row = dict(zip(columns, joined, strict=False))
    return {name: cell for name, cell in row.items() if type(cell) is not str or not _no_text(cell)}


def _no_text(cell: str) -> bool:
    return readers.MARK in cell or "\0" in cell


def pictures_of(path: str, column: str, rows: int) -> Iterator[Stretch] | None:
    """The pictures in a folder and those below, by name, or a single one; None for what is neither.

    column: what holds their paths.
    """
    if Path(path).is_dir():
        names, _ = image_sources.pictures_in(path)
        if not names:
            raise DataError(f"{path}: no pictures in this folder")
    elif Path(path).suffix.lower() in ENDINGS:
        names = [path]
    else:
        return None
    parts = [names[start : start + rows] for start in range(0, len(names), rows)]
    return (_paths(column, part) for part in parts)


def _paths(column: str, names: list[str]) -> Stretch:
    return Stretch(frame([column], names, np.arange(len(names))), list(range(1, len(names) + 1)))


def _size(value: Any) -> int:
    """Characters of a row, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):  # of CSV: every cell is text
        return sum(map(len, value))
    cells = value.values() if isinstance(value, dict) else value
    return sum(len(cell) for cell in cells if isinstance(cell, str))


def _records(source: Source, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
    """As the source gives them; of lines of text the blank ones too, and a text that is a file as one row."""
    if not isinstance(source, TextSource) or source.documents == "blank":
        return source._records(path, layout)
    layout.columns = ["text"]
    return _whole(source, path) if source.documents == "file" else _lines(source, path)


def _lines(source: TextSource, path: Path) -> Iterator[Record | BadRow]:
    for number, text, whole in readers.lines(path, source.encoding, readers.LINE_LIMIT):
        problem = readers.flaw(text, source.encoding) if whole else too_long("line")
        yield BadRow(str(path), number, problem) if problem else (number, text)


def _whole(source: TextSource, path: Path) -> Iterator[Record | BadRow]:
    text = io.StringIO()
    for part in readers.characters(path, source.encoding, strict=True):
        text.write(part)
        if text.tell() > readers.LINE_LIMIT:
            yield BadRow(str(path), 1, f"a file of more than {readers.LINE_LIMIT:,} characters")
            return
    whole = text.getvalue()
    problem = readers.flaw(whole, source.encoding)
    yield BadRow(str(path), 1, problem) if problem else (1, whole)
