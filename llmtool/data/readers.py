"""From a path to records: files, decompressed blocks, decoded lines, CSV and JSON records, pieces of text.

Everything is read in bounded memory, and nothing a file holds is trusted: names and magic bytes must
agree, what unpacks to far more than it is stops, bytes that are no text mark their row as bad instead of
ending the run.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import remote
from llmtool.data.cells import Nested
from llmtool.data.endings import plain
from llmtool.data.sampling import Thin

BLOCK = 1 << 18  # bytes decompressed at a time
RECORD_LIMIT = 1 << 20  # characters of one CSV record: a quote that is never closed costs one row alone
LINE_LIMIT = 1 << 24  # characters of one line of JSON or text, or of one paragraph
REREAD_LIMIT = 1 << 28  # characters read again after quotes that do not pair, before the file is refused
MAX_RATIO = 250  # unpacked bytes per packed byte beyond which a file is a decompression bomb ...
BOMB_FLOOR = 1 << 28  # ... once it has unpacked to this much (real text packs 3 to 20 times)
PIECE = 2048  # characters of a piece of a long text ...
PIECE_LIMIT = 1 << 16  # ... and at most this many where there is no good place to cut

MARK = (
    "\udcff"  # stands for bytes that are no text in the file's encoding; no decoder yields it for good bytes
)
codecs.register_error("llmtool.mark", lambda error: (MARK, getattr(error, "end")))  # noqa: B009

MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"PK\x03\x04": "a zip archive (or an Excel file)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file (`format: parquet`)",
    b"\x7fELF": "a program",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class BrokenFile(DataError):
    """A file ends or breaks in the middle; whoever reads it adds how many rows came before."""


@dataclass
class BadRow:
    """A row that could not be used, and why; `line` counts from 1, `text` holds its first 200 characters;
    `row` is what could be read of it, as a good one's record has it (of CSV perhaps more cells, or fewer)."""

    file: str
    line: int
    reason: str
    text: str = ""
    row: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.text = self.text[:200].replace(MARK, "\ufffd")


# --- files ------------------------------------------------------------------------------------------------


