"""Sources: what is read, where it says each row stands, and how broken files end."""

import gzip
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import readers
from llmtool.data.cells import Nested
from llmtool.data.csv_source import CsvSource, TsvSource
from llmtool.data.json_sources import JsonlSource, JsonSource
from llmtool.data.parquet_source import ParquetSource
from llmtool.data.sources import Chunk, Source, TextSource


def read(source: Source, rows: int = 8192) -> tuple[list[list], list[tuple[int, str]], list[Chunk]]:
    chunks = list(source.read(rows))
    values = [row for chunk in chunks for row in chunk.frame.values.tolist()]
    bad = [(row.line, row.reason) for chunk in chunks for row in chunk.bad]
    return values, bad, chunks


def csv(path: Path, **keys: object) -> CsvSource:
    return CsvSource.model_validate({"format": "csv", "path": str(path), **keys})


def text(path: Path, **keys: object) -> TextSource:
    return TextSource.model_validate({"format": "text", "path": str(path), **keys})


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- CSV ----------------------------------------------------------------------------------------


def test_cells_stay_text_and_words_for_nothing_survive(tmp_path: Path) -> None:
    values, bad, chunks = read(csv(put(tmp_path / "a.csv", "a,b\nNA,1\nNone,1e400\nnull,\n1_000,007\n")))
    assert values == [["NA", "1"], ["None", "1e400"], ["null", ""], ["1_000", "007"]]
    assert not bad
    assert set(chunks[0].frame.dtypes) == {np.dtype(object)}
    assert chunks[0].line.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", [["1", "2"]]),
        (b"a,b\r1,2\r", [["1", "2"]]),
        (b"a;b\n1;2,5\n", [["1", "2,5"]]),
        (b"a\tb\n1\t2", [["1", "2"]]),
        (b"a|b\n1|2\n\n  \n3|4\n", [["1", "2"], ["3", "4"]]),
        (b'"a;x",b\n1,2\n', [["1", "2"]]),
        (b'a,b\n"x\n""y""",2\n', [['x\n"y"', "2"]]),
        ("a,b\nż,2\n".encode(), [["ż", "2"]]),
    ],
)
def test_dialects(tmp_path: Path, data: bytes, expected: list) -> None:
    values, bad, _ = read(csv(put(tmp_path / "a.csv", data)))
    assert (values, bad) == (expected, [])


def test_decimal_commas_become_points(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "a;b\n1,5;x,y\n1.234;2\n;-,5\n")
    assert read(csv(path))[0] == [["1,5", "x,y"], ["1.234", "2"], ["", "-,5"]]
    values, bad, chunks = read(csv(path, decimal=","), 2)
    assert values == [["1.5", "x,y"], ["1,234", "2"], ["", "-.5"]]
    assert not bad
    assert set(chunks[0].frame.dtypes) == {np.dtype(object)}
    assert [index for chunk in chunks for index in chunk.frame.index] == [0, 1, 2]


def test_adult_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "|1x3 Cross validator\n25, Private, <=50K.\n38, ?, >50K.\n\n")
    values, bad, _ = read(csv(path, header=["age", "work", "income"], skip_space=True, comment="|"))
    assert values == [["25", "Private", "<=50K."], ["38", "?", ">50K."]]
    assert not bad


@pytest.mark.parametrize(
    ("rows", "good", "reasons"),
    [
        (
            b"1,2\n1,2,3\n4\n5,6\n",
            2,
            [(3, "3 fields where there are 2 columns"), (4, "1 field where there are 2 columns")],
        ),
        (b"1,\x00\n3,4\n", 1, [(2, "a NUL character")]),
        (b"1,\xff\xfe\n3,4\n", 1, [(2, "not valid utf-8")]),
        (b'1,"x\n3,4\n5,6\n', 2, [(2, "a quote that is not closed")]),
        (b'1,"x"y\n3,4\n', 1, [(2, "text after a closing quote")]),
        (b'"1,2\n3,"4"\n5,6\n', 2, [(2, "text after a closing quote")]),
    ],
)
def test_a_bad_row_costs_that_row_only(tmp_path: Path, rows: bytes, good: int, reasons: list) -> None:
    values, bad, chunks = read(csv(put(tmp_path / "a.csv", b"a,b\n" + rows)))
    assert len(values) == good
    assert bad == reasons
    assert chunks[-1].frame.index.tolist() == list(range(good))


