"""Looking at files of unknown kinds: form, encoding, delimiter, header, quotes, samples of large files."""

import gzip
import json

import pytest

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import looking
from llmtool.data.surroundings import look


def rows(count, delimiter=",", header=True):
    lines = [delimiter.join(["age", "town", "kind"])] if header else []
    lines += [delimiter.join([str(20 + n % 50), f"town {n % 7}", "ab"[n % 2]]) for n in range(count)]
    return "\n".join(lines) + "\n"


def comma(delimiter, header=True):
    lines = [delimiter.join(["size", "weight", "price"])] if header else []
    lines += [delimiter.join([f"{20 + n},5", f"{n},25", str(n)]) for n in range(30)]
    return "\n".join(lines) + "\n"


def written(word, encoding):
    return rows(30).replace("town", word).encode(encoding)


@pytest.fixture
def at(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", rows(30), {"format": "csv"}),
        ("a.csv", rows(30, ";"), {"format": "csv", "delimiter": ";"}),
        ("a.csv", comma(";"), {"format": "csv", "delimiter": ";", "decimal": ","}),
        ("a.csv", comma(";", header=False),
         {"format": "csv", "delimiter": ";", "decimal": ",", "header": ["c1", "c2", "c3"]}),
        ("a.tsv", comma("\t"), {"format": "tsv", "decimal": ","}),
        ("a.csv", "town,price\n" + "".join(f'a,"1,{n}"\n' for n in range(200, 230)), {"format": "csv"}),
        ("a.csv", "".join(f"{n},a;b,{n}\n" for n in range(30)),
         {"format": "csv", "header": ["c1", "c2", "c3"]}),
        ("a.csv", rows(30, "|"), {"format": "csv", "delimiter": "|"}),
        ("a.csv", rows(30, "\t"), {"format": "tsv"}),
        ("a.tsv", rows(30, "\t"), {"format": "tsv"}),
        ("a.data", rows(30), {"format": "csv"}),
        ("a.csv", rows(30, ", "), {"format": "csv", "skip_space": True}),
        ("a.csv", written("Mün", "latin-1"), {"format": "csv", "encoding": "latin-1"}),
        ("a.csv", written("明月", "gb18030"), {"format": "csv", "encoding": "gb18030"}),
        ("a.csv", rows(30, header=False), {"format": "csv", "header": ["c1", "c2", "c3"]}),
        ("a.csv", "# made in May\n" + rows(30), {"format": "csv", "comment": "#"}),
        ("a.csv.gz", gzip.compress(rows(30).encode()), {"format": "csv"}),
        ("a.csv", rows(30).replace("town 3", '"nail" 5'), {"format": "csv", "quote": None}),
        ("a.jsonl", '{"text": "a b", "label": 1}\n' * 5, {"format": "jsonl"}),
        ("a.json", json.dumps([{"text": "a", "label": 1}] * 5), {"format": "json"}),
        ("a.json", '{"text": "a b", "label": 1}\n' * 5, {"format": "jsonl"}),
        ("a.txt", "one line\nand another\n\n" * 40, {"format": "text", "documents": "file"}),
        ("a.txt", ("word " * 100 + "\n") * 9, {"format": "text", "documents": "line"}),
        ("g.txt", "f5d6c3d3c4f4c5b3c2e3d2c6b4a3f3e2f5d6c3d3c4f4c5\n" * 9,
         {"format": "text", "documents": "line"}),
        ("a.pgn", '[Event "x"]\n[White "a"]\n\n1. e4 e5 1-0\n\n' * 4, {"format": "pgn"}),
        ("games", '[Event "x"]\n[White "a"]\n\n1. e4 e5 1-0\n\n' * 4, {"format": "pgn"}),
    ],
)  # fmt: skip
def test_how_a_file_is_written(at, name, content, expected):
    path = at(name, content)
    sight = look(path)
    assert sight.source == {**expected, "path": path}
    if "decimal" in expected:
        assert sight.frame.iloc[3].tolist() == ["23.5", "3.25", "3"]
    for key in expected.keys() - {"format"}:
        assert sight.why[key]


