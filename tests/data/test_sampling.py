"""Sampling a source: true line numbers, whole records, the end as well, and how much it was."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from llmtool.core.errors import DataError
from llmtool.data import SourceConfig, sampling
from llmtool.data.sampling import Sample, sampled

SOURCES: TypeAdapter[Any] = TypeAdapter(SourceConfig)


def source(**keys: Any) -> Any:
    return SOURCES.validate_python(keys)


def read(config: Any) -> list[tuple[int, list[Any]]]:
    """(line, cells) of every row; none may be bad."""
    found = []
    for chunk in config.read():
        assert not chunk.bad, chunk.bad
        found += list(zip(chunk.line.tolist(), chunk.frame.to_numpy().tolist(), strict=True))
    return found


@pytest.fixture(autouse=True)
def _fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SLICE", 700)


def table(rows: int) -> str:
    """Rows whose cells hold line ends, quotes and commas."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(["number", "text"])
    for row in range(rows):
        writer.writerow([row, 'a "quoted"\nline, and\n\nmore' if row % 3 else "plain"])
    return made.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_with_line_ends_in_its_cells(tmp_path: Path, packed: bool) -> None:
    text = table(20_000)
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    config = source(format="csv", path=str(path))
    part = sampled(config, 60_000)
    everything, some = read(config), read(part)
    assert set(map(str, some)) <= set(map(str, everything))  # cells and lines are true
    assert some[:100] == everything[:100]
    share = part._sample.share()
    assert share == pytest.approx(len(some) / len(everything), rel=0.3)
    assert 0 < share < 0.5
    if not packed:
        assert some[-1] == everything[-1]
    assert read(part) == some
    assert read(config) == everything  # the config itself is as before


@pytest.mark.parametrize("documents", ["file", "line", "blank"])
def test_texts_keep_their_lines(tmp_path: Path, documents: str) -> None:
    lines = [
        f"line {number} says {number * 7 % 1000}." + "\n" * (number % 5 == 0) for number in range(1, 40_001)
    ]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    config = source(format="text", path=str(tmp_path / "t.txt"), documents=documents)
    everything, some = dict(read(config)), dict(read(sampled(config, 80_000)))
    assert 0 < len(some) < len(everything) / 2
    different = [line for line in some if some[line] != everything.get(line)]
    assert len(different) <= (sampling.STRETCHES + 1) * 2 * (documents == "blank")  # a paragraph may be cut


def test_jsonl_and_files_that_no_stretch_reaches(tmp_path: Path) -> None:
    for number in range(300):
        rows = [f'{{"file": {number}, "row": {row}}}' for row in range(20)]
        (tmp_path / f"{number:03}.jsonl").write_text("\n".join(rows) + "\n")
    part = sampled(source(format="jsonl", path=str(tmp_path)), 12_000)
    files = {cells[0] for _, cells in read(part)}
    assert {0, 1, 299} <= files
    assert 20 < len(files) < 200
    assert 0.05 < part._sample.share() < 0.5


def test_parquet_by_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(sampling, "STRETCHES", 4)
    made = pyarrow.table({"a": list(range(100_000)), "b": [f"{i * 7919 % 100_003}" for i in range(100_000)]})
    parquet.write_table(made, tmp_path / "t.parquet")
    part = sampled(source(format="parquet", path=str(tmp_path / "t.parquet")), 500_000)
    some = read(part)
    assert 0 < len(some) < 100_000
    assert all(line == cells[0] + 1 for line, cells in some)


def test_each_split_of_its_own_files_is_sampled(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(table(5_000))
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    part = sampled(source(format="csv", path=paths), 20_000)
    splits = [split for chunk in part.read() for split in chunk.split]
    assert splits.count("train") > splits.count("test") > 100
    assert part._sample.share("test") < part._sample.share("train") < 1


def test_a_small_source_is_read_whole_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(50))
    config = source(format="csv", path=str(tmp_path / "t.csv"))
    part = sampled(config, 1_000_000)
    assert part._sample.whole
    assert part._sample.share() == 1
    assert read(part) == read(config)
    assert config.model_dump() == part.model_dump()
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        sampled(source(format="csv", path="none.csv"), 100)
    assert Sample([(tmp_path / "t.csv", None)], 10, None).bytes == (tmp_path / "t.csv").stat().st_size


def test_an_array_keeps_its_lines(tmp_path: Path) -> None:
    rows = ",\n".join(f'{{"number": {number}, "twice": {2 * number}}}' for number in range(20_000))
    (tmp_path / "t.json").write_text(f"[\n{rows}\n]\n")
    part = sampled(source(format="json", path=str(tmp_path / "t.json")), 100_000)
    some = read(part)
    assert 0 < len(some) < 8_000
    assert some[0] == (2, [0, 0])
    assert all(line == cells[0] + 2 and cells[1] == 2 * cells[0] for line, cells in some)
    assert 0.05 < part._sample.share() < 0.5