def test_an_open_quote_does_not_swallow_a_big_file(tmp_path: Path) -> None:
    rows = "".join(f"{n},{'x' * 100}\n" for n in range(30_000))
    values, bad, _ = read(csv(put(tmp_path / "a.csv", f'a,b\n0,"open\n{rows}')))
    assert len(values) == 30_000
    assert bad == [(2, "a quote that is not closed")]


def test_quotes_that_never_pair_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "REREAD_LIMIT", 10_000)
    path = put(
        tmp_path / "a.csv", "a,b\n" + "".join(f'{n},"open\n{"x,y" * 500}\n' for n in range(20)) + "1,2\n" * 9
    )
    with pytest.raises(DataError, match=r"a\.csv, line \d+: too many .*quote"):
        read(csv(path))
    assert len(read(csv(path, quote=None))[0]) == 29


def test_a_line_of_many_megabytes_costs_one_row(tmp_path: Path) -> None:
    values, bad, _ = read(csv(put(tmp_path / "a.csv", f"a,b\n1,{'x' * 3_000_000}\n3,4\n")))
    assert values == [["3", "4"]]
    assert bad == [(2, "a line of more than 1,048,576 characters")]


@pytest.mark.parametrize(
    ("header", "message"),
    [("a,a\n1,2\n", "'a' stands twice"), ("a,,b\n1,2,3\n", "column 2 has no"), ("\n\n", "no header line")],
)
def test_header_lines_that_cannot_be_used(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(csv(put(tmp_path / "a.csv", header)))


def test_what_the_first_line_does_not_name(tmp_path: Path) -> None:
    """A row's label, as pandas writes it, and the delimiters in which each line ends."""
    source = csv(put(tmp_path / "a.csv", ",index,y,,\n0,7,p,,\n1,8,q, ,\n2,9,p,,x\n3,9,q\n"))
    values, bad, chunks = read(source)
    assert list(chunks[0].frame.columns) == ["index.2", "index", "y"]
    assert values == [["0", "7", "p"], ["1", "8", "q"]]
    assert bad == [
        (4, "a value in column 4, which the first line does not name"),
        (5, "3 fields where there are 5 columns"),
    ]
    assert source.notes() == [
        "each line ends in 2 delimiters: the empty columns behind them are left out",
        "the first column has no name: it is called 'index.2'",
    ]


def test_files_must_have_the_same_columns(tmp_path: Path) -> None:
    put(tmp_path / "d/a.csv", "a,b\n1,2\n")
    put(tmp_path / "d/b.csv", "a,c\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv: other columns than .*a\.csv: no 'b'; 'c' besides"):
        read(csv(tmp_path / "d"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"header": False}, "needs them here"),
        ({"header": ["a", "a"]}, "stands twice"),
        ({"delimiter": "::"}, "not one character"),
        ({"decimal": ";"}, "Input should be '.' or ','"),
        ({"encoding": "utf-9"}, "no encoding that Python knows"),
        ({"encoding": "zlib"}, "no encoding of text"),
        ({"quote": ",", "delimiter": ","}, "must differ"),
        ({"path": {"test": "x"}}, "needs one for train"),
        ({"path": ""}, "names no file"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CsvSource.model_validate({"format": "csv", "path": "a.csv", **keys})


# --- files ----------------------------------------------------------------------------------------


def test_folder_and_glob_are_sorted_and_skip_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.csv", "a/1.csv", ".hidden/0.csv", "a/.x.csv", "a/notes.txt"):
        put(tmp_path / name, f"a\n{name}\n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"a\nzipped\n"))
    assert [row[0] for row in read(csv(tmp_path))[0]] == ["a/1.csv", "b/2.csv", "zipped"]
    assert [row[0] for row in read(csv(tmp_path / "*/*.csv"))[0]] == ["a/1.csv", "b/2.csv"]


def test_paths_by_split(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path / f"{name}.csv", f"x\n{name}\n{name}\n")
    path = {"test": str(tmp_path / "c.csv"), "train": [str(tmp_path / "b.csv"), str(tmp_path / "a.csv")]}
    source = CsvSource.model_validate({"format": "csv", "path": path})
    values, _, chunks = read(source, rows=5)
    assert [row[0] for row in values] == ["b", "b", "a", "a", "c", "c"]
    assert np.concatenate([chunk.split for chunk in chunks]).tolist() == ["train"] * 4 + ["test"] * 2
    assert np.concatenate([chunk.file for chunk in chunks]).tolist() == [0, 0, 1, 1, 2, 2]
    assert np.concatenate([chunk.frame.index for chunk in chunks]).tolist() == list(range(6))
    same = CsvSource.model_validate({"format": "csv", "path": {"train": path["test"], "test": path["test"]}})
    with pytest.raises(ConfigError, match="named twice"):
        same.files()


def _truncated_zst() -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(os.urandom(400_000).hex().encode())[:-9]


def _database(path: Path) -> bytes:
    with sqlite3.connect(path) as base:
        base.execute("create table t (a)")
    base.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("a.txt.gz", b"", "the file is empty"),
        ("a.txt", b"\n \n", None),
        ("a.txt", b"\x89PNG\r\n\x1a\n....", "PNG picture"),
        ("a.txt", gzip.compress(b"hello", mtime=0), "gzip data"),
        ("a.txt", b"abc\x00def", "NUL bytes"),
        ("a.txt", "hello".encode("utf-16"), "encoding: utf-16"),
        ("a.txt", b"SQLite format 3\x00", "SQLite"),
        ("a.txt.gz", b"plain text", "not gzip"),
        ("a.txt.zst", b"plain text", "not Zstandard"),
        (
            "a.txt.gz",
            gzip.compress(b"".join(b"%d\n" % (n * n) for n in range(9999)), mtime=0)[:-40],
            r"ends in the middle \(\d+ rows? of it could be read\)",
        ),
        ("a.txt.gz", gzip.compress(b"hello", mtime=0)[:-8] + b"01234567", "CRC|incorrect"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, data: bytes, message: str | None) -> None:
    path = put(tmp_path / name, data)
    documents = "line"
    if message is None:
        with pytest.raises(DataError, match="no rows"):
            read(text(path, documents=documents))
        return
    with pytest.raises(DataError, match=message) as error:
        read(text(path, documents=documents))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(text(tmp_path / "absent.txt"))
    with pytest.raises(DataError, match="no file matches"):
        read(text(tmp_path / "*.txt"))
    with pytest.raises(DataError, match="this folder has no file"):
        read(text(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="not a regular file"):
        read(text(tmp_path / "pipe.txt"))
    with pytest.raises(DataError, match="not a regular file"):
        read(text(Path("/dev/zero")))
    with pytest.raises(DataError, match="SQLite"):
        read(csv(put(tmp_path / "b.csv", _database(tmp_path / "base"))))
    with pytest.raises(DataError, match="ends in the middle"):
        read(text(put(tmp_path / "b.txt.zst", _truncated_zst())))
    with pytest.raises(DataError, match=r"header is not valid utf-8; which `encoding`"):
        read(csv(put(tmp_path / "l.csv", "größe,b\n1,2\n".encode("latin-1"))))


def test_truncated_gzip_says_how_much_was_read(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n * 7919 % 10007}\n" for n in range(200_000))
    path = put(tmp_path / "a.csv.gz", gzip.compress(b"a,b\n" + rows.encode())[:-1000])
    with pytest.raises(
        DataError, match=r"a\.csv\.gz: the compressed file ends in the middle \(1\d\d,\d\d\d rows"
    ):
        read(csv(path))


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str) -> None:
    import zstandard

    monkeypatch.setattr(readers, "BOMB_FLOOR", 1 << 20)
    data = b"0" * (8 << 20)
    packed = gzip.compress(data) if pack == "gz" else zstandard.ZstdCompressor().compress(data)
    with pytest.raises(DataError, match="unpacks to more than 250 times"):
        read(text(put(tmp_path / f"a.txt.{pack}", packed)))


def test_zst_in_several_frames(tmp_path: Path) -> None:
    import zstandard

    one = zstandard.ZstdCompressor().compress
    path = put(tmp_path / "a.txt.zst", one(b"first\nsec") + one("ond\nłast\n".encode()))
    assert read(text(path, documents="line"))[0] == [["first"], ["second"], ["łast"]]


def test_encodings(tmp_path: Path) -> None:
    for name in ("latin-1", "utf-16", "utf-16-le", "cp1252", "utf-8-sig"):
        path = put(tmp_path / f"{name}.csv", "größe,b\nä,1\n".encode(name))
        assert read(csv(path, encoding=name))[0] == [["ä", "1"]]


# --- JSON lines ----------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": "x"}', "", '{"a": 2.5, "c": [1, {"d": null}]}', '{"b": null, "a": true}']
    source = JsonlSource.model_validate(
        {"format": "jsonl", "path": str(put(tmp_path / "a.jsonl", "\n".join(lines)))}
    )
    values, bad, chunks = read(source)
    assert not bad
    assert chunks[0].frame.columns.tolist() == ["a", "b", "c"]
    assert values == [[1, "x", None], [2.5, None, '[1, {"d": null}]'], [True, None, None]]
    assert chunks[0].line.tolist() == [1, 3, 4]
    assert next(source.read(1)).frame.columns.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": 1e999}', "beyond 64-bit floats"),
        ('{"a": ' + "9" * 5000 + "}", "beyond 64 bits"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"a": "\\u0000"}', "a NUL character"),
        ('{"a": {"b": "\\udfff"}}', "half a surrogate pair"),
        ("[1]", "not a JSON object"),
        ('{"a": 1', "not JSON"),
        ("{'a': 1}", "not JSON"),
        ('{"a": "\x01"}', "not JSON"),
    ],
)
def test_jsonl_rows_that_are_bad(tmp_path: Path, line: str, reason: str) -> None:
    path = put(tmp_path / "a.jsonl", '{"a": 0}\n' + line + '\n{"a": 1}\n')
    values, bad, _ = read(JsonlSource.model_validate({"format": "jsonl", "path": str(path)}))
    assert values == [[0], [1]]
    assert [number for number, _ in bad] == [2]
    assert reason in bad[0][1]


# --- text ----------------------------------------------------------------------------------------


def test_text_documents(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "one\r\ntwo\r\n\r\n  \nthree\n")
    assert read(text(path))[0] == [["one\ntwo\n\n  \nthree\n"]]
    values, _, chunks = read(text(path, documents="line"))
    assert (values, chunks[0].line.tolist()) == ([["one"], ["two"], ["three"]], [1, 2, 5])
    values, _, chunks = read(text(path, documents="blank"))
    assert (values, chunks[0].line.tolist()) == ([["one\ntwo"], ["three"]], [1, 5])


def test_pieces_of_files_share_their_unit(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / f"{name}.txt", f"{name} word\n" * 2000)
    _, _, chunks = read(text(tmp_path), rows=3)
    unit = np.concatenate([chunk.unit for chunk in chunks])
    file = np.concatenate([chunk.file for chunk in chunks])
    assert sorted(set(unit)) == [0, int(np.flatnonzero(file == 1)[0])]
    assert len(unit) > 10
    texts = [row[0] for chunk in chunks for row in chunk.frame.values.tolist()]
    assert all(piece.endswith("\n") and 2000 < len(piece) < 2100 for piece in texts[:4])
    lines = np.concatenate([chunk.line for chunk in chunks])
    assert lines[1] == texts[0].count("\n") + 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab é\n\t\u2028你", max_size=4000), max_size=40),
    st.sampled_from([1, 3, 50]),
)
def test_pieces_joined_are_the_text(parts: list[str], times: int) -> None:
    whole = "".join(parts) * times
    found = list(readers.pieces(iter(parts * times)))
    assert "".join(found) == whole
    assert all(0 < len(piece) <= readers.PIECE_LIMIT + readers.PIECE for piece in found)


