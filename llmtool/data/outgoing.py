"""Rows that go out, as they come: CSV, TSV, JSON lines or Parquet, to a file or to standard output."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from llmtool.core.errors import ConfigError, DataError
from llmtool.data.cells import Nested
from llmtool.data.endings import ROW_FORMATS

SUFFIXES = {name: form for name, form in ROW_FORMATS.items() if form != "json"}


class RowWriter(Protocol):
    """Takes the columns of some rows at a time; the names are those of the first call."""

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write these rows: name -> their cells, None for nothing. There may be no row."""

    def close(self) -> None:
        """Write what ends the file; the stream stays open."""


def output_form(path: Path) -> str:
    """The format that an output's name asks for; ConfigError where it is none."""
    form = SUFFIXES.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if form is None or (form == "parquet" and path.suffix.lower() == ".gz"):
        raise ConfigError(f"--output {path}: ends in none of {', '.join(SUFFIXES)} (or .csv.gz, .jsonl.gz)")
    return form


def writer(
    stream: BinaryIO,
    form: str,
    numbers: Collection[str] = (),
    delimiter: str = ",",
    packed: bool = False,
    decimal: str = ".",
) -> RowWriter:
    """A writer of rows in this format. numbers: columns that hold numbers or nothing, whatever comes first.
    packed: through gzip. delimiter, decimal: of CSV, and the decimal mark of TSV."""
    if form == "parquet":
        return ParquetWriter(stream, numbers)
    if form == "jsonl":
        return JsonlWriter(stream, packed)
    return CsvWriter(stream, "\t" if form == "tsv" else delimiter, packed, decimal)


class _Text:
    """UTF-8 text into a stream of bytes, which is left open."""

    def __init__(self, stream: BinaryIO, packed: bool) -> None:
        self._packer = gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) if packed else None
        self._stream: Any = self._packer or stream

    def _put(self, text: str) -> None:
        self._stream.write(text.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Write what gzip holds back."""
        if self._packer is not None:
            self._packer.close()


class CsvWriter(_Text):
    """Cells of text are written as they are, quoted where they hold a delimiter, a quote or a line end."""

    def __init__(self, stream: BinaryIO, delimiter: str, packed: bool, decimal: str) -> None:
        super().__init__(stream, packed)
        self._delimiter, self._names, self._decimal = delimiter, list[str](), decimal

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """DataError where there is a column that the header, which is written, does not have."""
        text = io.StringIO(newline="")
        lines = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        if not self._names:
            self._names = list(columns)
            lines.writerow(self._names)
        if more := [name for name in columns if name not in set(self._names)]:
            raise DataError(
                f"the key {more[0]!r} comes up for the first time after the header of the output is written; "
                "JSON lines have none: --output out.jsonl"
            )
        nothing = [None] * len(next(iter(columns.values())))
        cells = [_plain_all(columns.get(name, nothing)) for name in self._names]
        if self._decimal != ".":
            cells = [[_marked(cell, self._decimal) for cell in column] for column in cells]
        lines.writerows(zip(*cells, strict=True))
        self._put(text.getvalue())


def _plain_all(cells: Sequence[Any]) -> Sequence[Any]:
    """Cells for csv, which writes None as nothing and a float so that it can be had again."""
    return list(map(_plain, cells)) if bool in set(map(type, cells)) else cells


def _plain(value: Any) -> Any:
    return ("true" if value else "false") if value is True or value is False else value


def _marked(value: Any, decimal: str) -> Any:
    return repr(value).replace(".", decimal) if isinstance(value, float) else value


class JsonlWriter(_Text):
    """An object a line; numbers that are not finite are null, lists and objects as they were in the input."""

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Names may be other ones in each call."""
        names = list(columns)
        lines = [
            json.dumps(dict(zip(names, map(_value, row), strict=True)), ensure_ascii=False) + "\n"
            for row in zip(*columns.values(), strict=True)
        ]
        self._put("".join(lines))


def _value(cell: Any) -> Any:
    if isinstance(cell, Nested):
        return json.loads(cell)
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


class ParquetWriter:
    """Columns of whole numbers, numbers, truth values or text, as the first rows that hold something say."""

    def __init__(self, stream: BinaryIO, numbers: Collection[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError("`pip install llmtool[data]` writes Parquet") from None
        self._arrow, self._stream, self._numbers = pyarrow, stream, frozenset(numbers)
        self._schema: Any = None
        self._table: Any = None

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """DataError for a cell that is not what its column began with."""
        arrow = self._arrow
        if self._schema is None:
            number = arrow.float64()
            kinds = [(n, number if n in self._numbers else self._kind(c)) for n, c in columns.items()]
            self._schema = arrow.schema(kinds)
            self._table = arrow.parquet.ParquetWriter(self._stream, self._schema)
        if more := [name for name in columns if name not in self._schema.names]:
            raise DataError(
                f"the key {more[0]!r} comes up too late for a Parquet file; write --output out.jsonl"
            )
        nothing = [None] * len(next(iter(columns.values())))
        made = []
        for kind in self._schema:
            cells = columns.get(kind.name, nothing)
            if kind.type == arrow.string():
                cells = [None if cell is None else str(_plain(cell)) for cell in cells]
            try:
                if kind.type == arrow.int64() and float in set(map(type, cells)):
                    raise TypeError  # pyarrow would cut the fractions off
                made.append(arrow.array(cells, kind.type))
            except (arrow.ArrowException, ValueError, TypeError, OverflowError):
                raise DataError(
                    f"column {kind.name!r} began as {kind.type} and goes on with something else, which a "
                    "Parquet file cannot hold; write --output out.jsonl"
                ) from None
        self._table.write_table(arrow.table(made, schema=self._schema))

    def _kind(self, cells: Sequence[Any]) -> Any:
        kinds = {type(cell) for cell in cells if cell is not None}
        if kinds == {bool}:
            return self._arrow.bool_()
        if kinds == {int}:
            return self._arrow.int64()
        return self._arrow.float64() if kinds and kinds <= {int, float} else self._arrow.string()

    def close(self) -> None:
        """Write the footer."""
        if self._table is not None:
            self._table.close()
