"""Splits: shares, ties, and that the same content never stands in two of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import SplitConfig
from llmtool.data.cleaning import contents
from llmtool.data.sources import frame
from llmtool.data.splitting import Assigned, RowTable, together

SPLIT: TypeAdapter[Any] = TypeAdapter(SplitConfig)


def split(by: str, cells: list | None = None, seed: int = 0, **keys: Any) -> tuple[np.ndarray, Assigned]:
    """Assign rows that hold `content` (default: all different) and `cells` in the column v."""
    content, unit = keys.pop("content", None), keys.pop("unit", None)
    size, files = keys.pop("size", None), keys.pop("given", None)
    config = SPLIT.validate_python({"by": by, **keys})
    count = next(len(part) for part in (content, cells, unit, size, files) if part is not None)
    content = list(range(count)) if content is None else content
    data = frame(["c", "v"], list(zip(content, cells or [None] * count, strict=True)), np.arange(count))
    names: dict[str, int] = {}
    seen = config.observe(data, SimpleNamespace(stratum=lambda data: data["v"]), names)
    table = RowTable(
        contents(data, ["c"]),
        np.arange(count) if unit is None else np.array(unit),
        np.ones(count, np.int64) if size is None else np.array(size),
        None if files is None else np.array(files, np.int8),
        seen.value,
        list(names),
    )
    result = config.assign(table, seed)
    assert len(result.split) == count
    return result.split, result


def counts(codes: np.ndarray) -> list[int]:
    return np.bincount(codes[codes >= 0], minlength=3).tolist()


def shares(train: float, validation: float, test: float) -> dict[str, float]:
    return {"train": train, "validation": validation, "test": test}


def test_shares_are_exact() -> None:
    assert counts(split("random", content=list(range(150)), **shares(0.7, 0.15, 0.15))[0]) == [105, 22, 23]
    assert counts(split("random", content=list(range(10)))[0]) == [8, 1, 1]
    assert counts(split("random", content=list(range(3)))[0]) == [1, 1, 1]
    assert counts(split("random", content=list(range(1000)), validation=0.2)[0]) == [800, 200, 0]
    values = ["a"] * 50 + ["b"] * 50 + ["c"] * 50
    codes, _ = split("stratified", values, **shares(0.7, 0.15, 0.15))
    assert counts(codes) == [105, 22, 23]
    for start in (0, 50, 100):
        train, validation, test = counts(codes[start : start + 50])
        assert train == 35
        assert {validation, test} == {7, 8}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.sampled_from(
        [(0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33), (0.9, 0.0, 0.1)]
    ),
    st.integers(0, 5),
)
def test_every_class_keeps_its_share(sizes: list[int], parts: tuple[float, float, float], seed: int) -> None:
    values = [f"class{n}" for n, size in enumerate(sizes) for _ in range(size)]
    if len(values) < 12:
        return
    codes, _ = split("stratified", values, seed, **shares(*parts))
    for n in range(len(sizes)):
        inside = codes[[value == f"class{n}" for value in values]]
        if sizes[n] > 3:
            found = np.array(counts(inside)) - sizes[n] * np.array(parts)
            assert (np.abs(found) <= 1 + 1e-9).all(), (counts(inside), sizes[n])
        assert (inside == 0).any()
    assert np.abs(np.array(counts(codes)) - len(values) * np.array(parts)).max() <= len(sizes)


def test_a_class_of_one_row_goes_to_train_and_is_said() -> None:
    for seed in range(10):
        codes, result = split("stratified", ["a"] * 30 + ["rare"] + ["b"] * 30, seed)
        assert codes[30] == 0
        assert result.notes == ["classes with a single row, which went to train: 'rare'"]
    with pytest.raises(DataError, match="use by: random"):
        split("stratified", [str(n) for n in range(300)])
    assert set(counts(split("stratified", ["only"] * 20)[0])) == {16, 2}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["random", "stratified", "grouped", "hash", "order", "time", "column", "files"]),
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 12)), min_size=40, max_size=150),
    st.integers(0, 3),
)
def test_content_never_straddles(by: str, drawn: list[tuple[int, int]], seed: int) -> None:
    content = [row[0] for row in drawn]
    values: Any = [str(row[1]) for row in drawn]
    keys: dict[str, Any] = {"on": "v"} if by in ("grouped", "time", "column") else {}
    if by == "column":
        keys["values"] = {str(n): ("train", "validation", "test")[n % 3] for n in range(13)}
    if by == "files":
        keys["given"] = [row[1] % 3 for row in drawn]
    try:
        codes, result = split(by, values, seed, content=content, **keys)
    except DataError:
        return  # too few distinct rows for three splits
    for label in set(content):
        inside = {int(code) for code, row in zip(codes, content, strict=True) if row == label and code >= 0}
        assert len(inside) == 1
    if by == "grouped":
        for group in set(values):
            assert len({int(c) for c, value in zip(codes, values, strict=True) if value == group}) == 1
    dropped = sum(int(mask.sum()) for mask in result.dropped.values())
    assert dropped == (codes == -1).sum()


def test_documents_stay_whole_but_for_order() -> None:
    unit = np.repeat(np.arange(40), 5)
    for by in ("random", "hash"):
        codes, _ = split(by, unit=unit, **shares(0.6, 0.2, 0.2))
        assert all(len(set(codes[unit == n])) == 1 for n in range(40))
    size = [2048] * 199 + [100]
    codes, _ = split("order", size=size, unit=[0] * 200, **shares(0.9, 0.1, 0.0))
    assert codes.tolist() == [0] * 180 + [1] * 20


def test_order_is_exact_for_tables() -> None:
    codes, _ = split("order", content=list(range(20_000)), **shares(0.8, 0.0, 0.2))
    assert codes.tolist() == [0] * 16_000 + [2] * 4_000
    codes, result = split("order", content=[*range(18), 0, 19], **shares(0.8, 0.1, 0.1))
    assert codes.tolist() == [0] * 16 + [1] * 2 + [0, 2]
    assert result.notes == ["1 row stands in an earlier split too and went there"]


def test_time() -> None:
    days = [f"2024-01-{n:02}" for n in range(1, 21)]
    codes, _ = split("time", days[::-1], on="v", **shares(0.8, 0.1, 0.1))
    assert codes.tolist() == ([0] * 16 + [1] * 2 + [2] * 2)[::-1]
    codes, _ = split("time", ["1", "2", "2", "2", "10", "11"], on="v", **shares(0.5, 0.0, 0.5))
    assert codes.tolist() == [0, 0, 0, 0, 2, 2]  # a tie goes to the earlier split; 10 comes after 2
    config = SPLIT.validate_python({"by": "time", "on": "v"})
    data = frame(["v"], [["2024-01-01"], [""], ["soon"], [None]], np.arange(4))
    seen = config.observe(data, None, {})
    assert seen.dropped["v is missing"].tolist() == [False, True, False, True]
    assert seen.bad["v is not a date"].tolist() == [False, False, True, False]
    names: dict[str, int] = {}
    config.observe(data, None, names)
    with pytest.raises(DataError, match="dates in some rows and numbers in others"):
        config.observe(frame(["v"], [["2011"]], np.arange(1)), None, names)


def test_time_of_dates_in_an_order_of_its_own_says_what_to_do() -> None:
    config = SPLIT.validate_python({"by": "time", "on": "v"})
    says = r"v holds no ISO dates: the step {step: types, columns: {v: date}, dates: day/month/year} of"
    with pytest.raises(DataError, match=says):
        config.observe(frame(["v"], [["17/3/2021"], ["18/3/2021"]], np.arange(2)), None, {})
    seen = config.observe(frame(["v"], [["soon"], ["1"]], np.arange(2)), None, {})
    assert seen.bad["v is not a number or an ISO date"].tolist() == [True, False]


def test_hash_keeps_rows_where_they_are() -> None:
    small, _ = split("hash", content=[f"row {n}" for n in range(2000)])
    large, _ = split("hash", content=[f"row {n}" for n in range(5000)])
    assert (small == large[:2000]).all()
    assert np.abs(np.array(counts(large)) / 5000 - [0.8, 0.1, 0.1]).max() < 0.02
    assert (split("hash", content=[f"row {n}" for n in range(2000)], seed=1)[0] != small).any()


def test_given_splits_drop_copies_from_train() -> None:
    codes, result = split("files", given=[0, 0, 0, 1, 1, 2], content=["a", "b", "c", "b", "d", "d"])
    assert codes.tolist() == [0, -1, 0, 1, -1, 2]
    assert {reason: int(mask.sum()) for reason, mask in result.dropped.items()} == {
        "duplicate of a row in validation": 1,
        "duplicate of a row in test": 1,
    }
    codes, _ = split("files", given=[0] * 90 + [2] * 10, validation=0.1)
    assert counts(codes) == [81, 9, 10]
    with pytest.raises(ConfigError, match="validation rows already"):
        split("files", given=[0, 0, 1], validation=0.1)
    codes, result = split(
        "column", ["train", "valid", "other"], on="v", values={"train": "train", "valid": "validation"}
    )
    assert codes.tolist() == [0, 1, -1]


def test_groups_and_copies_make_components() -> None:
    unit = together(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8]), np.array([1, 2, 3, 4, 4]))
    assert unit.tolist() == [0, 0, 0, 1, 1]
    assert together(np.array([4, 3, 4])).tolist() == [0, 1, 0]


def test_another_content_in_one_row_moves_no_other_row() -> None:
    content = [f"row {n}" for n in range(200)]
    before, _ = split("random", content=content)
    after, _ = split("random", content=[*content[:100], "changed", *content[101:]])
    assert (before == after).all()


def test_seed() -> None:
    assert (
        split("random", content=list(range(100)))[0] == split("random", content=list(range(100)))[0]
    ).all()
    assert (
        split("random", content=list(range(100)), seed=1)[0] != split("random", content=list(range(100)))[0]
    ).any()


def test_too_few_rows() -> None:
    for by in ("random", "order"):
        with pytest.raises(DataError, match="nothing is left for"):
            split(by, content=[0, 1])
    with pytest.raises(DataError, match=r"nothing is left for validation: 50 usable rows, 1 that"):
        split("random", content=[7] * 50)
    with pytest.raises(DataError, match=r"nothing is left for validation: 50 usable rows, 2 that"):
        split("order", content=[7] * 49 + [8])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0.8, 0.1, 0.1]),
        ({"train": 0.9, "validation": 0.1}, [0.9, 0.1, 0.0]),
        ({"test": 0.25}, [0.75, 0.0, 0.25]),
        ({"train": 1}, [1.0, 0.0, 0.0]),
    ],
)
def test_shares_that_are_left_out(keys: dict, expected: list) -> None:
    assert SPLIT.validate_python({"by": "random", **keys}).shares.tolist() == expected


@pytest.mark.parametrize(
    "keys", [{"train": 0.8, "test": 0.3}, {"train": 0.5}, {"train": 0, "test": 1}, {"test": -0.1}]
)
def test_shares_that_do_not_add_up(keys: dict) -> None:
    with pytest.raises(ValidationError):
        SPLIT.validate_python({"by": "random", **keys})