def test_pieces_are_cut_where_a_tokenizer_cuts() -> None:
    from tokenizers import pre_tokenizers

    words = [f"word{n}" + ("\n" if n % 9 == 0 else "\n\n" if n % 31 == 0 else " ") for n in range(30_000)]
    whole = "".join(words)
    found = list(readers.pieces(iter([whole])))
    assert len(found) > 80
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    assert [word for piece in found for word, _ in split(piece)] == [word for word, _ in split(whole)]


@pytest.mark.parametrize("unit", ["x", "你", "word ", "\n", "a\n\n"])
def test_pieces_without_good_places_stay_bounded(unit: str) -> None:
    blocks = [unit * 60_000] * 8
    sizes = [len(piece) for piece in readers.pieces(iter(blocks))]
    assert sum(sizes) == len(unit) * 480_000
    assert max(sizes) <= readers.PIECE_LIMIT


def test_bad_bytes_in_text_cost_one_document(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"good\nb\xe9d\nfine\n")
    values, bad, chunks = read(text(path, documents="line"))
    assert (values, bad) == ([["good"], ["fine"]], [(2, "not valid utf-8")])
    assert chunks[0].bad[0].text == "b\ufffdd"
    json.dumps(chunks[0].bad[0].text).encode()


def test_a_paragraph_without_end_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LINE_LIMIT", 1000)
    path = put(tmp_path / "a.txt", "one\n\n" + "long\n" * 5000 + "\nthree\n")
    values, bad, _ = read(text(path, documents="blank"))
    assert values == [["one"], ["three"]]
    assert bad == [(3, "a paragraph of more than 1,000 characters")]


