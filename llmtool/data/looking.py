"""Looks at one file of an unknown kind: what it is, how it is written, and a sample of its rows."""

from __future__ import annotations

import codecs
import csv
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import decimals, readers
from llmtool.data.cells import MISSING, Cells
from llmtool.data.csv_source import CsvSource, TsvSource
from llmtool.data.endings import PACKED, ROW_FORMATS, ending, plain
from llmtool.data.games.pgn import PgnSource
from llmtool.data.games.sources import HEADER as WTHOR_HEADER
from llmtool.data.games.sources import wthor_header
from llmtool.data.header import names_columns, names_of
from llmtool.data.json_sources import JsonlSource, array_elements
from llmtool.data.parquet_source import ParquetSource
from llmtool.data.sampling import UNPACKED
from llmtool.data.sources import DecodedSource, TextSource, frame

if TYPE_CHECKING:
    import pandas as pd

WHOLE = 40_000_000  # bytes of unpacked text that are read whole; of more HEAD, and STRETCHES over the rest
HEAD, STRETCH, STRETCHES = 4_000_000, 160_000, 32
ROWS = 200_000  # rows that are looked at, at most
HEADS = 1 << 18  # bytes that tell encoding and form
PROBE = 200  # rows by which delimiters and quotes are compared
_FORMATS = ROW_FORMATS | {
    ".txt": "text", ".text": "text", ".md": "text", ".pgn": "pgn", ".wtb": "wthor", ".bin": "cifar",
}  # fmt: skip
_OTHELLO = re.compile(r"(?:[a-h][1-8][\s,]*){20,70}", re.IGNORECASE)
_PAIR = re.compile(rb"[\xa1-\xfe]{2}")  # the bytes of a common Chinese sign in GB2312
_PGN = re.compile(r"^\s*\[\w+ \"", re.MULTILINE)

Kind = Literal["rows", "text", "pictures", "games"]


@dataclass
class Sight:
    """What lies at a path.

    source: the keys of `data.source`. why: key of it -> what was seen. frame: sampled rows, of texts in the
    column `text`. rows: of the whole data (of train, where its files say which those are), about or `exact`.
    pictures: size, channels, classes. game: othello or chess.
    """

    kind: Kind
    source: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    frame: pd.DataFrame | None = None
    rows: int = 0
    exact: bool = True
    bad: int = 0  # of the rows that were looked at, unusable ones
    named: bool = True  # whether the columns have names of their own
    size: int = 0  # bytes
    looked: int = 0  # rows that were looked at, unusable ones too
    pictures: dict[str, Any] = field(default_factory=dict)
    game: str = ""
    other: pd.DataFrame | None = None  # rows of the test files, where there are any

    @property
    def form(self) -> str:
        """The format of the source."""
        return str(self.source["format"])

    def about(self) -> str:
        """How many rows there are, in words."""
        return f"{self.rows:,}" if self.exact else f"about {float(f'{self.rows:.2g}'):,.0f}"


def form_by_name(name: str) -> str | None:
    """The format that a file's name announces."""
    return "idx" if re.search(r"idx[13]-ubyte$", plain(name)) else _FORMATS.get(ending(name))


def form_by_content(path: Path) -> str:
    """The format of a file whose name does not tell it."""
    text = _head(path)[0]
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        return "json" if start == "[" and not _PGN.match(text) else "jsonl" if start == "{" else "pgn"
    delimiter, share = _delimiter(text, '"')
    return "csv" if share >= 0.9 and delimiter else "text"


# --- one file ---------------------------------------------------------------------------------------------


def look_at(path: str, form: str) -> Sight:
    """A file of this format. DataError, or ConfigError, says why it cannot be used."""
    place = Path(path)
    size = place.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    if form == "wthor":
        return _wthor(path)
    if form in ("idx", "cifar"):
        return packed_pictures(path, form)
    if form == "parquet":
        return _parquet(path)
    text, encoding, why = _head(place)
    if form == "json" and text.lstrip()[:1] == "{":
        form = "jsonl"
        why["format"] = "named .json, but each line is an object of its own"
    if form in ("text", "csv") and _PGN.match(text) and "1." in text:
        form = "pgn"
    if form == "pgn":
        why["format"] = "tags such as [Event ...]"
    source: dict[str, Any] = {"format": form, "path": path}
    if encoding != "utf-8":
        source["encoding"] = encoding
    if form == "pgn":
        chunk = next(PgnSource.model_validate(source).read())
        bad, looked = len(chunk.bad), len(chunk) + len(chunk.bad)
        return Sight("games", source, why, rows=_tagged(place), exact=False, bad=bad, size=size,
                     looked=looked, game="chess")  # fmt: skip
    if form == "text":
        return _text(source, why, text, size)
    if form in ("csv", "tsv"):
        return _table(source, why, text, size)
    return _json(source, why, size)


