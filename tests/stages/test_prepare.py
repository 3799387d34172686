"""prepare: the account of rows balances, nothing leaks, bad input ends in one clear error or is counted."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llmtool.core.errors import ConfigError, DataError, LlmtoolError
from llmtool.data import DataConfig, data_files
from llmtool.data.store import Dataset
from llmtool.stages.prepare import PrepareResult, prepare


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def table(path: Path | dict, **keys: Any) -> DataConfig:
    source = {
        "format": "csv",
        "path": str(path) if isinstance(path, Path) else path,
        **keys.pop("source", {}),
    }
    encode = {"as": "features", "target": "y", **keys.pop("encode", {})}
    return DataConfig.model_validate({"source": source, "encode": encode, **keys})


def words(path: Path, **keys: Any) -> DataConfig:
    source = {"format": "text", "path": str(path), **keys.pop("source", {})}
    encode = {"as": "tokens", "tokenizer": {"kind": "characters"}}
    return DataConfig.model_validate({"source": source, "encode": encode, **keys})


def run(config: DataConfig, tmp_path: Path, seed: int = 0) -> PrepareResult:
    directory = tmp_path / "prepare"
    directory.mkdir(exist_ok=True)
    result = prepare(config, seed, directory)
    assert json.loads((directory / "ledger.json").read_text()) == result.ledger
    Dataset.open(directory).verify()
    ledger = result.ledger
    lines = (directory / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == sum(ledger["quarantined"].values())
    assert all(set(json.loads(line)) == {"file", "line", "reason", "text"} for line in lines)
    assert ledger["read"] == sum(sum(ledger[part].values()) for part in ("kept", "dropped", "quarantined"))
    return result


def flowers(count: int = 120, header: str = "a,b,y\n", extra: str = "") -> str:
    rows = [f"{n},{n * 37 % 101 / 10},{'red' if n % 3 else 'blue'}\n" for n in range(count)]
    return header + "".join(rows) + extra


GOOD = flowers()


def test_a_table(tmp_path: Path) -> None:
    config = table(put(tmp_path / "a.csv", GOOD), split={"by": "stratified"})
    result = run(config, tmp_path)
    assert result.ledger["kept"] == {"train": 96, "validation": 12, "test": 12}
    assert result.card["inputs"]["width"] == 2
    assert result.card["targets"]["names"] == ["blue", "red"]
    assert data_files(config) == [tmp_path / "a.csv"]
    again = run(config, tmp_path)
    assert again.card["fingerprint"] == result.card["fingerprint"]
    assert run(config, tmp_path, seed=1).card["fingerprint"] != result.card["fingerprint"]


def test_a_text(tmp_path: Path) -> None:
    text = "".join(f"line {n} of a play\n" for n in range(3000))
    config = words(put(tmp_path / "a.txt", text), split={"by": "order", "train": 0.9, "validation": 0.1})
    result = run(config, tmp_path)
    train, validation = (result.card["splits"][name]["bytes"] for name in ("train", "validation"))
    assert train + validation == len(text)
    assert abs(train - 0.9 * len(text)) < 2100
    assert list(Dataset.open(tmp_path / "prepare").splits) == ["train", "validation"]


def test_memory_is_chunked_and_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtool.data.csv_source import CsvSource

    steps = [{"step": "drop_duplicates"}, {"step": "range", "column": "a", "max": 110}]
    config = table(put(tmp_path / "a.csv", GOOD + "3,11.1,red\n" * 9 + "x,1,red\n"), clean=steps, max_bad=0.1)
    whole = run(config, tmp_path)
    read = CsvSource.read
    monkeypatch.setattr(CsvSource, "read", lambda self, rows=7: read(self, 7))
    parts = run(config, tmp_path)
    assert parts.ledger == whole.ledger
    assert parts.card["splits"] == whole.card["splits"]
    assert whole.ledger["dropped"] == {"a out of range": 9, "duplicate": 8}
    assert whole.ledger["quarantined"] == {"a is not a number": 1}


def test_changes_outside_train_leave_what_is_learned_alone(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", GOOD)
    config = table(path, split={"by": "order"})
    before = run(config, tmp_path).card
    path.write_text(GOOD.replace("119,", "99999,"))
    after = run(config, tmp_path).card
    assert after["encoder"] == before["encoder"]
    assert after["splits"]["train"] == before["splits"]["train"]
    assert after["splits"]["test"] != before["splits"]["test"]


def test_train_and_test_files_with_a_share_for_validation(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", GOOD)
    put(tmp_path / "test.csv", "a,b,y\n1,3.7,red\n777,1,blue\n778,1,green\n")
    paths = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    assert table(paths).split.by == "files"
    result = run(table(paths, split={"by": "files", "validation": 0.25}), tmp_path)
    assert result.ledger["kept"] == {"train": 89, "validation": 30, "test": 2}
    assert result.ledger["dropped"]["duplicate of a row in test"] == 1
    assert sum(result.ledger["dropped"].values()) == 2  # and the class that train does not have
    with pytest.raises(ValidationError, match="cannot hold too"):
        table(paths, split={"by": "random"})
    with pytest.raises(ValidationError, match="to be a mapping"):
        table(tmp_path / "train.csv", split={"by": "files"})


def test_jsonl_columns_may_come_late(tmp_path: Path) -> None:
    lines = [json.dumps({"a": n, "y": "pq"[n % 2]} if n > 20 else {"a": n}) for n in range(20_000)]
    path = put(tmp_path / "a.jsonl", "\n".join(lines))
    encode = {"as": "features", "target": "y"}
    config = DataConfig.model_validate({"source": {"format": "jsonl", "path": str(path)}, "encode": encode})
    assert run(config, tmp_path).ledger["dropped"] == {"y (target) is missing": 21}
    late = [json.dumps({"a": n} if n < 9000 else {"a": n, "y": "pq"[n % 2]}) for n in range(10_000)]
    put(path, "\n".join(late))
    assert run(config, tmp_path).ledger["dropped"] == {"y (target) is missing": 9000}


def test_too_many_bad_rows(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", GOOD + "1,2\n3\n4,5,6,7\n8\n")
    with pytest.raises(
        DataError, match=r"4 of 124 rows are bad \(3\.23 %; data\.max_bad allows 1 %\): .*line 122: 2 f"
    ):
        run(table(path), tmp_path)
    assert len((tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "prepare/card.json").exists()
    assert sum(run(table(path, max_bad=0.05), tmp_path).ledger["quarantined"].values()) == 4
    with pytest.raises(
        DataError, match=r"4 of 124"
    ):  # what is there of the run before does not count any more
        run(table(path), tmp_path)
    with pytest.raises(DataError, match="no prepared dataset"):
        Dataset.open(tmp_path / "prepare")


def test_a_wrong_encoding_stops_early(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "größe\n".encode("latin-1") * 60_000)
    with pytest.raises(DataError, match=r"rows are bad .*line 1: not valid utf-8"):
        run(words(path, source={"documents": "line"}), tmp_path)
    assert len((tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()) < 30_000
    path = put(
        tmp_path / "b.csv",
        "name,y\n" + "".join(f"é{n % 3},{n % 2}\n" for n in range(50)),
    )
    path.write_bytes(path.read_text().encode("latin-1"))
    assert run(table(path, source={"encoding": "latin-1"}, encode={"categories": ["name"]}), tmp_path)


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", GOOD)

    def meddle(step: str, rows: int) -> None:
        if step == "fitting":
            path.write_text(GOOD + "1,2,red\n")
            os.utime(path, (1, 1))

    (tmp_path / "prepare").mkdir()
    with pytest.raises(DataError, match="changed while it was being prepared"):
        prepare(table(path), 0, tmp_path / "prepare", meddle)
    assert not (tmp_path / "prepare/card.json").exists()


@pytest.mark.parametrize("mark", ["", "NA", "null", "None"])
def test_a_number_to_predict_that_is_missing_is_dropped_whatever_its_mark(tmp_path: Path, mark: str) -> None:
    rows = "".join(f"{n},{n * 0.37 if n % 10 else mark}\n" for n in range(200))
    ledger = run(table(put(tmp_path / "a.csv", f"a,y\n{rows}")), tmp_path).ledger
    assert (ledger["dropped"], ledger["quarantined"]) == ({"y (target) is missing": 20}, {})


# --- bad input ----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[bytes | str | None, dict[str, Any], str]] = {
    "missing": (None, {}, r"a\.csv: no such file"),
    "empty": ("", {}, r"a\.csv: the file is empty"),
    "header only": ("a,b,y\n", {}, r"a\.csv: no rows"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0", {}, r"a\.csv: this is a PNG picture"),
    "binary": (bytes(range(256)) * 40, {}, r"a\.csv: not text"),
    "gzip under another name": (gzip.compress(GOOD.encode()), {}, "gzip data"),
    "utf-16": (GOOD.encode("utf-16"), {}, "encoding: utf-16"),
    "wrong encoding": (flowers(header="a,b,größe\n").encode("latin-1"), {}, "header is not valid utf-8"),
    "one column twice": (flowers(header="a,a,y\n"), {}, "the column 'a' stands twice"),
    "all ragged": (flowers(header="a,b,c,y\n"), {}, r"120 of 120 rows are bad"),
    "no such target": (GOOD, {"encode": {"target": "colour"}}, "colour"),
    "no such split column": (GOOD, {"split": {"by": "grouped", "on": "bb"}}, "no column 'bb'; did you mean"),
    "no such clean column": (GOOD, {"clean": [{"step": "require", "columns": ["yy"]}]}, "did you mean"),
    "target all missing": ("a,y\n" + "1,\n" * 40, {}, r"no row is left of 40: 40 y .*is missing"),
    "one row": ("a,b,y\n1,2,red\n", {}, "nothing is left for"),
    "always the same row": ("a,b,y\n" + "1,2,red\n" * 40, {}, "can be told apart"),
    "all cleaned away": (GOOD, {"clean": [{"step": "range", "column": "a", "min": 500}]}, "a out of range"),
    "open quote": (f'a,b,y\n"{GOOD}', {"max_bad": 0.0}, "a quote that is not closed"),
    "one class": ("a,y\n" + "".join(f"{n},red\n" for n in range(40)), {}, "class"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_tables_end_in_one_clear_error(tmp_path: Path, name: str) -> None:
    data, keys, message = REFUSED[name]
    path = tmp_path / "a.csv"
    if data is not None:
        put(path, data)
    with pytest.raises(LlmtoolError, match=message) as error:
        run(table(path, **keys), tmp_path)
    assert error.value.exit_code in (2, 4)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepare/card.json").exists()


@pytest.mark.parametrize("max_bad", [0.01, 1.0])
def test_json_of_which_no_row_can_be_read_is_refused_for_its_rows(tmp_path: Path, max_bad: float) -> None:
    """And not for the column that the configuration names, which only rows that can be read would have."""
    row = '{"x": 0.1, "n": 18446744073709551616, "y": "p"}'
    path, encode = put(tmp_path / "a.jsonl", f"{row}\n" * 100), {"as": "features", "target": "y"}
    source = {"format": "jsonl", "path": str(path)}
    config = DataConfig.model_validate({"source": source, "encode": encode, "max_bad": max_bad})
    says = r"line 1: a whole number beyond 64 bits|none of 100 rows can be read"
    with pytest.raises(DataError, match=says):
        run(config, tmp_path)
    assert len((tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()) == 100


def test_a_truncated_gzip(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv.gz", gzip.compress(flowers(9000).encode())[:-50])
    with pytest.raises(DataError, match=r"a\.csv\.gz: the compressed file ends in the middle \([\d,]+ rows"):
        run(table(path), tmp_path)


ACCEPTED: dict[str, tuple[bytes | str, dict[str, Any], dict[str, int]]] = {
    "byte-order mark and CRLF": (b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(), {}, {}),
    "utf-16": (GOOD.encode("utf-16"), {"source": {"encoding": "utf-16"}}, {}),
    "ragged": (GOOD + "1,2\n", {}, {"2 fields where there are 3 columns": 1}),
    "NUL": (GOOD + "1,\0,red\n", {}, {"a NUL character": 1}),
    "bad bytes": (GOOD.encode() + b"1,\xff,red\n", {}, {"not valid utf-8": 1}),
    "open quote at the end": (GOOD + '"1,2,red\n', {}, {"a quote that is not closed": 1}),
    "class of one row": (GOOD + "1,5,green\n", {"split": {"by": "stratified"}}, {}),
    "constant column": ("c," + GOOD.replace("\n", "\n7,").removesuffix("7,"), {}, {}),
    "column all missing": ("c," + GOOD.replace("\n", "\n,").removesuffix(","), {}, {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_bad_rows_are_counted_and_the_rest_is_used(tmp_path: Path, name: str) -> None:
    data, keys, quarantined = ACCEPTED[name]
    result = run(table(put(tmp_path / "a.csv", data), **keys), tmp_path)
    assert result.ledger["quarantined"] == quarantined
    assert sum(result.ledger["kept"].values()) >= 120
    assert all(np.isfinite(Dataset.open(tmp_path / "prepare").split("train").arrays["inputs"]).ravel())
    if name == "class of one row":
        assert any("'green'" in note for note in result.notes)
    if name in ("constant column", "column all missing"):
        assert result.card["inputs"]["width"] <= 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n  \n", "no rows|no row is left|nothing is left"),
        (b"text\0text", "not text"),
        (b"short", "nothing is left for"),
    ],
)
def test_bad_texts(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(LlmtoolError, match=message):
        run(words(put(tmp_path / "a.txt", data), source={"documents": "line"}), tmp_path)


def test_missing_extra_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    put(tmp_path / "a.parquet", b"PAR1")
    put(tmp_path / "a.csv.zst", b"\x28\xb5\x2f\xfd")
    parquet = {
        "source": {"format": "parquet", "path": str(tmp_path / "a.parquet")},
        "encode": {"as": "features", "target": "y"},
    }
    with pytest.raises(ConfigError, match=r"pip install llmtool\[data\]"):
        run(DataConfig.model_validate(parquet), tmp_path)
    with pytest.raises(ConfigError, match=r"pip install llmtool\[data\]"):
        run(table(tmp_path / "a.csv.zst"), tmp_path)