# --- Parquet ----------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {
            "n": pa.array([1, None], pa.int64()),
            "x": pa.array([0.5, float("nan")]),
            "s": pa.array(["NA", None]),
            "t": pa.array([datetime.datetime(2024, 5, 31, 10), None]),
            "d": pa.array([decimal.Decimal("1.25"), None]),
            "l": pa.array([[1, 2], None]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = ParquetSource.model_validate({"format": "parquet", "path": str(tmp_path / "a.parquet")})
    values, bad, chunks = read(source)
    assert values == [[1, 0.5, "NA", "2024-05-31T10:00:00", 1.25, "[1, 2]"], [None] * 6]
    assert isinstance(values[0][5], Nested)
    assert not bad
    assert set(chunks[0].frame.dtypes) == {np.dtype(object)}
    broken = put(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.parquet: not readable as Parquet"):
        read(ParquetSource.model_validate({"format": "parquet", "path": str(broken)}))
    pyarrow.parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"^\S*c\.parquet: the column 'a' stands twice; give one of"):
        read(ParquetSource.model_validate({"format": "parquet", "path": str(tmp_path / "c.parquet")}))


def test_tsv_is_tab_separated(tmp_path: Path) -> None:
    path = put(tmp_path / "a.tsv", "a,b\tc\n1,2\t3\n")
    source = TsvSource.model_validate({"format": "tsv", "path": str(path)})
    assert read(source)[0] == [["1,2", "3"]]


# --- a JSON array -----------------------------------------------------------------------------------------


def json_array(path: Path) -> JsonSource:
    return JsonSource.model_validate({"format": "json", "path": str(path)})


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_an_array_is_read_by_element_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(readers, "BLOCK", block)
    data = '\n[\n  {"a": "x, ]}\\" [", "b": [1, {"c": "ü"}]},\n\n  {"a":\n 2},{"b": null},\n 7,\n {"a": }]\n'
    values, bad, chunks = read(json_array(put(tmp_path / "a.json", data)))
    assert values == [['x, ]}" [', '[1, {"c": "ü"}]'], [2, None], [None, None]]
    assert chunks[0].line.tolist() == [3, 5, 6]
    assert bad == [(7, "not a JSON object"), (8, "not JSON: Expecting value at character 7")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": 1}\n{"a": 2}\n', "say `format: jsonl`"),
        ("   \n", "no JSON array"),
        ('[{"a": 1},\n{"a": "open}]', r"line 2: the array ends in the middle.*1 row of it could be read"),
        ('[{"a": 1}', "ends in the middle"),
        ('[{"a": 1}] {"a": 2}', "after the end of the array"),
        ('[{"a": 1}}, {"a": 2}]', "after the end of the array"),
    ],
)
def test_what_is_no_array(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(json_array(put(tmp_path / "a.json", data)))


def test_an_array_in_lines_is_named(tmp_path: Path) -> None:
    source = JsonlSource.model_validate(
        {"format": "jsonl", "path": str(put(tmp_path / "a.jsonl", "[\n{}\n]"))}
    )
    with pytest.raises(DataError, match="format: json"):
        read(source)


def test_an_object_that_is_too_long_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LINE_LIMIT", 1000)
    monkeypatch.setattr(readers, "BLOCK", 100)
    long = json.dumps({"a": ["word"] * 500})
    values, bad, _ = read(json_array(put(tmp_path / "a.json", f'[{{"a": 1}},\n{long},\n{{"a": 2}}]')))
    assert values == [[1], [2]]
    assert bad == [(2, "an object of more than 1,000 characters")]


@given(st.lists(st.dictionaries(st.text('ab[]{},\\"\n ', max_size=3), st.text('ab[]{},\\"\n é', max_size=9))))
@settings(max_examples=60, deadline=None)
def test_any_array_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = put(tmp_path_factory.mktemp("array") / "a.json", json.dumps([{"k": "v"}, *rows], indent=1))
    values, bad, chunks = read(json_array(path))
    columns = list(chunks[0].frame.columns)
    assert not bad
    assert [{n: v for n, v in zip(columns, row, strict=True) if v is not None} for row in values] == [
        {"k": "v"},
        *rows,
    ]
