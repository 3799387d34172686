"""Tables as lines of cells between delimiters: CSV, and TSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from llmtool.core.errors import DataError
from llmtool.data import decimals, readers
from llmtool.data.header import check_names, difference, misfit, names_of
from llmtool.data.readers import BadRow
from llmtool.data.sources import DecodedSource, Layout, Record, table

if TYPE_CHECKING:
    import pandas as pd


class CsvSource(DecodedSource):
    """Tables of delimited text. Every cell is text; the words NA, None and null stay what they are."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv",)

    format: Literal["csv"]
    delimiter: str = Field(
        default="auto", description="one character; auto: the most frequent of , ; tab | in the first line"
    )
    header: bool | list[str] = Field(
        default=True,
        description="true: the first line names the columns; or the names, for files without such a line",
    )
    quote: str | None = Field(
        default='"', description="character around cells that hold a delimiter; null: none does"
    )
    comment: str | None = Field(default=None, description="lines that begin with this are skipped")
    skip_space: bool = Field(default=False, description="drop blanks after each delimiter")
    decimal: Literal[".", ","] = Field(
        default=".", description="the decimal mark of numbers; with ',' 12,5 is one, and 1.234 is none"
    )
    _said: list[str] = PrivateAttr(default_factory=list)  # of the first line of the last reading

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self.header is False:
            raise ValueError(
                "header: a file without names in its first line needs them here: header: [age, income]"
            )
        if isinstance(self.header, list):
            check_names(self.header, "header")
        if self.delimiter != "auto" and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ValueError(f"delimiter: {self.delimiter!r} is not one character (or the word auto)")
        if self.quote is not None and (len(self.quote) != 1 or self.quote in "\r\n "):
            raise ValueError(f"quote: {self.quote!r} is not one character (or null)")
        if self.quote == self.delimiter or self.comment == "":
            raise ValueError("quote, delimiter and comment must differ, and comment cannot be empty")
        return self

    def plain(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with a decimal point in every number."""
        if self.decimal == ".":
            return rows
        columns = {name: decimals.with_points(rows[name].tolist()) for name in rows.columns}
        return table(columns, rows.index.to_numpy())

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        if layout.first is None:
            layout.delimiter = self.delimiter
            if self.delimiter == "auto":
                layout.delimiter = readers.sniff_delimiter(path, self.encoding, self.comment, self.quote)
        records = readers.csv_records(
            path, self.encoding, layout.delimiter, self.quote, self.comment, self.skip_space, layout.thin
        )
        beyond = 0
        if isinstance(self.header, list):
            layout.columns, layout.first = list(self.header), path
        else:
            beyond = self._read_header(path, records, layout)
        width = len(layout.columns)
        for record in records:
            if isinstance(record, BadRow):
                yield record
                continue
            line, fields = record
            problem = misfit(fields, width, beyond)
            if problem:
                yield BadRow(str(path), line, problem, layout.delimiter.join(fields), fields)
            else:
                yield line, fields[:width] if beyond else fields

    def notes(self) -> list[str]:
        """What the first line left open."""
        return [*super().notes(), *self._said]

    def _read_header(
        self, path: Path, records: Iterator[tuple[int, list[str]] | BadRow], layout: Layout
    ) -> int:
        """Sets the layout's columns; how many fields behind them each line ends in, which hold nothing."""
        record = next(records, None)
        if record is None:
            raise DataError(f"{path}: no header line")
        if isinstance(record, BadRow):
            hint = "; which `encoding` is it?" if record.reason.startswith("not valid") else ""
            raise DataError(f"{path}, line {record.line}: the header is {record.reason}{hint}")
        line, fields = record
        names, beyond, said = names_of(fields, f"{path}, line {line}")
        if layout.first is None:
            layout.columns, layout.first, self._said = names, path, said
        elif names != layout.columns:
            raise DataError(f"{path}: other columns than {layout.first}: {difference(layout.columns, names)}")
        return beyond


class TsvSource(CsvSource):
    """Tables separated by tabs."""

    suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".tab")

    format: Literal["tsv"]  # type: ignore[assignment]
    delimiter: Literal["\t"] = Field(default="\t", description="always a tab")
