"""Rows that come in: every one in its place, whatever can be read of it, and the format found out."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import pytest

from llmtool.core.errors import ConfigError
from llmtool.data import incoming
from llmtool.data.csv_source import CsvSource
from llmtool.data.games.pgn import PgnSource
from llmtool.data.incoming import Piped, Stretch
from llmtool.data.json_sources import JsonlSource
from llmtool.data.sources import TextSource

CSV = CsvSource(format="csv", path="train.csv", delimiter=";", encoding="latin-1")


def read(source: Any, content: bytes, rows: int = 8192) -> list[tuple[list[list[Any]], dict[int, str]]]:
    path = cast(Path, Piped(io.BytesIO(content)))
    return [(part.frame.values.tolist(), part.bad) for part in stretches(source, path, rows)]


def stretches(source: Any, path: Path, rows: int = 8192) -> list[Stretch]:
    found = list[Stretch]()
    incoming.read(incoming.settled(source, path, ["y"]), path, found.append, rows)
    return found


def test_bad_rows_keep_their_place_across_stretches() -> None:
    source = CsvSource(format="csv", path="-")
    found = read(source, b"a,b\n1,2\n3\n4,5\n\xff,6\n7,8\n", rows=2)
    assert found == [
        ([["1", "2"]], {1: "1 field where there are 2 columns (line 3)"}),
        ([["4", "5"]], {1: "not valid utf-8 (line 5)"}),
        ([["7", "8"]], {}),
    ]


def kept(source: Any, content: bytes) -> list[dict[int, dict[str, Any]]]:
    path = cast(Path, Piped(io.BytesIO(content)))
    return [part.kept for part in stretches(source, path, 2)]


def test_what_could_be_read_of_a_bad_row_is_kept() -> None:
    cells = b'id,x,y\n1\n2,3,4,5,"6"\n7,\xff,8\n9,\xff\n10,"11,12\n'
    assert kept(CsvSource(format="csv", path="-"), cells) == [
        {0: {"id": "1"}, 1: {"id": "2", "x": "3", "y": "4,5,6"}},
        {0: {"id": "7", "y": "8"}, 1: {"id": "9"}},
        {},
    ]
    objects = b'{"id": 1, "x": "a"}\n{"id": 2, "x": "\xff"}\n{"id": 3\n'
    assert kept(JsonlSource(format="jsonl", path="-"), objects) == [{1: {"id": 2}}, {}]
    game = b'[Event "a"]\n[White "b"]\n[FEN "8/8/8/8/8/8/8/8 w - -"]\n\n1. e4 *\n'
    (row,) = kept(PgnSource(format="pgn", path="-"), game)[0].values()
    assert {name: cell for name, cell in row.items() if cell} == {
        "moves": "1. e4 *", "event": "a", "white": "b", "fen": "8/8/8/8/8/8/8/8 w - -",
    }  # fmt: skip


def test_there_is_a_stretch_even_where_there_is_no_row() -> None:
    source = CsvSource(format="csv", path="-")
    assert read(source, b"a,b\n") == [([], {})]
    assert read(source, b"a,b\n1,2\n", rows=1) == [([["1", "2"]], {})]


@pytest.mark.parametrize("prompt", [True, False])
def test_rows_that_have_come_are_given_when_no_more_are_waiting(prompt: bool) -> None:
    there, more = os.pipe()
    os.write(more, b"a,b\n1,2\n3\n5,")
    found = list[Stretch]()

    def take(stretch: Stretch) -> None:
        found.append(stretch)
        if len(found) == 1 and prompt:
            os.write(more, b"6\n7,8\n")
            os.close(more)

    if not prompt:
        os.write(more, b"6\n7,8\n")
        os.close(more)
    with open(there, "rb") as stream:
        path = cast(Path, Piped(stream))
        source = incoming.settled(CsvSource(format="csv", path="-"), path, [])
        incoming.read(source, path, take, early=lambda columns: columns == ["a", "b"])
    parts = [[0], [0, 1]] if prompt else [[0, 2, 3]]  # the second row is a bad one
    assert [part.frame.index.tolist() for part in found] == parts
    assert [len(part) for part in found] == ([2, 2] if prompt else [4])


def test_rows_wait_for_the_columns_that_are_looked_for() -> None:
    there, more = os.pipe()
    os.write(more, b'{"b": 1}\n')
    found, asked = list[Stretch](), list[list[str]]()

    def early(columns: list[str]) -> bool:
        asked.append(list(columns))
        if len(asked) == 1:
            os.write(more, b'{"a": 2}\n')
        return "a" in columns

    def take(stretch: Stretch) -> None:
        found.append(stretch)
        os.close(more)

    with open(there, "rb") as stream:
        path = cast(Path, Piped(stream))
        incoming.read(JsonlSource(format="jsonl", path="-"), path, take, early=early)
    assert asked == [["b"], ["b", "a"]]
    assert [part.frame.index.tolist() for part in found] == [[0, 1]]


def test_names_of_the_configuration_are_without_the_target_where_rows_are() -> None:
    source = CsvSource(format="csv", path="-", header=["a", "y"])
    path = cast(Path, Piped(io.BytesIO(b"1\n2\n")))
    (part,) = stretches(source, path)
    assert list(part.frame.columns) == ["a"]
    assert read(source, b"1,2\n3\n") == [([["1", "2"]], {1: "1 field where there are 2 columns (line 2)"})]


def test_lines_of_text_are_rows_the_blank_ones_too_and_a_file_is_one() -> None:
    lines = TextSource(format="text", path="-", documents="line")
    assert read(lines, b"one\n\n two\n") == [([["one"], [""], [" two"]], {})]
    whole = TextSource(format="text", path="-", documents="file")
    assert read(whole, b"one\n\n two\n") == [([["one\n\n two\n"]], {})]


def test_the_format_is_what_the_name_says_else_that_of_the_data() -> None:
    assert incoming.source_of("new.csv", None, CSV).encoding == "latin-1"  # type: ignore[attr-defined]
    assert incoming.source_of("new.csv.gz", None, CSV).path == "new.csv.gz"
    german = CSV.model_copy(update={"decimal": ","})
    assert incoming.source_of("new.tsv", None, german).decimal == ","  # type: ignore[attr-defined]
    for name, form in (
        ("a.tsv", "tsv"),
        ("a.jsonl.gz", "jsonl"),
        ("a.txt", "text"),
        ("a.data", "csv"),
        ("-", "csv"),
    ):
        assert incoming.source_of(name, None, CSV).format == form  # type: ignore[attr-defined]
    assert incoming.source_of("a.csv", "text", CSV).documents == "line"  # type: ignore[attr-defined]
    for name in ("a.data", "-"):
        with pytest.raises(ConfigError, match="which format"):
            incoming.source_of(name, None, None)