def _head(path: Path) -> tuple[str, str, dict[str, str]]:
    """The beginning of a file as text, its encoding, and what was seen of that."""
    data = b""
    for block in readers.blocks(path):
        data += block
        if len(data) >= HEADS:
            break
    if data.startswith(readers.UTF_16):
        name, seen = "utf-16", "it begins with a UTF-16 mark"
    elif b"\0" in data[:8192]:
        raise DataError(f"{path}: not text (NUL bytes in its first 8 KiB), and no form of data that is known")
    else:
        name, seen = _encoding(data)
    text = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)(errors="replace").decode(
        data
    )
    if not text.strip():
        raise DataError(f"{path}: the file holds nothing but blanks")
    return text.replace("\r\n", "\n").replace("\r", "\n"), name, {"encoding": seen}


def _encoding(data: bytes) -> tuple[str, str]:
    """UTF-8 if it is; else Chinese where that gives mostly Chinese signs; else Latin."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
        return "utf-8", "valid UTF-8"
    except UnicodeDecodeError as error:
        seen = f"no UTF-8 (byte {data[error.start]:#x} at {error.start:,})"
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data)
        foreign = [sign for sign in text if ord(sign) > 127]
        # Both bytes of common signs are high ones, while western letters seldom stand two by two.
        high, paired = sum(byte > 0x7F for byte in data), 2 * len(_PAIR.findall(data))
        chinese = sum("\u4e00" <= sign <= "\u9fff" for sign in foreign)
        if paired > 0.8 * high and chinese > 0.7 * len(foreign) > 20:
            return "gb18030", f"{seen}; read so, most signs are Chinese"
    except UnicodeDecodeError:
        pass
    if any(0x80 <= byte < 0xA0 for byte in data):
        return "cp1252", f"{seen}; its bytes are letters and quotes of Windows' western code"
    return "latin-1", f"{seen}; western letters, if it is not another code"


def unpacked_size(path: Path) -> int:
    """Bytes of a file once unpacked, about."""
    size = path.stat().st_size
    if path.suffix.lower() not in PACKED or size < 4:
        return size
    if path.suffix.lower() == ".gz":  # its last four bytes are the size, modulo 2^32
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            said = int.from_bytes(file.read(4), "little")
        return said if said >= size // 2 else size * UNPACKED
    return size * UNPACKED


def _sample(source: dict[str, Any], into: Path) -> tuple[Path, float]:
    """The file, or one in `into` that holds whole lines of it, and which share of its bytes that is."""
    path = Path(source["path"])
    whole = unpacked_size(path)
    if whole <= WHOLE:
        return path, 1.0
    sample = into / "sample"
    taken = 0
    with sample.open("wb") as out:
        if path.suffix.lower() in PACKED:  # no place in it can be reached but through all before it
            for block in readers.blocks(path):
                taken += out.write(block)
                if taken >= WHOLE:
                    break
            out.write(b"\n")
            return sample, min(1.0, taken / max(whole, taken))
        with path.open("rb") as file:
            for number in range(STRETCHES + 1):
                begin = 0 if number == 0 else HEAD + (whole - HEAD - STRETCH) * number // STRETCHES
                file.seek(begin)
                part = file.read(STRETCH if number else HEAD)
                first = part.find(b"\n") + 1 if number else 0
                last = part.rfind(b"\n") + 1
                taken += out.write(part[first:last])
    return sample, taken / whole


# --- tables -----------------------------------------------------------------------------------------------


def _table(source: dict[str, Any], why: dict[str, str], text: str, size: int) -> Sight:
    path = Path(source["path"])
    quote: str | None = '"'
    if source["format"] == "csv":
        delimiter, share = _delimiter(text, quote)
        bare, share_bare = _delimiter(text, None)
        if share_bare > share + 0.02:
            delimiter, quote = bare, None
            source["quote"] = None
            why["quote"] = (
                'read without quotes more lines have the same number of fields: " is plain text here'
            )
        if delimiter == "\t":
            source["format"] = "tsv"
        elif delimiter not in ("", ","):
            source["delimiter"] = delimiter
            why["delimiter"] = f"most lines have the same number of fields between {delimiter!r}"
    delimiter = source.get("delimiter") or ("\t" if source["format"] == "tsv" else ",")
    if text.startswith("#") and delimiter not in text.partition("\n")[0]:
        source["comment"] = "#"
        why["comment"] = "its first line begins with # and is no row"
    lines = [
        line for line in text.split("\n") if line.strip() and not (source.get("comment") and line[0] == "#")
    ]
    records = [record for record in _records(lines[: PROBE + 1], delimiter, quote) if record]
    if len(records) < 2:
        raise DataError(f"{path}: a single line; there is nothing to learn from it")
    cells = [cell for record in records[1:] for cell in record[1:] if cell]
    if sum(cell[0] == " " for cell in cells) > 0.9 * max(1, len(cells)):
        source["skip_space"] = True
        why["skip_space"] = "a blank stands after each delimiter"
    named, seen = names_columns(
        [[decimals.with_point(cell.strip()) for cell in record] for record in records]
    )
    if named:
        seen = "; ".join([seen, *names_of(records[0], str(path))[2]])
    why["header"] = seen
    if not named:
        source["header"] = [f"c{number}" for number in range(1, len(records[0]) + 1)]
    form = CsvSource if source["format"] == "csv" else TsvSource
    return _with_decimal(_read(source, why, size, form, named))


def _with_decimal(sight: Sight) -> Sight:
    """The table, its numbers read with a decimal comma where columns of them have one."""
    assert sight.frame is not None
    counts = {str(name): Counter(Cells(sight.frame[name]).text) for name in sight.frame.columns}
    found = [name for name, words in counts.items() if decimals.found_in(words, MISSING)]
    if not found:
        return sight
    shown = next(word for word in counts[found[0]] if "," in word)
    others = f" ({len(found)} columns do)" if len(found) > 1 else ""
    sight.source["decimal"] = ","
    sight.why["decimal"] = f"{found[0]} holds numbers such as {shown}{others}"
    sight.frame = CsvSource(format="csv", path="-", decimal=",").plain(sight.frame)
    return sight


def _delimiter(text: str, quote: str | None) -> tuple[str, float]:
    """The delimiter that gives most lines the same number of fields, and that share; "" where none does."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")][:PROBE]
    best = ("", 0.0, 0)
    for delimiter in ",;\t|":
        widths = [len(record) for record in _records(lines, delimiter, quote)]
        width = max(set(widths), key=widths.count, default=1)
        share = widths.count(width) / max(1, len(widths))
        if (width > 1 and (share, width) > (best[1] + 0.02, 0)) or (width > best[2] > 0 and share >= best[1]):
            best = (delimiter, share, width)
    if best[0] == ",":  # or are its commas those of 12,5;3,7?
        for other in ";\t|":
            records = _records(lines, other, quote)
            commas = [cell for record in records for cell in record if "," in cell]
            even = len(set(map(len, records))) == 1 < len(records[0])
            if even and all(decimals.with_point(cell) != cell for cell in commas):
                return other, 1.0
    return best[0], best[1]


