"""Leaks that were planted are found and named; honest data raises no alarm."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from llmtool.data import duplicates
from llmtool.data.duplicates import near_documents, sketches
from llmtool.data.leakage import (
    backwards,
    giving_away,
    ids,
    near_rows,
    of_table,
    straddling,
)
from tests.data import planted


@pytest.mark.parametrize("kind", planted.LEAKS)
@pytest.mark.parametrize("seed", range(3))
def test_a_column_that_gives_a_class_away_is_named(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns, code = planted.people(random)
    columns["extra"] = planted.LEAKS[kind](random, columns["y"])
    found = giving_away(planted.table(columns, code), ["age", "income", "city", "extra"], "y", "classes")
    assert [finding.columns for finding in found] == [["extra"]]
    assert found[0].score is not None
    assert found[0].score >= 0.97
    assert "'extra' alone gives 'y' away" in found[0].says
    assert "ignore: [extra]" in found[0].advice


@pytest.mark.parametrize("kind", planted.VALUES)
def test_a_column_that_gives_a_number_away_is_named(kind: str) -> None:
    random = np.random.default_rng(1)
    rows = 1500
    y = random.lognormal(3, 1.0, rows)
    columns = {"x": (y * random.lognormal(0, 0.3, rows)).round(3), "y": y.round(4)}
    columns["extra"] = planted.VALUES[kind](random, y)
    made = planted.table(columns, random.choice([0, 0, 0, 1, 2], rows))
    assert [finding.columns for finding in giving_away(made, ["x", "extra"], "y", "values")] == [["extra"]]


def test_honest_tables_raise_no_alarm() -> None:
    for seed in range(20):
        columns, code = planted.people(np.random.default_rng(seed))
        found = of_table(planted.table(columns, code), ["age", "income", "city"], ["y"], "classes", "random")
        assert [finding for finding in found if finding.warning] == []


@pytest.mark.parametrize(("file", "target"), [("iris.csv", "species"), ("adult.csv.gz", None)])
def test_the_repositorys_tables_raise_no_alarm(file: str, target: str | None) -> None:
    data = (Path(__file__).parents[2] / "configs/data" / file).read_bytes()
    lines = (gzip.decompress(data) if file.endswith("gz") else data).decode().splitlines()
    rows = np.array([line.split(",") for line in lines[1:8001] if line])
    names = lines[0].split(",") if target else [f"column {n}" for n in range(rows.shape[1])]
    target = target or names[-1]
    columns = {name: rows[:, at] for at, name in enumerate(names)}
    code = np.random.default_rng(0).choice([0, 0, 0, 1, 2], len(rows))
    inputs = [name for name in names if name != target]
    found = of_table(planted.table(columns, code), inputs, [target], "classes", "random")
    assert [finding for finding in found if finding.warning] == []


def test_rows_that_hardly_differ_are_all_found_and_no_other() -> None:
    for seed in range(3):
        made, copies = planted.near_rows(np.random.default_rng(seed), 3000, 100)
        found = near_rows(made, list(made.columns))
        assert sum(finding.count for finding in found) == 100
        assert all(finding.warning for finding in found)
        assert int(found[0].examples[0].split(" and ")[0].partition(":")[2]) - 2 in copies


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
def test_edited_documents_are_found(share: float) -> None:
    texts, code, copies = planted.documents(np.random.default_rng(5), 1000, 100, share)
    found = [row for row, _ in near_documents(texts, code)]
    assert set(found) <= set(copies)
    assert len(found) >= 99


def test_short_documents_are_compared_but_for_case_and_punctuation() -> None:
    texts = ["To be, or not to be.", "to be or not to be", "something else", "", "..."]
    assert near_documents(texts, np.array([0, 1, 2, 1, 2])) == [(1, 0)]
    assert near_documents(["a b c d e f g h"] * 2, np.array([1, 2])) == []
    assert near_documents([], np.array([], np.int8)) == []


def test_a_sketch_estimates_what_documents_share() -> None:
    words = [f"word{number}" for number in range(600)]
    texts = [" ".join(words[:400]), " ".join(words[:200] + words[400:]), " ".join(words[:8]), "too short", ""]
    made, short = sketches(texts)
    assert float((made[0] == made[1]).mean()) == pytest.approx(198 / (2 * 398 - 198), abs=0.12)
    assert made.shape == (5, duplicates.BINS)
    assert len(set(made[2].tolist())) > 6, "six runs, each with its distance from the bin that took it"
    assert (made[3:] == duplicates._EMPTY).all()
    assert list(short) == [3]
    for text, row in zip(texts, made, strict=True):
        assert (sketches([text])[0] == row).all(), "whatever stands beside it"


def test_a_bin_without_a_run_takes_the_next_one_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BINS", 6)
    values = np.array([13, 7, 10], np.uint64)  # of bins 1, 1 and 4
    monkeypatch.setattr(duplicates, "runs", lambda words, counts, length: (values, np.array([3])))
    made, _ = sketches(["a b c d e f g h"])
    assert made.tolist() == [[8, 7, 12, 11, 10, 9]]


def test_it_does_not_matter_which_documents_are_sketched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, code, _ = planted.documents(np.random.default_rng(5), 300, 30, 0.05)
    texts += ["To be, or not to be.", "to be or not to be"]
    code = np.append(code, [0, 1])
    whole = near_documents(texts, code)
    monkeypatch.setattr(duplicates, "TOGETHER", 7)
    assert near_documents(texts, code) == whole
    assert whole[-1] == (len(texts) - 1, len(texts) - 2)


def test_groups_that_straddle_are_named() -> None:
    random = np.random.default_rng(0)
    columns, code = planted.people(random)
    columns["patient_id"] = random.integers(300, size=len(code))
    columns["visit"] = np.array([f"clinic {number}" for number in random.integers(200, size=len(code))])
    found = {
        finding.columns[0]: finding for finding in straddling(planted.table(columns, code), list(columns))
    }
    assert set(found) == {"patient_id", "visit"}
    assert found["patient_id"].warning
    assert "by: grouped, on: patient_id" in found["patient_id"].advice
    apart = {**columns, "patient_id": columns["patient_id"] + 1000 * code, "visit": code}
    assert straddling(planted.table(apart, code), list(apart)) == []


def test_ids_are_named_and_measurements_are_not() -> None:
    random = np.random.default_rng(0)
    columns, code = planted.people(random)
    rows = len(code)
    columns |= {
        "row": np.arange(rows), "uuid": np.array([f"{n:x}" for n in random.permutation(10**6)[:rows]]),
        "weight": random.normal(size=rows), "salary": random.permutation(10**5)[:rows],
    }  # fmt: skip
    found = ids(planted.table(columns, code), list(columns))
    assert {finding.columns[0] for finding in found} == {"row", "uuid"}
    assert not any(finding.warning for finding in found)


def test_time_that_runs_backwards_is_named() -> None:
    random = np.random.default_rng(0)
    days = np.array([f"2024-{1 + n // 28 % 12:02}-{1 + n % 28:02}" for n in range(300)])
    code = random.choice([0, 0, 1, 2], 300)
    found = backwards(planted.table({"day": days, "x": np.arange(300)}, code))
    assert [finding.columns for finding in found] == [["day"]]
    assert "by: time, on: day" in found[0].advice
    assert backwards(planted.table({"day": days}, np.repeat([0, 1, 2], 100))) == []


def test_ugly_columns_are_taken_as_they_are() -> None:
    code = np.arange(60) % 3
    columns = {
        "empty": np.full(60, ""), "same": np.full(60, 1), "mixed": np.array(["1", "x", "", "nan"] * 15),
        "huge": np.full(60, "1e300"), "y": np.array(["a", "b"] * 30),
    }  # fmt: skip
    made = planted.table(columns, code)
    assert all(
        f.columns == ["mixed"]
        for f in of_table(made, list(columns)[:4], ["y"], "classes", "random")
        if f.columns
    )
    for kind in ("classes", "values"):
        giving_away(made, list(columns)[:4], "empty", kind)
        giving_away(made, list(columns)[:4], "same", kind)
