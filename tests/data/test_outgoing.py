"""Rows that go out: cells as they are, in every format, and what a format cannot hold is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import outgoing, readers

FIRST = {"a": ["x,y", 'say "hi"', " \n"], "b": [1, None, 2.5], "c": [True, False, None]}


def test_csv_quotes_what_needs_it_and_nothing_else() -> None:
    stream = io.BytesIO()
    writer = outgoing.writer(stream, "csv")
    writer.write(FIRST)
    writer.write({"a": ["z"], "b": [0.1], "c": [None]})
    writer.close()
    assert stream.getvalue() == b'a,b,c\n"x,y",1,true\n"say ""hi""",,false\n" \n",2.5,\nz,0.1,\n'
    with pytest.raises(DataError, match=r"'d' comes up for the first time.*jsonl"):
        writer.write({"a": ["z"], "d": [1]})


def test_csv_has_the_decimal_mark_that_is_asked_for() -> None:
    stream = io.BytesIO()
    outgoing.writer(stream, "csv", delimiter=";", decimal=",").write({"a": ["1.5"], "b": [2.5], "c": [None]})
    assert stream.getvalue() == b"a;b;c\n1.5;2,5;\n"


def test_json_lines_keep_types_and_bear_new_keys() -> None:
    stream = io.BytesIO()
    writer = outgoing.writer(stream, "jsonl")
    writer.write(FIRST)
    writer.write({"a": [float("nan")], "d": ["é"]})
    writer.close()
    found = [json.loads(line) for line in stream.getvalue().decode().splitlines()]
    assert found[1] == {"a": 'say "hi"', "b": None, "c": False}
    assert found[3] == {"a": None, "d": "é"}


def test_json_lines_give_lists_and_objects_of_the_input_back() -> None:
    row = readers.json_row('{"labels": ["cat", 1.5], "about": {"k": [1, null]}, "text": "[1]"}')
    assert isinstance(row, dict)
    stream = io.BytesIO()
    outgoing.writer(stream, "jsonl").write({name: [cell] for name, cell in row.items()})
    assert json.loads(stream.getvalue()) == {
        "labels": ["cat", 1.5], "about": {"k": [1, None]}, "text": "[1]"
    }  # fmt: skip


def test_parquet_holds_one_type_a_column() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    writer = outgoing.writer(stream, "parquet", numbers=["p"])
    writer.write({"a": ["x", "y"], "b": [1, None], "c": [True, None], "p": [None, None]})
    writer.write({"a": [3, None], "b": [2, 3], "c": [None, False], "p": [0.5, 1]})
    writer.close()
    table = parquet.read_table(io.BytesIO(stream.getvalue()))
    assert [str(kind) for kind in table.schema.types] == ["string", "int64", "bool", "double"]
    assert table["a"].to_pylist() == ["x", "y", "3", None]
    assert table["p"].to_pylist() == [None, None, 0.5, 1.0]
    writer = outgoing.writer(io.BytesIO(), "parquet")
    writer.write({"b": [1]})
    for cell in ("one", 1.5, 1 << 63):
        with pytest.raises(DataError, match="column 'b' began as int64"):
            writer.write({"b": [cell]})


def test_the_name_says_the_format() -> None:
    assert outgoing.output_form(Path("a/b.JSONL.gz")) == "jsonl"
    for name in ("a.json", "a", "a.parquet.gz"):
        with pytest.raises(ConfigError, match="ends in none of"):
            outgoing.output_form(Path(name))
