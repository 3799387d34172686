"""Where rows come from: CSV, TSV and text (others beside it); files, folders, globs; in chunks."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, field_serializer, field_validator

from llmtool.core.config import Section
from llmtool.core.errors import ConfigError, DataError
from llmtool.core.files import HashFile
from llmtool.core.urls import without_secrets
from llmtool.data import readers, remote
from llmtool.data.readers import BadRow, BrokenFile
from llmtool.data.sampling import Sample, Thin

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
CHUNK_CHARACTERS = 1 << 22  # a chunk of long texts ends early, so that memory is bounded by characters too
SKIPPED_CODECS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7"}
SKIPPED_CODECS |= {"mbcs", "oem"}

SplitName = Literal["train", "validation", "test"]


@dataclass
class Chunk:
    """A stretch of rows as they stand in the source.

    frame: columns of dtype object, missing cells None; the index is the row's ordinal in the source, from 0.
    unit: (rows,) int64, shared by the rows of one document; the ordinal itself for all but long texts.
    file, line: (rows,) index into the source's files, and the line from 1 where the row starts.
    split: (rows,) object, the split whose files the row comes from; None when `path` names no splits.
    bad: the rows of this stretch that could not be read; they are not in `frame` and have no ordinal.
    characters: of the cells, about.
    part: of a mixture, the number of the part that all these rows are from.
    """

    frame: pd.DataFrame
    unit: np.ndarray
    file: np.ndarray
    line: np.ndarray
    split: np.ndarray | None = None
    bad: list[BadRow] = field(default_factory=list)
    characters: int = 0
    part: int | None = None

    def take(self, mask: np.ndarray) -> Chunk:
        """The rows where the boolean `mask` holds, without the bad ones."""
        split = None if self.split is None else self.split[mask]
        rows = self.frame.loc[mask]
        return Chunk(rows, self.unit[mask], self.file[mask], self.line[mask], split, part=self.part)

    def __len__(self) -> int:
        return len(self.frame)


@dataclass
class Layout:
    """The columns found so far in one reading, the file that set them, what is read of the one at hand."""

    columns: list[str]
    first: Path | None = None
    delimiter: str = ","
    thin: Thin | None = None


Record = tuple[int, Any]  # line, and the row: list of fields, mapping, or text
Plain = Callable[["pd.DataFrame"], "pd.DataFrame"]  # Source.plain


class RowSource(Section):
    """What everything that rows come from has."""

    _sample: Any = PrivateAttr(default=None)  # Sample or First: what a rehearsal reads; by sampling.sampled

    def files(self) -> list[Path]:
        """Every file that is read, in order; none where rows are made up."""
        return []

    def names(self) -> list[str]:
        """What messages call each file, by the numbers that chunks give."""
        return [str(path) for path in self.files()]

    def stamps(self) -> list[tuple[str, int, int]]:
        """What shows that the source changed while it was read: name, size and time of change."""
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]

    def hashes(self, hash_file: HashFile) -> dict[str, str]:
        """Each file with the hash of its bytes, or what stands for it where the file lies elsewhere."""
        return {
            str(path): path.token() if isinstance(path, remote.Remote) else hash_file(path)
            for path in self.files()
        }

    def notes(self) -> list[str]:
        """What a person should know of the last reading."""
        return []

    def read(self, rows: int = 8192) -> Iterator[Chunk]:
        """Chunks of at most `rows` rows, in order; memory does not grow with the source."""
        raise NotImplementedError

    @property
    def one_unit_a_file(self) -> bool:
        """Whether all rows of a file are pieces of one document."""
        return False

    @property
    def in_bytes(self) -> bool:
        """Whether rows count by the bytes of their text, where a split is by order."""
        return getattr(self, "format", None) == "text"

    @property
    def names_splits(self) -> bool:
        """Whether `path` names files for each split."""
        return isinstance(getattr(self, "path", None), dict)

    @property
    def grows_columns(self) -> bool:
        """Whether any row may bring a new column: all of them are known at the end only."""
        return getattr(self, "format", None) in ("jsonl", "json")

    def columns(self) -> list[str]:
        """Those of the first row."""
        return list(next(self.read(rows=1)).frame.columns)


class Source(RowSource):
    """What every format of files shares: `path`, and reading in chunks."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = False  # whether only files of this machine are read

    path: str | list[str] | dict[SplitName, str | list[str]] = Field(
        description="file, folder or glob, a list of them, or one for each of train, validation, test; "
        "relative to the working directory, or URLs (s3://, gs://, hf://, https://); .gz and .zst unpacked"
    )

    @field_validator("path")
    @classmethod
    def _names_something(cls, path: Any) -> Any:
        every = list(path.values()) if isinstance(path, dict) else [path]
        if not every or any(not part or (isinstance(part, list) and "" in part) for part in every):
            raise ValueError("names no file")
        if isinstance(path, dict) and "train" not in path:
            raise ValueError("a path for each split needs one for train")
        for part in every:
            for url in filter(remote.is_url, part if isinstance(part, list) else [part]):
                remote.check(url)
                if cls.local:
                    raise ValueError(
                        f"{without_secrets(url)}: pictures are read from this machine: copy them here"
                    )
        return path

    @field_serializer("path", when_used="json")
    def _without_secrets(self, path: Any) -> Any:
        if isinstance(path, dict):
            return {split: self._without_secrets(part) for split, part in path.items()}
        return [without_secrets(one) for one in path] if isinstance(path, list) else without_secrets(path)

    def notes(self) -> list[str]:
        """How changes of files elsewhere are seen, where that is weak."""
        return remote.notes(self.files())

    def files(self) -> list[Path]:
        """Every file, in reading order. Raises DataError when a path names none, or no regular file."""
        return [file for file, _ in self._placed()]

    def sample(self, characters: int) -> Any:
        """What a rehearsal reads of it."""
        return Sample(self._placed(), characters, getattr(self, "quote", None))

    def _placed(self) -> list[tuple[Path, str | None]]:
        by_split: dict[Any, Any] = self.path if isinstance(self.path, dict) else {None: self.path}
        placed = []
        seen: dict[Path, Any] = {}
        for split in [name for name in (*SPLITS, None) if name in by_split]:
            paths = by_split[split]
            for path in paths if isinstance(paths, list) else [paths]:
                for file in readers.expand(path, self.suffixes):
                    if file.resolve() in seen:
                        both = "" if split is None else f" (under {seen[file.resolve()]} and {split})"
                        raise ConfigError(f"data.source.path: {file} is named twice{both}")
                    seen[file.resolve()] = split
                    placed.append((file, split))
        return placed

    def read(self, rows: int = 8192) -> Iterator[Chunk]:
        """Chunks of at most `rows` rows, in order; memory does not grow with the source.

        Raises DataError naming the file that is missing, empty, binary, cut off, or has other columns
        than the first.
        """
        placed = self._placed()
        layout = Layout(columns=[])
        gather = _Gather(self.plain, layout, rows, given=placed[0][1] is not None)
        for index, (path, split) in enumerate(placed):
            layout.thin = self._sample.of(path) if self._sample else None
            if layout.thin and not layout.thin.wanted:
                continue
            before = gather.total
            gather.open(index, split, self.one_unit_a_file)
            try:
                for item in self._records(path, layout):
                    if gather.add(item):
                        yield gather.chunk()
            except BrokenFile as error:
                count = gather.total + len(gather.values) - before
                raise DataError(f"{error} ({count:,} row{'s' * (count != 1)} of it could be read)") from None
        if gather.values or gather.bad:
            yield gather.chunk()
        elif not gather.total:
            raise DataError(f"{', '.join(str(path) for path, _ in placed[:3])}: no rows")

    def plain(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows as everything behind the source takes them, of rows as they were written."""
        return rows

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        raise NotImplementedError


class _Gather:
    """Collects records until they make a chunk."""

    def __init__(self, plain: Plain, layout: Layout, rows: int, given: bool) -> None:
        self.plain, self.layout, self.rows, self.given = plain, layout, rows, given
        self.total = 0  # rows in the chunks before
        # file, split, unit of the file if it is one
        self.here: tuple[int, str | None, int | None] = (0, None, None)
        self._clear()

    def _clear(self) -> None:
        self.values: list[Any] = []
        self.lines: list[int] = []
        self.bad: list[BadRow] = []
        self.stretches = [(0, self.here)]  # from which row on of this chunk which file is read
        self.characters = 0

    def open(self, file: int, split: str | None, one_unit: bool) -> None:
        count = len(self.values)
        self.here = (file, split, self.total + count if one_unit else None)
        self.stretches.append((count, self.here))

    def add(self, item: Record | BadRow) -> bool:
        """Take in a row; whether the chunk is full."""
        if isinstance(item, BadRow):
            self.bad.append(replace(item, row=None))  # it may be long, and nobody asks for it
        else:
            line, value = item
            self.lines.append(line)
            self.values.append(value)
            cells = value.values() if isinstance(value, dict) else value
            kind = type(value)
            self.characters += (
                len(value) if kind is str else sum(map(len if kind is list else _length, cells))
            )
        return len(self.values) + len(self.bad) >= self.rows or self.characters > CHUNK_CHARACTERS

    def chunk(self) -> Chunk:
        count = len(self.values)
        index = np.arange(self.total, self.total + count, dtype=np.int64)
        unit, file = index.copy(), np.empty(count, np.int32)
        split = np.empty(count, object) if self.given else None
        for start, (number, name, first) in self.stretches:
            file[start:] = number
            unit[start:] = index[start:] if first is None else first
            if split is not None:
                split[start:] = name
        rows = self.plain(frame(self.layout.columns, self.values, index))
        chunk = Chunk(rows, unit, file, np.array(self.lines, np.int64), split, self.bad, self.characters)
        self.total += count
        self._clear()
        return chunk


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 8


def frame(columns: list[str], rows: list[Any], index: np.ndarray) -> pd.DataFrame:
    """Rows (texts, lists in the order of `columns`, or mappings) as columns of dtype object."""
    if not rows:
        parts: Any = [()] * len(columns)
    elif isinstance(rows[0], str):
        parts = [rows]
    elif isinstance(rows[0], dict):
        parts = [[row.get(name) for row in rows] for name in columns]
    else:
        parts = zip(*rows, strict=True)
    return table(dict(zip(columns, parts, strict=True)), index)


def table(columns: Mapping[str, Sequence[Any]], index: np.ndarray) -> pd.DataFrame:
    """Columns of dtype object, of (rows,) cells each."""
    import pandas as pd

    data = {}
    for name, cells in columns.items():
        data[name] = np.empty(len(index), object)
        data[name][:] = cells
    return pd.DataFrame(data, index=index, dtype=object, columns=pd.Index(list(columns), dtype=object))


class DecodedSource(Source):
    """A source of text in some encoding."""

    encoding: str = Field(
        default="utf-8", description="of the bytes: utf-8 (a mark is fine), latin-1, utf-16, ..."
    )

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            codec = codecs.lookup(encoding)
        except (LookupError, ValueError):
            raise ValueError(f"{encoding!r} is no encoding that Python knows") from None
        if not getattr(codec, "_is_text_encoding", True) or codec.name.replace("_", "-") in SKIPPED_CODECS:
            raise ValueError(f"{encoding!r} is no encoding of text files")
        return encoding


# --- text -------------------------------------------------------------------------------------------------


class TextSource(DecodedSource):
    """Plain text in one column, `text`. Line ends become \\n."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md")

    format: Literal["text"]
    documents: Literal["file", "line", "blank"] = Field(
        default="file",
        description="what is one document: a whole file, each line, or each paragraph (blank-line separated)",
    )

    @property
    def one_unit_a_file(self) -> bool:
        """Whether all rows of a file are pieces of one document."""
        return self.documents == "file"

    def _records(self, path: Path, layout: Layout) -> Iterator[Record | BadRow]:
        layout.columns = ["text"]
        if self.documents == "file":
            found = self._pieces(path, layout.thin)
        else:
            found = readers.lines(path, self.encoding, readers.LINE_LIMIT, strict=True, thin=layout.thin)
            if self.documents == "blank":
                found = self._paragraphs(found)
        for number, text, whole in found:
            problem = readers.flaw(text, self.encoding) if whole else too_long(self.documents)
            if problem:
                yield BadRow(str(path), number, problem, text)
            elif self.documents == "file" or text.strip():  # blank lines are no documents
                yield number, text

    def _pieces(self, path: Path, thin: Thin | None) -> Iterator[tuple[int, str, bool]]:
        line = 1
        for text in readers.pieces(readers.characters(path, self.encoding, strict=True)):
            if thin is None or thin.keeps(len(text)):
                yield line, text, True
            line += text.count("\n")

    def _paragraphs(self, lines: Iterator[tuple[int, str, bool]]) -> Iterator[tuple[int, str, bool]]:
        start, held, size, whole = 0, list[str](), 0, True
        for number, text, complete in lines:
            if not text.strip():
                if held:
                    yield start, "\n".join(held), whole
                held, size, whole = [], 0, True
                continue
            start = start if held else number
            size += len(text)
            whole = whole and complete and size <= readers.LINE_LIMIT
            if whole or not held:
                held.append(text)
            elif len(held) > 1:  # too long: only its beginning is kept, for the quarantine
                held = held[:1]
        if held:
            yield start, "\n".join(held), whole


def too_long(what: str) -> str:
    """The reason for a row that is cut off; what: a line, an object, or the kind of a text's documents."""
    name = {"blank": "a paragraph", "object": "an object"}.get(what, "a line")
    return f"{name} of more than {readers.LINE_LIMIT:,} characters"
