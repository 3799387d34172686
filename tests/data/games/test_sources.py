"""WTHOR files byte by byte, whole and broken; random games as rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from llmtool.core.errors import DataError
from llmtool.data.games.othello import Othello
from llmtool.data.games.sources import OthelloRandomSource, WthorSource
from llmtool.data.sampling import sampled

GAME = "f5d6c3d3c4f4"
RECORD = bytes([3, 1, 2, 0, 5, 0, 40, 36]) + bytes([56, 64, 33, 34, 43, 46]) + bytes(54)


def header(games: int, year: int = 1999, board: int = 8) -> bytes:
    return (
        bytes([20, 15, 9, 30])
        + games.to_bytes(4, "little")
        + bytes(2)
        + year.to_bytes(2, "little")
        + bytes([board, 0, 24, 0])
    )


def source(path: Path) -> WthorSource:
    return WthorSource(format="wthor", path=str(path))


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_record_is_read_byte_by_byte(tmp_path: Path) -> None:
    assert len(RECORD) == 68
    assert len(header(1)) == 16
    path = put(tmp_path / "WTH_1999.wtb", header(2) + RECORD * 2)
    (chunk,) = source(path).read()
    assert chunk.frame.to_dict("records")[0] == {
        "moves": "f5 d6 c3 d3 c4 f4", "black_discs": "40", "year": "1999",
        "black": "2", "white": "5", "tournament": "259",
    }  # fmt: skip
    assert chunk.line.tolist() == [1, 2]
    assert Othello().split(GAME) == chunk.frame["moves"][0].split()


def test_packed_files_and_folders_are_read_alike(tmp_path: Path) -> None:
    put(tmp_path / "a.wtb", header(1) + RECORD)
    put(tmp_path / "b.wtb.gz", gzip.compress(header(3, year=2000) + RECORD * 3))
    (chunk,) = source(tmp_path).read()
    assert chunk.frame["year"].tolist() == ["1999", *["2000"] * 3]
    assert chunk.file.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({10: 99}, "move 3 is no square: 99"),
        ({9: 0}, "move 2 is missing, others follow"),
        ({13: 19}, "move 6 is no square: 19"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, change: dict[int, int], reason: str) -> None:
    record = bytearray(RECORD)
    for at, byte in change.items():
        record[at] = byte
    path = put(tmp_path / "a.wtb", header(2) + RECORD + bytes(record))
    (chunk,) = source(path).read()
    (bad,) = chunk.bad
    assert (bad.line, bad.reason) == (2, reason)
    assert len(chunk) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header(3) + RECORD * 2 + RECORD[:9], "says 3 games, and it ends after 2"),
        (header(1) + RECORD * 2, "says 1 games, and it goes on after them"),
        (header(1, board=10) + RECORD, "a board of 10 x 10"),
        (b"1. e4 e5 2. Nf3 Nc6\n", "no WTHOR file"),
        (b"\x14", "1 bytes; a WTHOR file begins with 16"),
        (b"", "the file is empty"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = put(tmp_path / "a.wtb", data)
    with pytest.raises(DataError, match=says):
        list(source(path).read())


def test_random_games_are_rows_whatever_the_chunks_are() -> None:
    made = OthelloRandomSource(format="othello_random", games=100, seed=4)
    whole = [text for chunk in made.read() for text in chunk.frame["moves"]]
    parts = [text for chunk in made.read(rows=7) for text in chunk.frame["moves"]]
    assert whole == parts
    assert len(set(whole)) == 100
    assert not any(Othello().flaws([text.split() for text in whole]))
    other = OthelloRandomSource(format="othello_random", games=3, seed=5)
    assert [text for chunk in other.read() for text in chunk.frame["moves"]] != whole[:3]


def test_a_rehearsal_reads_the_first_games() -> None:
    made = OthelloRandomSource(format="othello_random", games=1000)
    few = sampled(made, 18_000)
    assert few.games == 100
    assert few._sample.share("train") == 0.1
    assert not few._sample.whole
    assert sampled(made, 10**9)._sample.whole
