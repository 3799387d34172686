"""Rows of one file, one after the other: JSON lines, a JSON array, CSV, TSV or Parquet; none is left out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import readers
from llmtool.data.endings import ROW_FORMATS, ending
from llmtool.data.readers import BadRow

ARRAY_LIMIT = 1 << 29  # characters of a JSON array, which is read whole
# Its line from 1 (of an array or Parquet: its number), and what stands there.
Row = tuple[int, dict[str, Any]]


def form_of(path: Path) -> str | None:
    """The format that a file's name announces; None where it is none of rows."""
    return ROW_FORMATS.get(ending(path.name))


def rows(path: Path) -> Iterator[Row]:
    """Every row of a file whose name says its format; .gz and .zst are unpacked. Cells of CSV are text, and
    so are nested values of JSON lines (`nested` reads both).

    Raises DataError for a file that is not there or cannot be read, and for the first broken row, with its
    line and what is wrong with it: nothing is left out in silence.
    """
    form = form_of(path)
    if form is None:
        raise DataError(f"{path}: a file of rows ends in {', '.join(ROW_FORMATS)} (or these with .gz, .zst)")
    (found,) = readers.expand(str(path), tuple(ROW_FORMATS))
    if form == "parquet":
        return _parquet(found)
    if form in ("csv", "tsv"):
        return _csv(found, "," if form == "csv" else "\t")
    return _json_lines(found) if form == "jsonl" else _json(found)


def nested(value: Any) -> Any:
    """A list or mapping that may stand as its JSON text; whatever else, as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def refuse(path: Path, line: int, reason: str) -> DataError:
    """The error of a row that cannot be used."""
    return DataError(f"{path}:{line}: {reason}")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, text, whole in readers.lines(path, "utf-8", readers.LINE_LIMIT):
        if text.strip():
            problem = readers.flaw(text, "utf-8") if whole else "a line that is too long"
            row = problem or readers.json_row(text)
            if isinstance(row, str):
                raise refuse(path, number, row)
            yield number, row


def _json(path: Path) -> Iterator[Row]:
    """An array of objects; a file of that name that holds JSON lines is read as that."""
    parts: list[str] = []
    size = 0
    for text in readers.characters(path, "utf-8", strict=True):
        parts.append(text)
        size += len(text)
        if size > ARRAY_LIMIT:
            raise DataError(f"{path}: more than {ARRAY_LIMIT:,} characters of JSON; write it as JSON lines")
    whole = "".join(parts)
    if whole.lstrip()[:1] == "{":
        yield from _json_lines(path)
        return
    if problem := readers.flaw(whole, "utf-8"):
        raise DataError(f"{path}: {problem}")
    try:
        found = json.loads(whole)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: JSON that is nested too deep, or has a number that is too long") from None
    if not isinstance(found, list):
        raise DataError(f"{path}: not an array of objects")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise refuse(path, number, "not a JSON object (counted from 1)")
        yield number, row


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    header: list[str] | None = None
    for record in readers.csv_records(path, "utf-8", delimiter, '"', None, skip_space=False):
        if isinstance(record, BadRow):
            raise refuse(path, record.line, record.reason)
        number, cells = record
        if header is None:
            header = cells
        elif len(cells) != len(header):
            raise refuse(path, number, f"{len(cells)} cells, the header has {len(header)}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("`pip install llmtool[data]` reads Parquet") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as Parquet ({readers.reason_of(error)[:200]})") from None
