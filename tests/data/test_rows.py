"""Rows of a file in every format, and what is said of files that hold none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llmtool.core.errors import DataError
from llmtool.data.rows import form_of, nested, rows

ROWS = [{"question": "a, b?", "choices": ["x", "y\n"]}, {"question": "é", "choices": ["1"]}]


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines.replace("\n", "\n\n"))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    cells = [[row["question"], json.dumps(row["choices"])] for row in ROWS]
    for name, sign in (("a.csv", ","), ("a.tsv", "\t"), ("b.tab", "\t")):
        quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in line] for line in cells]
        text = "\n".join(sign.join(line) for line in [["question", "choices"], *quoted])
        (tmp_path / name).write_text(text)
    for path in sorted(tmp_path.iterdir()):
        found = [{key: nested(value) for key, value in row.items()} for _, row in rows(path)]
        assert found == ROWS, path.name
    assert [line for line, _ in rows(tmp_path / "a.jsonl")] == [1, 3]
    assert [line for line, _ in rows(tmp_path / "a.csv")] == [2, 3]


def test_rows_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row for _, row in rows(tmp_path / "a.parquet")] == ROWS
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not readable as Parquet"):
        list(rows(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"a": "\\ud800"}\n', "half a surrogate pair"),
        ("a.json", '[{"a": 1}, 3]', "a.json:2: not a JSON object"),
        ("a.json", '[{"a": 1},\n', "a.json:2: not JSON"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", "3", "not an array of objects"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2: 3 cells, the header has 2"),
        ("a.txt", "x", "a file of rows ends in .csv"),
        ("a.jsonl.gz", "not packed", "a.jsonl.gz"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says.replace(".", "[.]")):
        list(rows(tmp_path / name))


def test_a_file_that_is_not_there_and_what_is_nested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(rows(tmp_path / "nowhere.jsonl"))
    assert form_of(Path("x/A.JSONL.zst")) == "jsonl"
    assert form_of(Path("x.txt")) is None
    assert nested('{"a": [1]}') == {"a": [1]}
    assert nested("[not json") == "[not json"
    assert nested(3) == 3