def _records(lines: list[str], delimiter: str, quote: str | None) -> list[list[str]]:
    """The fields of each record; none where it cannot be read."""
    csv.field_size_limit(readers.RECORD_LIMIT)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    feed = (line + "\n" for line in lines)
    reader = csv.reader(feed, delimiter=delimiter, quotechar=quote, quoting=quoting, strict=True)
    records: list[list[str]] = []
    while True:
        try:
            records.append(next(reader))
        except StopIteration:
            return records
        except csv.Error:
            records.append([])


# --- rows of every form -----------------------------------------------------------------------------------


def _read(
    source: dict[str, Any],
    why: dict[str, str],
    size: int,
    form: type[DecodedSource],
    named: bool = True,
) -> Sight:
    """The sample of a file through its own source."""
    with tempfile.TemporaryDirectory(prefix="llmtool-init-") as into:
        path, share = _sample(source, Path(into))
        reading = form.model_validate({**source, "path": str(path)})
        rows, bad, cut = _gathered(reading)
    counted = len(rows) / share / cut
    exact, looked = share == 1 and cut == 1, len(rows) + bad
    return Sight("rows", source, why, rows, round(counted), exact, bad, named, size, looked)


def _gathered(source: Any) -> tuple[pd.DataFrame, int, float]:
    """At most ROWS rows, how many were unreadable, and which share of the file's characters was read."""
    import pandas as pd

    frames, rows, bad, cut, first = [], 0, 0, 1.0, ""
    for chunk in source.read():
        frames.append(chunk.frame)
        rows, bad = rows + len(chunk), bad + len(chunk.bad)
        for row in chunk.bad[:1]:
            first = first or f"line {row.line}: {row.reason}"
        if rows >= ROWS:
            cut = min(1.0, sum(_characters(one) for one in frames) / max(1, unpacked_size(source.files()[0])))
            break
    if not rows:
        raise _unreadable(source.path, first, bad)
    return pd.concat(frames, ignore_index=True), bad, cut


def _unreadable(path: str | Path, first: str, bad: int) -> DataError:
    """None of the rows can be read; first: where the first one is, and why not."""
    return DataError(f"{path}, {first} (none of its {bad:,} rows can be read)")


def _characters(rows: pd.DataFrame) -> int:
    """Of the cells and what stands between them."""
    return sum(len(str(cell)) + 1 for name in rows.columns for cell in rows[name].tolist())


