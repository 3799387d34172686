"""JSON sources: one object a line, or one array of objects, which is read without holding all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmtool.core.errors import DataError
from llmtool.data import readers
from llmtool.data.readers import BadRow, BrokenFile
from llmtool.data.sources import DecodedSource, Layout, Record, too_long

# A string, whole; a sign that opens, closes or separates; a quote whose string goes on beyond what was read.
_SIGNS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]|"', re.DOTALL)


def _learn_columns(row: dict[str, object], known: set[str], layout: Layout) -> None:
    """Add the keys of a row that no row before had."""
    if row.keys() - known:
        known |= row.keys()
        layout.columns += [name for name in row if name not in set(layout.columns)]


def _object(text: str) -> dict[str, Any] | None:
    """What a bad row holds all the same, its bytes that are no text marked."""
    row = readers.json_row(text)
    return row if isinstance(row, dict) else None


class JsonlSource(DecodedSource):
    """One JSON object a line. A key that a line lacks is missing there; a nested value becomes JSON text."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    format: Literal["jsonl"]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        known = set(layout.columns)
        for number, text, whole in readers.lines(path, self.encoding, readers.LINE_LIMIT, thin=layout.thin):
            if not text.strip():
                continue
            problem = readers.flaw(text, self.encoding) if whole else too_long("line")
            row = problem or readers.json_row(text)
            if isinstance(row, str):
                if not known and text.strip() == "[":
                    raise DataError(f"{path}: one JSON array, not an object a line: say `format: json`")
                yield BadRow(str(path), number, row, text, _object(text))
                continue
            _learn_columns(row, known, layout)
            yield number, row


class JsonSource(DecodedSource):
    """One JSON array of objects in a file. A key that an object lacks is missing there; a nested value
    becomes JSON text."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    format: Literal["json"]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        known = set(layout.columns)
        for number, text, whole in array_elements(path, self.encoding):
            if layout.thin and not layout.thin.keeps(len(text)):
                continue
            problem = readers.flaw(text, self.encoding) if whole else too_long("object")
            row = problem or readers.json_row(text)
            if isinstance(row, str):
                yield BadRow(str(path), number, row, text, _object(text))
                continue
            _learn_columns(row, known, layout)
            yield number, row


def array_elements(path: Path, encoding: str) -> Iterator[tuple[int, str, bool]]:
    """(line from 1 on which it begins, text, whole) of each element of the array that a file holds.

    What is wrong inside of an element is its reader's to find; one beyond LINE_LIMIT characters is cut, whole
    False. DataError for a file that holds no array; BrokenFile where it ends in the middle.
    """
    array = _Array(path)
    for text in readers.characters(path, encoding, strict=False):
        array.text += text
        yield from array.elements()
    array.finish()


class _Array:
    """What was read of the array and not given out yet: `text` from `begin` on, which is in line `line`."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.line, self.begin = path, "", 1, 0
        self.at = self.depth = 0  # looked through so far; brackets open there, from 1 inside of the array
        self.over = self.skipping = False

    def elements(self) -> Iterator[tuple[int, str, bool]]:
        """The elements that are complete."""
        if not self.depth and not self._opened():
            return
        while not self.over and (sign := _SIGNS.search(self.text, self.at)):
            if sign[0] == '"':  # its end is not read yet; it is looked for again from here
                self.at = sign.start()
                break
            self.at = sign.end()
            if sign[0] in ("[", "{"):
                self.depth += 1
            elif sign[0] in ("]", "}"):
                self.depth -= 1
            ends = sign[0] == "," and self.depth == 1
            if ends or not self.depth:
                self.over = not self.depth
                yield from self._cut(sign.start(), last=self.over)
        self.text, self.at, self.begin = self.text[self.begin :], self.at - self.begin, 0
        if len(self.text) > readers.LINE_LIMIT and not self.over:
            yield from self._skip()

    def finish(self) -> None:
        """Raises where the file ended too early, or went on."""
        if not self.depth and not self.over:
            raise DataError(f"{self.path}: no JSON array ([...])")
        if not self.over:
            raise BrokenFile(
                f"{self.path}, line {self._first_line(self.text)}: the array ends in the middle of what "
                "begins here: a quote or bracket that is not closed"
            )
        if rest := self.text.strip():
            raise DataError(f"{self.path}: {rest[:40]!r} after the end of the array")

    def _opened(self) -> bool:
        start = self.text.lstrip()
        if not start:
            return False
        if start[0] != "[":
            hint = ": say `format: jsonl` if each line is one" if start[0] == "{" else ""
            raise DataError(f"{self.path}: a JSON array ([...]) should begin here, not {start[0]!r}{hint}")
        self.line += self.text.count("\n", 0, len(self.text) - len(start))
        self.text, self.depth = start[1:], 1
        return True

    def _cut(self, end: int, last: bool) -> Iterator[tuple[int, str, bool]]:
        """Give out what stands before `end`, if it is an element, and go on behind the sign there."""
        element = self.text[self.begin : end]
        bare = element.strip()
        if not self.skipping and (bare or not last):  # `[]` and a last comma hold no element
            yield self._first_line(element), bare, True
        self.skipping = False
        self.line += element.count("\n")
        self.begin = end + 1

    def _first_line(self, element: str) -> int:
        """The line on which it begins, behind blank ones."""
        return self.line + element.count("\n", 0, len(element) - len(element.lstrip()))

    def _skip(self) -> Iterator[tuple[int, str, bool]]:
        """Give out the beginning of an element that is too long; what follows of it is dropped."""
        if not self.skipping:
            yield self._first_line(self.text), self.text.strip()[:200], False
        self.skipping = True
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        if len(self.text) > readers.LINE_LIMIT:
            raise BrokenFile(
                f"{self.path}, line {self.line}: a text that goes on for too long, or an open quote"
            )