def expand(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path (or URL) names: itself, the matching files below a folder, or those of a glob;
    sorted. Hidden files and folders are left out. Raises DataError when there is none."""
    if remote.is_url(path):
        return remote.expand(path, suffixes)
    found = Path(path)
    if any(sign in path for sign in "*?[") and not found.exists():
        files = [Path(name) for name in glob.glob(path, recursive=True)]
        files = sorted(file for file in files if not file.is_dir())
        if not files:
            raise DataError(f"{path}: no file matches")
    elif found.is_dir():
        files = sorted(_below(found, suffixes))
        if not files:
            raise DataError(
                f"{path}: this folder has no file that ends in {' or '.join(suffixes)} (or .gz, .zst)"
            )
    else:
        files = [found]
    for file in files:
        _refuse_irregular(file)
    return files


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and plain(name).endswith(suffixes):
                yield Path(parent, name)


def _refuse_irregular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise DataError(f"{path}: {'no such file' if missing else reason_of(error)}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file")


def reason_of(error: Exception) -> str:
    """What went wrong, in the system's words, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


# --- bytes ------------------------------------------------------------------------------------------------


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if its name ends in .gz or .zst, in blocks of about 256 KiB.

    What stands in place of a path and has `piped` (data.incoming.Piped) gives its own.
    """
    if (piped := getattr(path, "piped", None)) is not None:
        yield from _from_pipe(path, piped())
        return
    _refuse_irregular(path)
    packing = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
    try:
        with path.open("rb") as raw:
            _check_magic(path, raw.read(16), packing)
            raw.seek(0)
            produced = 0
            for block in _unpacked(raw, packing):
                produced += len(block)
                if packing and produced > BOMB_FLOOR and produced > MAX_RATIO * raw.tell():
                    raise DataError(f"{path}: unpacks to more than {MAX_RATIO} times its size; refused")
                yield block
    except EOFError:
        raise BrokenFile(f"{path}: the compressed file ends in the middle") from None
    except (OSError, zlib.error) as error:
        raise BrokenFile(f"{path}: {reason_of(error)}") from None
    if not produced:
        raise DataError(f"{path}: the file is empty")


def _from_pipe(path: Path, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if not (first := next(blocks, b"")):
        raise DataError(f"{path}: is empty")
    _check_magic(path, first[:16], "")
    yield first
    yield from blocks


def _check_magic(path: Path, head: bytes, packing: str) -> None:
    if packing and head:
        wanted = b"\x1f\x8b" if packing == ".gz" else b"\x28\xb5\x2f\xfd"
        if not head.startswith(wanted):
            raise DataError(f"{path}: the name says {packing}, but this is not {MAGIC[wanted]}")
        return
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: this is {name}, not text")


def _unpacked(raw: BinaryIO, packing: str) -> Iterator[bytes]:
    if packing == ".zst":
        yield from _unpacked_zst(raw)
        return
    stream = gzip.GzipFile(fileobj=raw) if packing else raw
    while block := stream.read(BLOCK):
        yield block


def _unpacked_zst(raw: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ConfigError("`pip install llmtool[data]` reads .zst files") from None
    machine = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame, begun = machine.decompressobj(), False
    try:
        while piece := raw.read(2048):  # small: 2 KiB can unpack to at most 64 MiB
            while piece:
                begun = True
                if block := frame.decompress(piece):
                    yield block
                piece = b""
                if frame.eof:
                    piece, frame, begun = frame.unused_data, machine.decompressobj(), False
    except zstandard.ZstdError as error:
        raise OSError(f"damaged Zstandard data ({reason_of(error)})") from None
    if begun:
        raise EOFError


# --- text -------------------------------------------------------------------------------------------------


def characters(path: Path, encoding: str, strict: bool) -> Iterator[str]:
    """The text of a file in blocks: line ends become \\n, a byte-order mark goes, what is no text is MARK.

    strict: any NUL in the first 8 KiB makes the file binary; otherwise only many of them, or one in the
    first line.
    """
    name = codecs.lookup(encoding).name
    decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)(errors="llmtool.mark")
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    first = True
    for block in blocks(path):
        if first:
            _refuse_binary(path, block[:8192], name, strict)
            first = False
        if text := lines.decode(block):
            yield text
    if text := lines.decode(b"", final=True):
        yield text


def _refuse_binary(path: Path, head: bytes, encoding: str, strict: bool) -> None:
    if head.startswith(UTF_16) and not encoding.startswith(("utf-16", "utf-32")):
        raise DataError(f"{path}: starts with a UTF-16 mark; say `encoding: utf-16`")
    if head.startswith(codecs.BOM_UTF8) and not encoding.startswith("utf-8"):
        raise DataError(f"{path}: starts with a UTF-8 mark; leave `encoding: {encoding}` out")
    if encoding.startswith(("utf-16", "utf-32")):
        return
    nuls = head.count(b"\0")
    if nuls and (strict or nuls > max(8, len(head) // 100) or b"\0" in head.partition(b"\n")[0]):
        raise DataError(f"{path}: not text (NUL bytes in its first 8 KiB)")


def lines(
    path: Path, encoding: str, limit: int, strict: bool = False, thin: Thin | None = None
) -> Iterator[tuple[int, str, bool]]:
    """(number from 1, text, whole) of each line; one beyond `limit` characters is cut, whole False.

    thin: of lines outside its stretches nothing is left, they are blank ones.
    """
    rest, number, skipping = "", 0, False
    blocks = characters(path, encoding, strict)
    for text in blocks if thin is None else thin.lines(blocks):
        parts = text.split("\n")
        parts[0] = rest + parts[0]
        rest = parts.pop()
        for part in parts:
            number += 1
            if skipping:  # the end of a line that was given out, cut, before
                skipping = False
            elif len(part) > limit:
                yield number, part[:200], False
            else:
                yield number, part, True
        if len(rest) > limit and not skipping:
            yield number + 1, rest[:200], False
            skipping = True
        rest = "" if skipping else rest
    if rest:
        yield number + 1, rest, True


def flaw(text: str, encoding: str) -> str | None:
    """Why this stretch of text cannot be used, if so."""
    if MARK in text:
        return f"not valid {encoding}"
    return "a NUL character" if "\0" in text else None


# --- CSV --------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """This record cannot be read; the argument is the reason."""


class _Feeder:
    """Hands lines to csv.reader, remembers those of the record at hand, takes back those read in vain."""

    def __init__(self, source: Iterator[tuple[int, str, bool]], comment: str | None) -> None:
        self.source, self.comment = source, comment
        self.waiting: deque[tuple[int, str, bool]] = deque()
        self.taken: list[tuple[int, str, bool]] = []
        self.size = 0

    def __iter__(self) -> _Feeder:
        return self

    def __next__(self) -> str:
        while True:
            line = self.waiting.popleft() if self.waiting else next(self.source)
            text = line[1]
            if self.taken or not (text.strip(" ") == "" or (self.comment and text.startswith(self.comment))):
                break
        self.taken.append(line)
        self.size += len(text)
        if not line[2]:
            raise _Refused(f"a line of more than {RECORD_LIMIT:,} characters")
        if self.size > RECORD_LIMIT:
            raise _Refused("a quote that is not closed")
        return text + "\n"

    def start(self) -> None:
        self.taken, self.size = [], 0

    def give_back(self) -> None:
        self.waiting.extendleft(reversed(self.taken[1:]))


def csv_records(
    path: Path,
    encoding: str,
    delimiter: str,
    quote: str | None,
    comment: str | None,
    skip_space: bool,
    thin: Thin | None = None,
) -> Iterator[tuple[int, list[str]] | BadRow]:
    """(line, fields) of each record, the header's too; an unreadable one costs its first line only."""
    csv.field_size_limit(RECORD_LIMIT)
    feeder = _Feeder(lines(path, encoding, RECORD_LIMIT, thin=thin), comment)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    reader = csv.reader(
        feeder,
        delimiter=delimiter,
        quotechar=quote,
        quoting=quoting,
        skipinitialspace=skip_space,
        strict=True,
    )
    wasted = 0
    while True:
        feeder.start()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (_Refused, csv.Error) as error:
            number, text, _ = feeder.taken[0]
            reason = _csv_reason(error)
            yield BadRow(str(path), number, reason, text)
            wasted += feeder.size if len(feeder.taken) > 1 else 0
            if wasted > REREAD_LIMIT:
                raise DataError(
                    f"{path}, line {number}: too many {reason}; is `quote: {quote}` right?"
                ) from None
            feeder.give_back()
            continue
        number, text, _ = feeder.taken[0]
        whole = text if len(feeder.taken) == 1 else "\n".join(line for _, line, _ in feeder.taken)
        if problem := flaw(whole, encoding):
            yield BadRow(str(path), number, problem, whole, fields)
        elif fields:
            yield number, fields


def _csv_reason(error: Exception) -> str:
    text = str(error)
    if "unexpected end of data" in text or "field larger" in text:
        return "a quote that is not closed"
    if "expected after" in text:
        return "text after a closing quote"
    return text


def sniff_delimiter(path: Path, encoding: str, comment: str | None, quote: str | None) -> str:
    """The most frequent of , ; tab and | outside quotes in the first line; a comma when there is none."""
    for _, text, _ in lines(path, encoding, RECORD_LIMIT):
        if text.strip() and not (comment and text.startswith(comment)):
            bare = (
                re.sub(f"{re.escape(quote)}[^{re.escape(quote)}]*{re.escape(quote)}", "", text)
                if quote
                else text
            )
            return max(",;\t|", key=bare.count)
    return ","


# --- JSON -------------------------------------------------------------------------------------------------


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice[:40]!r} stands twice")
    return result