@pytest.mark.parametrize(
    ("first", "named"),
    [
        ("age,town", True), ("31,Bern", False), ("x,Bern", False),
        (",town", True), (",31", True),  # an index of rows
    ],
)  # fmt: skip
def test_the_first_line(at, first, named):
    text = (
        first
        + "\n"
        + "".join(f"{n if first[0] != 'x' else 'y'},{'Bern' if n % 2 else 'Basel'}\n" for n in range(9))
    )
    sight = look(at("a.csv", text))
    assert sight.named == named
    assert sight.rows == (9 if named else 10)
    assert sight.why["header"]


def test_a_column_without_a_name_does_not_make_the_header_a_row(at):
    text = ",age,bought\n" + "".join(f"{n * 7 % 50},{20 + n},{n % 2}\n" for n in range(50))
    sight = look(at("pandas.csv", text))
    assert list(sight.frame.columns) == ["index", "age", "bought"]
    assert "the first column has no name: it is called 'index'" in sight.why["header"]
    ended = look(at("ended.csv", "town,kind,\n" + "Bern,a,\nBasel,b,\n" * 9))
    assert list(ended.frame.columns) == ["town", "kind"]
    assert "the empty column behind it is left out" in ended.why["header"]


def test_a_name_that_stands_twice_over_numbers_is_refused(at):
    with pytest.raises(DataError, match=r"twice\.csv: the column 'a' stands twice; give one of the two"):
        look(at("twice.csv", "a,a,b,y\n" + "1,2,3,p\n2,4,5,q\n" * 9))


def test_rows_are_counted_or_estimated(at, monkeypatch):
    whole = look(at("a.csv", rows(3000)))
    assert (whole.rows, whole.exact, whole.about()) == (3000, True, "3,000")
    monkeypatch.setattr(looking, "WHOLE", 20_000)
    monkeypatch.setattr(looking, "HEAD", 4_000)
    monkeypatch.setattr(looking, "STRETCH", 300)
    part = look(at("b.csv", rows(3000)))
    assert not part.exact
    assert len(part.frame) < 1500
    assert 2500 < part.rows < 3500
    assert part.about() == f"about {float(f'{part.rows:.2g}'):,.0f}"
    assert part.bad == 0
    assert part.frame["age"].nunique() == 50  # stretches over the whole file
    packed = look(at("c.csv.gz", gzip.compress(rows(3000).encode())))
    assert 2500 < packed.rows < 3500
    array = look(at("d.json", json.dumps([{"text": "a b c", "label": n % 3} for n in range(3000)])))
    assert not array.exact
    assert 2500 < array.rows < 3500


def test_at_most_so_many_rows_are_held(at, monkeypatch):
    monkeypatch.setattr(looking, "ROWS", 9000)
    sight = look(at("a.csv", rows(30_000)))
    assert len(sight.frame) < 17_000
    assert 25_000 < sight.rows < 35_000


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.csv", b"", DataError, "empty"),
        ("a.csv", b"  \n \n", DataError, "nothing but blanks"),
        ("a.csv", b"age,kind\n", DataError, "a single line"),
        ("a.csv", bytes(range(256)) * 9, DataError, "not text"),
        ("a.csv", b"PK\x03\x04" + b"x" * 90, DataError, "zip"),
        ("a.zip", b"PK\x03\x04", ConfigError, "unpack it"),
        ("a.tar.gz", b"x", ConfigError, "unpack it"),
        ("a.bin", b"x" * 100, ConfigError, "not one of CIFAR"),
        ("a.bin.gz", b"x", ConfigError, "not one of CIFAR"),
        ("a.wtb", b"x" * 90, DataError, "no WTHOR file"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01" + b"\0" * 9, ConfigError, "the labels"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x01" + b"\0" * 9, ConfigError, "no IDX file"),
        ("a.json", b"[]", DataError, "without objects"),
        ("a.json", b"[1, 2, 3]", DataError, r"a.json, line 1: .*\(none of its 3 rows can be read"),
        ("a.jsonl", b'{"n": 18446744073709551616}\n' * 9, DataError, "line 1: a whole number beyond 64 bits"),
        ("a.parquet", b"no", DataError, "Parquet"),
    ],
)
def test_what_cannot_be_read(at, name, content, error, words):
    with pytest.raises(error, match=words):
        look(at(name, content))
    with pytest.raises(DataError, match="no such file"):
        look("nothing.csv")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [1, 2, 3], "b": ["x", "y", "x"]}), tmp_path / "a.parquet")
    sight = look(str(tmp_path / "a.parquet"))
    assert (sight.form, sight.rows, list(sight.frame.columns)) == ("parquet", 3, ["a", "b"])