def _json(source: dict[str, Any], why: dict[str, str], size: int) -> Sight:
    if source["format"] == "jsonl":
        return _read(source, why, size, JsonlSource)
    path, encoding = Path(source["path"]), source.get("encoding", "utf-8")
    rows, columns, characters, bad, first = list[Any](), dict[str, None](), 0, 0, ""
    for line, text, _ in array_elements(path, encoding):
        row = readers.json_row(text)
        characters += len(text) + 2
        if isinstance(row, str):
            bad += 1
            first = first or f"line {line}: {row}"
        else:
            rows.append(row)
            columns |= dict.fromkeys(row)
        if characters > WHOLE or len(rows) >= ROWS:
            break
    if bad and not rows:
        raise _unreadable(path, first, bad)
    if not rows:
        raise DataError(f"{path}: an array without objects")
    whole = characters <= WHOLE and len(rows) < ROWS
    count = len(rows) if whole else round(len(rows) * unpacked_size(path) / characters)
    found = frame(list(columns), rows, np.arange(len(rows)))
    looked = len(found) + bad
    return Sight("rows", source, why, found, count, whole, bad, size=size, looked=looked)


def _parquet(path: str) -> Sight:
    source = ParquetSource(format="parquet", path=path)
    sample, bad, _ = _gathered(source)
    import pyarrow.parquet  # _gathered has said so where it is missing

    rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in source.files())
    size = sum(file.stat().st_size for file in source.files())
    return Sight("rows", {"format": "parquet", "path": path}, {}, sample, rows, True, bad, size=size,
                 looked=len(sample) + bad)  # fmt: skip


def _text(source: dict[str, Any], why: dict[str, str], text: str, size: int) -> Sight:
    """Plain text: one document, a document a line, or a game a line."""
    lines = [line for line in text.split("\n") if line.strip()]
    games = [line for line in lines[:PROBE] if _OTHELLO.match(line.strip())]
    if len(games) > 0.9 * len(lines[:PROBE]):
        found = _with_documents(source, why, "line", "each line is a game of moves such as f5 d6 c3", size)
        return replace(found, kind="games", game="othello")
    mean = sum(map(len, lines)) / max(1, len(lines))
    if mean > 300 and len(lines) > 3:
        return _with_documents(source, why, "line", f"lines of {mean:,.0f} characters: each is a text", size)
    return _with_documents(
        source, why, "file", f"lines of {mean:,.0f} characters: one text over many lines", size
    )


def _with_documents(
    source: dict[str, Any], why: dict[str, str], documents: str, seen: str, size: int
) -> Sight:
    source["documents"], why["documents"] = documents, seen
    found = _read(source, why, size, TextSource)
    if documents == "file":
        found = replace(found, rows=1)
    return replace(found, kind="text")


def _tagged(path: Path) -> int:
    """Games of a PGN file, about: by the tags in its beginning."""
    text = _head(path)[0]
    return max(1, round(text.count("[Event ") * unpacked_size(path) / len(text)))


# --- games and pictures in files of their own -------------------------------------------------------------


def _wthor(path: str) -> Sight:
    games, _ = wthor_header(Path(path), next(readers.blocks(Path(path)))[:WTHOR_HEADER])
    why = {"format": "named .wtb: games as the French Othello federation keeps them"}
    return Sight("games", {"format": "wthor", "path": path}, why, rows=games, size=Path(path).stat().st_size,
                 game="othello")  # fmt: skip


def packed_pictures(path: str, form: str) -> Sight:
    """A file of many pictures, by its header or its length."""
    place = Path(path)
    if form == "cifar":
        count, rest = divmod(unpacked_size(place), 3073)
        if rest:
            count, rest = divmod(unpacked_size(place), 3074)
        if rest:
            raise ConfigError(
                f"{path}: a binary file, and not one of CIFAR's: what it holds is not known here"
            )
        seen = {
            "height": 32,
            "width": 32,
            "channels": 3,
            "classes": 10 if unpacked_size(place) % 3073 == 0 else 100,
        }
        why = {"format": "its length is a whole number of CIFAR's records"}
        return Sight("pictures", {"format": "cifar", "path": path}, why, rows=count, pictures=seen)
    if "labels" in place.name:
        raise ConfigError(f"{path}: the labels; name the file of the pictures, which lies beside it")
    head = next(readers.blocks(place))[:16]
    if head[:4] != b"\0\0\x08\x03":
        raise ConfigError(f"{path}: no IDX file of pictures (it begins with {head[:4].hex(' ')})")
    count, height, width = (int.from_bytes(head[at : at + 4], "big") for at in (4, 8, 12))
    seen = {"height": height, "width": width, "channels": 1, "classes": 10}
    why = {"format": "its first bytes say: pictures of MNIST's form"}
    return Sight("pictures", {"format": "idx", "path": path}, why, rows=count, pictures=seen)
