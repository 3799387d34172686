"""Rows of Apache Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import readers
from llmtool.data.cells import Nested
from llmtool.data.header import difference, refuse_names
from llmtool.data.readers import BadRow, BrokenFile
from llmtool.data.remote import Remote
from llmtool.data.sampling import UNPACKED
from llmtool.data.sources import Layout, Record, Source


class ParquetSource(Source):
    """Apache Parquet (`pip install llmtool[data]`). Dates become ISO text, decimals numbers, lists JSON."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    format: Literal["parquet"]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError("`pip install llmtool[data]` reads Parquet") from None
        if path.suffix.lower() in (".gz", ".zst"):
            raise DataError(f"{path}: Parquet is compressed inside; it is not read from .gz or .zst")
        number = 0
        try:
            file = path.open("rb", seeks=True) if isinstance(path, Remote) else path
            with pyarrow.parquet.ParquetFile(file) as table:
                names = list(table.schema_arrow.names)
                if layout.first is None:
                    refuse_names(names, str(path))
                    layout.columns, layout.first = names, path
                elif names != layout.columns:
                    raise DataError(
                        f"{path}: other columns than {layout.first}: {difference(layout.columns, names)}"
                    )
                for batch in table.iter_batches(batch_size=8192):
                    size = table.metadata.num_rows
                    if layout.thin and not layout.thin.keeps(
                        layout.thin.size * UNPACKED * len(batch) // size
                    ):
                        number += len(batch)
                        continue
                    columns = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
                    for row in zip(*columns, strict=True):
                        number += 1
                        nul = any(isinstance(value, str) and "\0" in value for value in row)
                        bad = BadRow(str(path), number, "a NUL character", row=row) if nul else None
                        yield bad or (number, row)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise DataError(f"{path}: no such file") from None
            raise BrokenFile(f"{path}: not readable as Parquet ({readers.reason_of(error)[:200]})") from None


def _cell(value: Any) -> Any:
    """A Parquet value as text, number, truth value or None."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict | list):
        return Nested(json.dumps(value, ensure_ascii=False, default=str))
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