def _constant(word: str) -> None:
    raise _Refused(f"{word} is no JSON value")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**63:
        raise _Refused("a whole number beyond 64 bits")
    return value


def _real(digits: str) -> float:
    if abs(value := float(digits)) == float("inf"):
        raise _Refused("a number beyond 64-bit floats")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_whole, parse_float=_real
)


def json_row(text: str) -> dict[str, Any] | str:
    """The object of one line, or the reason why it is none. A nested value becomes its JSON text."""
    try:
        row = _decoder.decode(text)
        if not isinstance(row, dict):
            return "not a JSON object"
        for key, value in row.items():
            if isinstance(value, dict | list):
                row[key] = Nested(json.dumps(value, ensure_ascii=False))
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.colno}"
    except RecursionError:
        return "nested too deep"
    except _Refused as error:
        return str(error)
    if "\\u" in text:  # escapes can spell what the file itself cannot hold
        spelled = "".join(key + (value if isinstance(value, str) else "") for key, value in row.items())
        if "\0" in spelled:
            return "a NUL character"
        if not spelled.isascii() and re.search("[\ud800-\udfff]", spelled):
            return "half a surrogate pair"
    return row


# --- pieces of text ---------------------------------------------------------------------------------------

_before_space = re.compile(r"(?<=\S)\s(?=\S)")


def pieces(texts: Iterator[str]) -> Iterator[str]:
    """A text of any length in pieces of about 2 KiB; joined they are the text again.

    A cut comes after a single newline between two non-spaces, so that a tokenizer which splits words off
    first sees the same words as in the whole; where 64 KiB hold none, before a single space; failing
    that, anywhere.
    """
    buffer: list[str] = []
    size = 0
    for text in texts:
        buffer.append(text)
        size += len(text)
        if size > 4 * PIECE_LIMIT:
            rest = yield from _cut("".join(buffer), 2 * PIECE_LIMIT)
            buffer, size = [rest], len(rest)
    rest = yield from _cut("".join(buffer), PIECE)
    if rest:
        yield rest


def _cut(text: str, keep: int) -> Generator[str, None, str]:
    start = newline = 0
    while len(text) - start > keep:
        end = min(start + PIECE_LIMIT, len(text))
        if newline < start + PIECE:
            newline = _newline_between_words(text, start + PIECE)
        if newline < end:
            cut = newline + 1
        elif space := _before_space.search(text, start + PIECE, end):
            cut = space.start()
        elif end == len(text):
            break
        else:
            cut = end
        yield text[start:cut]
        start = cut
    return text[start:]


def _newline_between_words(text: str, at: int) -> int:
    while 0 <= (at := text.find("\n", at)) < len(text) - 1:
        if at and not text[at - 1].isspace() and not text[at + 1].isspace():
            return at
        at += 1
    return len(text)
