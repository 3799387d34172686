"""The features encoding: kinds, scaling as scikit-learn does, targets, refusals, and state."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, StandardScaler

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import statistics
from llmtool.data.columns import piecewise
from llmtool.data.encoding import Given
from llmtool.data.features import FeatureEncoder, FeaturesEncode
from llmtool.data.sources import Chunk
from llmtool.data.statistics import FairSample, Moments, Survey
from llmtool.data.store import Dataset, make_card


def chunks(frame: pd.DataFrame, size: int = 7) -> Iterator[Chunk]:
    for start in range(0, len(frame), size):
        part = frame.iloc[start : start + size]
        ordinals = part.index.to_numpy().astype(np.int64)
        yield Chunk(part, ordinals, np.zeros(len(part), dtype=np.int64), ordinals + 2)


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(list(values), dtype=object) for name, values in columns.items()})


def fit(frame: pd.DataFrame, **keys: Any) -> FeatureEncoder:
    encoder = FeaturesEncode(**{"target": "y", **keys}).build(0)
    encoder.columns(list(frame.columns))
    encoder.fit(Given(list(chunks(frame))))
    return encoder


def write(
    encoder: FeatureEncoder, frame: pd.DataFrame, directory: Path, split: str = "train"
) -> tuple[dict, dict]:
    writer = encoder.writer(directory, split)
    refused = {}
    for chunk in chunks(frame):
        refused.update(writer.add(chunk))
    return writer.close(), refused


def encoded(encoder: FeatureEncoder, **columns: Any) -> np.ndarray:
    return encoder.encode(table(**columns))[0]


Y = ["no", "yes"]


# --- scaling ---


def test_standard_is_scikit_learns_to_1e_12() -> None:
    generator = np.random.default_rng(0)
    values = np.stack(
        [generator.normal(1e6, 3, 500), generator.lognormal(0, 3, 500), generator.normal(0, 1e-9, 500)],
        axis=1,
    )
    frame = table(**{f"c{i}": map(repr, map(float, values[:, i])) for i in range(3)}, y=Y * 250)
    encoder = fit(frame)
    expected = StandardScaler().fit(values)
    for i, column in enumerate(encoder.fitted):
        assert column.mean == pytest.approx(expected.mean_[i], rel=1e-12, abs=1e-21)
        assert column.deviation == pytest.approx(expected.scale_[i], rel=1e-12)
    block, refused = encoder.encode(frame)
    assert not refused
    np.testing.assert_allclose(block, expected.transform(values).astype(np.float32), rtol=1e-6, atol=1e-6)
    assert block.dtype == np.float32


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.integers(1, 9))
def test_moments_do_not_depend_on_chunks(values: list[float], size: int) -> None:
    array, moments = np.array(values), Moments()
    for start in range(0, len(array), size):
        moments.merge(Moments.of(array[start : start + size]))
    assert moments.mean == pytest.approx(array.mean(), rel=1e-9, abs=1e-9)
    assert moments.deviation == pytest.approx(array.std(), rel=1e-9, abs=1e-6)


def test_a_number_that_varies_only_by_rounding_is_divided_by_one() -> None:
    values = [0.1 + 0.2, 0.3] * 50
    encoder = fit(table(a=values, b=range(100), y=Y * 50))
    expected = StandardScaler().fit(np.array(values)[:, None])
    assert encoder.fitted[0].deviation == expected.scale_[0] == 1.0


@pytest.mark.parametrize(
    "values", [np.random.default_rng(1).lognormal(0, 2, 700), np.repeat([1.0, 2, 2, 5, 5, 5, 9], 60)]
)
def test_quantile_is_scikit_learns(values: np.ndarray) -> None:
    generator = np.random.default_rng(2)
    values = generator.permutation(values)
    frame = table(a=map(repr, map(float, values)), y=[Y[i % 2] for i in range(len(values))])
    encoder = fit(frame, scale="quantile")
    count = min(1000, len(values))
    other = QuantileTransformer(n_quantiles=count, output_distribution="normal", subsample=None).fit(
        values[:, None]
    )
    tests = np.concatenate([values, [-5.0, 0.0, 1e9, values.min(), values.max()], generator.normal(2, 2, 50)])
    found = encoded(encoder, a=map(repr, map(float, tests)))
    np.testing.assert_allclose(found[:, 0], other.transform(tests[:, None])[:, 0], rtol=1e-5, atol=1e-6)


def test_piecewise_stands_beside_the_standardised_value() -> None:
    frame = table(a=range(101), y=[Y[i % 2] for i in range(101)])
    encoder = fit(frame, scale="piecewise", bins=4)
    found = encoded(encoder, a=[0, 25, 37.5, 100, 1000, -1000])
    np.testing.assert_allclose(
        found[:, 1:], [[0] * 4, [1, 0, 0, 0], [1, 0.5, 0, 0], [1] * 4, [1] * 4, [0] * 4]
    )
    lowest = (0 - 50) / np.arange(101).std()
    np.testing.assert_allclose(found[0, 0], lowest / np.sqrt(1 + (lowest / 3) ** 2), rtol=1e-6)
    assert 2.9 < found[4, 0] < 3
    free = fit(frame, scale="piecewise", bins=4, limit="none")
    np.testing.assert_allclose(encoded(free, a=[0])[0, 0], lowest, rtol=1e-6)
    narrow = fit(frame, limit=1.5)  # beside scale: standard
    rows = encoded(narrow, a=[0, 25, 37.5, 100])
    assert np.abs(rows).max() < 1.5
    np.testing.assert_allclose(narrow.fitted[0].decode(rows), [0, 25, 37.5, 100], atol=1e-3)
    assert encoder.features == ["a", "a[0]", "a[1]", "a[2]", "a[3]"]
    assert piecewise(np.zeros(3), np.array([1.0, 2.0])).shape == (3, 0)


def test_none_leaves_numbers_as_they_are() -> None:
    encoder = fit(table(a=["1.5", "-2", "3e2", ".5"], y=Y * 2), scale="none")
    assert encoded(encoder, a=["1.5", "-2", "3e2", ".5", "+7", " 8 "])[:, 0].tolist() == [
        1.5,
        -2,
        300,
        0.5,
        7,
        8,
    ]


def test_only_the_train_rows_teach(tmp_path: Path) -> None:
    train = table(a=[1, 2, 3, 4], b=["u", "v"] * 2, y=Y * 2)
    encoder = fit(train)
    state = json.dumps(encoder.state())
    write(encoder, table(a=[1000], b=["w"], y=["yes"]), tmp_path, "test")
    assert json.dumps(encoder.state()) == state
    assert encoder.fitted[0].mean == 2.5


# --- missing values ---


@pytest.mark.parametrize(("missing", "fill"), [("median", 2.0), ("mean", 4.0), ("zero", 0.0)])
def test_missing_numbers_are_filled_and_flagged(missing: str, fill: float) -> None:
    frame = table(a=["1", "NA", "2", "?", "9", "null", "", None], y=Y * 4)
    encoder = fit(frame, missing=missing, scale="none")
    assert encoder.features == ["a", "a (missing)"]
    block, refused = encoder.encode(frame)
    assert not refused
    np.testing.assert_allclose(
        block, [[1, 0], [fill, 1], [2, 0], [fill, 1], [9, 0], [fill, 1], [fill, 1], [fill, 1]]
    )


@pytest.mark.parametrize(("indicator", "width"), [("auto", 3), (True, 4), (False, 2)])
def test_indicator_columns(indicator: Any, width: int) -> None:
    encoder = fit(table(a=["1", "", "3", "4"], b=["1", "2", "3", "5"], y=Y * 2), indicator=indicator)
    assert encoder.inputs["width"] == width == len(encoder.features)


def test_words_that_mean_missing_in_numbers_are_categories_elsewhere() -> None:
    frame = table(a=["NA", "None", "null", "x"] * 3, b=["1", "NA", "None", "4"] * 3, y=Y * 6)
    encoder = fit(frame)
    assert encoder.fitted[0].categories == ["NA", "None", "null", "x"]
    assert encoder.fitted[1].kind == "number"


def test_other_markers() -> None:
    encoder = fit(table(a=["1", "-", "3", ""], y=Y * 2), markers=["-"], scale="none")
    assert encoded(encoder, a=["-", "", "5"])[:, 1].tolist() == [1, 1, 0]
    assert list(encoder.encode(table(a=["NA"]))[1].values()) == ["a is not a number"]


# --- categories ---


def test_one_hot_is_scikit_learns() -> None:
    values = np.random.default_rng(0).choice(["a", "b", "c", "Ω", " d"], 80)
    frame = table(a=values, y=Y * 40)
    stripped = np.char.strip(values)[:, None]
    expected = OneHotEncoder(sparse_output=False).fit_transform(stripped)
    encoder = fit(frame)
    categories = sorted(set(stripped[:, 0]))
    np.testing.assert_array_equal(encoder.encode(frame)[0], expected)
    assert encoder.features == [f"a={category}" for category in categories]


def test_rare_unseen_and_missing_categories() -> None:
    frame = table(a=["u"] * 4 + ["v"] * 3 + ["w", "z", "?"], y=Y * 5)
    encoder = fit(frame)
    assert encoder.features == ["a=u", "a=v", "a (rare)", "a (missing)"]
    found = encoded(encoder, a=["u", "w", "never seen", "", None, "?"])
    assert found.argmax(axis=1).tolist() == [0, 2, 2, 3, 3, 3]
    assert (found.sum(axis=1) == 1).all()


def test_without_rare_ones_an_unseen_category_is_all_zero() -> None:
    encoder = fit(table(a=["u", "v"] * 4, y=Y * 4))
    assert encoded(encoder, a=["w", ""]).tolist() == [[0, 0], [0, 0]]


def test_max_categories_keeps_the_most_frequent() -> None:
    frame = table(a=["c"] * 9 + ["a"] * 5 + ["b"] * 6, y=Y * 10)
    encoder = fit(frame, max_categories=2)
    assert encoder.features == ["a=b", "a=c", "a (rare)"]
    assert any("2 of 3 categories kept" in note for note in encoder.notes)


def test_booleans_and_numbers_of_jsonl_read_as_the_csv_would() -> None:
    typed = table(a=[True, False, None, True] * 5, b=[1, 2.0, None, 3.5] * 5, y=[0, 1] * 10)
    texts = table(a=["true", "false", "", "true"] * 5, b=["1", "2", "", "3.5"] * 5, y=["0", "1"] * 10)
    one, two = fit(typed), fit(texts)
    assert one.state() == two.state()
    np.testing.assert_array_equal(one.encode(typed)[0], two.encode(texts)[0])


# --- dates ---


def test_dates_become_days_and_circles() -> None:
    days = pd.date_range("2019-11-01", periods=200, freq="37h")
    frame = table(when=days.strftime("%Y-%m-%d %H:%M"), y=Y * 100)
    encoder = fit(frame)
    block, refused = encoder.encode(frame)
    assert not refused
    names = ["when", "when year"] + [
        f"when {p} {f}" for p in ("month", "weekday", "hour") for f in ("sin", "cos")
    ]
    assert encoder.features == names
    numbers = (days - pd.Timestamp(0)).total_seconds().to_numpy() / 86400
    np.testing.assert_allclose(block[:, 0], (numbers - numbers.mean()) / numbers.std(), atol=1e-6)
    for name, value, period in (("month", days.month - 1, 12), ("weekday", days.day_of_week, 7)):
        angle = value.to_numpy() * 2 * np.pi / period
        np.testing.assert_allclose(block[:, names.index(f"when {name} sin")], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(block[:, names.index(f"when {name} cos")], np.cos(angle), atol=1e-6)
    hours = (days.hour + days.minute / 60).to_numpy()
    np.testing.assert_allclose(block[:, -2], np.sin(hours * 2 * np.pi / 24), atol=1e-6)


def test_each_part_of_a_date_may_have_features_of_its_own() -> None:
    frame = table(
        when=["2020-02-03 05:30", "2021-06-15 23:00", "", "2022-12-31 00:00"] * 3, n=range(12), y=Y * 6
    )
    encoder = fit(frame, scale="piecewise", bins=4)
    names, block = encoder.features, encoder.encode(frame)[0]
    on = [{names[i] for i in np.flatnonzero(row == 1) if "=" in names[i]} for row in block[:4]]
    assert on[0] == {"when month=2", "when weekday=Mon", "when hour=5"}
    assert on[2] == set()
    assert on[3] == {"when month=12", "when weekday=Sat", "when hour=0"}
    groups = encoder.inputs["columns"]
    assert groups == [1, 1, 2 + 12, 2 + 7, 2 + 24, 1, 1 + 4]  # day, year, its parts, missing; the number
    assert sum(groups) == encoder.inputs["width"]
    assert FeatureEncoder.from_state(encoder.state(), Path()).inputs == encoder.inputs
    assert fit(frame, scale="piecewise", calendar="circle").features[:4] == fit(frame).features[:4]


def test_dates_missing_wrong_old_and_with_a_zone() -> None:
    frame = table(when=["2020-01-01", "2021-06-15", "", "2022-12-31"] * 3, y=Y * 6)
    encoder = fit(frame)
    block, refused = encoder.encode(
        table(when=["0001-01-01", "9999-12-31", "NA", "2023-02-30", "20200101", "today"])
    )
    assert refused == dict.fromkeys((3, 4, 5), "when is not a date")
    assert np.isfinite(block).all()
    assert block[2, -1] == 1
    zone = encoded(encoder, when=["2020-01-01T23:30:00-02:00", "2020-01-02T01:30:00Z", "2020-01-02T01:30:00"])
    assert (zone[0] == zone[1]).all()
    assert (zone[1] == zone[2]).all()


# --- which columns ---


def test_useless_columns_are_left_out_with_a_note() -> None:
    rows = 60
    frame = table(
        good=range(0, 2 * rows, 2),
        constant=["5"] * rows,
        same=["x"] * rows,
        empty=["", None] * (rows // 2),
        name=[f"person {i}" for i in range(rows)],
        essay=["lorem ipsum " * 20 + str(i % 3) for i in range(rows)],
        id=range(1, rows + 1),
        y=Y * (rows // 2),
    )
    encoder = fit(frame)
    assert [column.name for column in encoder.fitted] == ["good"]
    for name, word in (
        ("constant", "same value"),
        ("same", "same value"),
        ("empty", "lacks"),
        ("name", "identifier"),
        ("essay", "239 characters|240 characters|241 characters"),
        ("id", "number of the row"),
    ):
        assert any(
            f"{name!r}" in note and any(w in note for w in word.split("|")) for note in encoder.notes
        ), name
    kept = fit(frame, categories=["name", "essay"], numbers=["id"], rare=1)
    assert [column.name for column in kept.fitted] == ["good", "name", "essay", "id"]


def test_one_wrong_number_does_not_turn_a_column_into_text() -> None:
    frame = table(a=[str(i) for i in range(199)] + ["oops"], y=Y * 100)
    encoder = fit(frame)
    assert encoder.fitted[0].kind == "number"
    assert any("1 train rows hold none, such as 'oops'" in note for note in encoder.notes)
    assert encoder.encode(frame)[1] == {199: "a is not a number"}


def test_numbers_with_a_decimal_comma_are_noted_where_the_comma_is_not_read() -> None:
    frame = table(temp=["37,4", "36,9", "38"] * 20, kind=["a,b", "c", "d"] * 20, y=Y * 30)
    encoder = fit(frame)
    (note,) = [note for note in encoder.notes if "comma" in note]
    assert note.startswith("column 'temp' looks like numbers with a decimal comma: set data.source.decimal")
    assert [column.kind for column in encoder.fitted] == ["category", "category"]
    with pytest.raises(DataError, match=r"no number, such as '37,4'; it looks like .*data\.source\.decimal"):
        fit(frame, target="temp", target_kind="values")
    assert "target 'temp' looks like numbers with" in fit(frame, target="temp").notes[0]


def test_codes_can_be_forced_to_categories() -> None:
    frame = table(zip=["01", "1", "02", "2"] * 3, y=Y * 6)
    assert fit(frame, categories=["zip"]).fitted[0].categories == ["01", "02", "1", "2"]


def test_columns_and_ignore_choose() -> None:
    frame = table(a=range(8), b=[3, 1] * 4, c=[0, 5] * 4, y=Y * 4)
    assert fit(frame, ignore=["b"]).names == ["a", "c"]
    assert fit(frame, columns=["c", "a"]).names == ["c", "a"]
    assert FeaturesEncode(target="y", ignore=["b"]).build().columns(["a", "b", "c", "y"]) == ["a", "c", "y"]


@pytest.mark.parametrize("key", ["target", "columns", "ignore", "numbers", "categories", "dates"])
def test_a_column_that_is_not_there_is_named_with_the_nearest(key: str) -> None:
    keys = {"target": "y", key: "incom" if key == "target" else ["incom"]}
    with pytest.raises(
        ConfigError, match=rf'data.encode.{key}: .* no column \'incom\'; did you mean "income"\?'
    ):
        FeaturesEncode(**keys).build().columns(["income", "y"])


def test_no_column_left_is_an_error() -> None:
    with pytest.raises(DataError, match="no input column is left"):
        fit(table(a=["x"] * 6, y=Y * 3))


def test_no_train_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="train split has no rows"):
        fit(table(a=[], y=[]))


# --- refusals ---


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("abc", "a is not a number"),
        ("1_000", "a is not a number"),
        ("１２", "a is not a number"),
        ("1,5", "a is not a number"),
        ("0x10", "a is not a number"),
        ("1e400", "a is infinite or beyond 3.4e38"),
        ("-1e300", "a is infinite or beyond 3.4e38"),
        (1e39, "a is infinite or beyond 3.4e38"),
        ("-inf", "a is infinite or beyond 3.4e38"),
        ("Infinity", "a is infinite or beyond 3.4e38"),
        (10**400, "a is infinite or beyond 3.4e38"),
        pytest.param(10**5000, "a is infinite or beyond 3.4e38", id="10**5000"),
        (float("inf"), "a is infinite or beyond 3.4e38"),
    ],
)
def test_rows_that_are_no_numbers_are_refused_with_reason_and_ordinal(
    tmp_path: Path, value: Any, reason: str
) -> None:
    encoder = fit(table(a=["1", "2", "3", "4"], y=Y * 2))
    frame = table(a=["1", value, "NA"], y=["yes", "no", "no"])
    frame.index = [40, 41, 45]
    meta, refused = write(encoder, frame, tmp_path)
    assert refused == {41: reason}
    assert meta["rows"] == 2
    origin = np.fromfile(tmp_path / "train.origin.bin", dtype="<i8").reshape(-1, 2)
    assert origin.tolist() == [[0, 42], [0, 47]]


def test_a_huge_value_in_train_is_that_rows_fault_alone() -> None:
    with_it, without = (
        fit(table(a=["1", *huge, "3", "4"], y=Y[:1] + Y[1:] * len(huge) + Y)).state()
        for huge in (["1e300"], [])
    )
    assert with_it["columns"] == without["columns"]


def test_a_value_that_is_too_large_once_scaled_is_refused(tmp_path: Path) -> None:
    encoder = fit(table(a=["1e-20", "2e-20", "3e-20", "4e-20"], y=Y * 2))
    _, refused = write(encoder, table(a=["2e-20", "1e30"], y=["yes", "no"]), tmp_path)
    assert refused == {1: "a is too large for a 32-bit number"}


def test_dates_in_an_order_of_their_own_are_left_out_with_what_to_do() -> None:
    days = [f"{n % 28 + 1}/{n % 12 + 1}/2021" for n in range(40)]
    for keys in ({}, {"dates": ["when"]}):
        encoder = fit(table(a=range(0, 120, 3), when=days, y=Y * 20), **keys)
        assert any("the step {step: types, columns: {when: date}" in note for note in encoder.notes)


# --- targets ---


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["10", "9", "2"] * 8, ["2", "9", "10"]),
        (["b", "a", "10"] * 8, ["10", "a", "b"]),
        ([True, False] * 8, ["false", "true"]),
        ([1.0, 0.0] * 8, ["0", "1"]),
        (["-1", "1"] * 8, ["-1", "1"]),
        (["None", "mild"] * 8, ["None", "mild"]),
        ([" <=50K", " >50K"] * 8, ["<=50K", ">50K"]),
    ],
)
def test_classes_are_sorted_and_counted(values: list, names: list[str]) -> None:
    targets = fit(table(a=range(len(values)), y=values)).targets
    assert targets["kind"] == "classes"
    assert targets["names"] == names
    assert targets["counts"] == [8] * len(names)


@pytest.mark.parametrize(
    "values", [[0.5 * i for i in range(40)], list(range(300)), [str(i * 7 % 60) for i in range(3000)]]
)
def test_many_or_broken_numbers_are_values(values: list) -> None:
    encoder = fit(table(a=[i % 17 for i in range(len(values))], y=values))
    numbers = np.array(list(map(float, values)))
    assert encoder.targets == {
        "kind": "values",
        "names": ["y"],
        "mean": [pytest.approx(numbers.mean())],
        "scale": [pytest.approx(numbers.std())],
    }


def test_the_kind_of_target_can_be_said() -> None:
    frame = table(a=range(40), y=[i % 3 for i in range(40)])
    assert fit(frame).targets["kind"] == "classes"
    assert any("target_kind: values" in note for note in fit(frame).notes)
    assert fit(frame, target_kind="values").targets["kind"] == "values"


def test_a_target_may_be_learned_on_another_scale() -> None:
    prices = [float(1000 + 37 * i * i) for i in range(60)]
    frame = table(a=range(60), y=prices, z=[str(i % 7) for i in range(60)])
    said = fit(frame, target_kind="values", target_scale="log").targets
    logarithms = np.log(prices)
    assert said["mean"] == [pytest.approx(np.mean(prices))]
    assert said["transform"] == {
        "kind": "log",
        "offset": [0.0],
        "mean": [pytest.approx(logarithms.mean())],
        "scale": [pytest.approx(logarithms.std())],
    }
    encoder = fit(frame, target=["y", "z"], target_scale="log")  # z has zeros
    assert encoder.targets["transform"]["offset"] == [0.0, 1.0]
    assert json.loads(json.dumps(encoder.state())) == encoder.state()
    assert FeatureEncoder.from_state(encoder.state(), Path()).targets == encoder.targets
    said = fit(frame, target=["y", "z"], target_scale="quantile").targets["transform"]
    assert said["values"][0] == prices
    assert said["values"][1] == [0, 1, 2, 3, 4, 5, 6]
    for normal in said["normal"]:
        assert normal == sorted(normal)
        assert normal[0] == pytest.approx(-normal[-1], abs=0.2)
    assert "transform" not in fit(frame, target_kind="values").targets


def test_scales_that_a_target_has_not_are_refused() -> None:
    below = table(a=range(60), y=[i - 5.5 for i in range(60)])
    with pytest.raises(
        DataError, match=r"log needs numbers of 0 and above, and one is -5\.5; quantile takes"
    ):
        fit(below, target_scale="log")
    with pytest.raises(ConfigError, match=r"data\.encode\.target_scale: log is for numbers; 'y' is taken as"):
        fit(table(a=range(60), y=Y * 30), target_scale="log")


def test_several_targets_are_values(tmp_path: Path) -> None:
    frame = table(a=range(20), y=[i % 2 for i in range(20)], z=[i * 0.5 for i in range(20)])
    encoder = fit(frame, target=["y", "z"])
    meta, _ = write(encoder, frame, tmp_path)
    assert meta["arrays"]["targets"]["shape"] == [20, 2]
    assert encoder.names == ["a"]
    found = np.fromfile(tmp_path / "train.targets.bin", dtype="<f4").reshape(-1, 2)
    np.testing.assert_array_equal(found, np.stack([np.arange(20) % 2, np.arange(20) / 2], axis=1))
    with pytest.raises(ConfigError, match="needs one target"):
        encoder.stratum(frame)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["yes"] * 30, "one class, 'yes'"),
        ([f"n{i}" for i in range(30)], "30 different values in 30 train rows are no classes"),
    ],
)
def test_targets_that_teach_nothing_are_refused(values: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(table(a=range(30), y=values))


@pytest.mark.parametrize(
    ("values", "message"),
    [([3.5] * 30, "has the value 3.5"), (["x", "z"] * 15, "30 train rows hold no number, such as 'x'")],
)
def test_values_that_teach_nothing_are_refused(values: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(table(a=range(30), y=values), target_kind="values")


def test_a_class_of_one_row_is_said() -> None:
    assert any(
        "have one train row ('c')" in note for note in fit(table(a=range(9), y=[*"aabbaabb", "c"])).notes
    )


def test_targets_missing_or_unknown_are_refused(tmp_path: Path) -> None:
    encoder = fit(table(a=range(8), y=Y * 4))
    frame = table(a=range(4), y=["yes", "maybe", "?", None])
    assert {reason: mask.tolist() for reason, mask in encoder.refuse(frame).dropped.items()} == {
        "y (target) is missing": [False, False, True, True]
    }
    _, refused = write(encoder, frame, tmp_path)
    assert refused == {1: "target class not in train", 2: "y (target) is missing", 3: "y (target) is missing"}
    assert np.fromfile(tmp_path / "train.targets.bin", dtype="<i8").tolist() == [1]


@pytest.mark.parametrize("mark", ["NA", "NaN", "null", "N/A", "?", ""])
@pytest.mark.parametrize("values", [["p", "q"] * 8, [0.5 * n for n in range(16)]])
def test_a_missing_target_is_dropped_whatever_its_mark(mark: str, values: list) -> None:
    """Before the split, of classes as of numbers; a word is noted, as it might be a class."""
    encoder = FeaturesEncode(target="y").build()
    encoder.columns(["a", "y"])
    frame = table(a=range(17), y=[*values, mark])
    dropped = {reason: int(mask.sum()) for reason, mask in encoder.refuse(frame).dropped.items()}
    assert dropped == {"y (target) is missing": 1}
    said = [] if mark in ("", "?") else [f"target 'y': a row with {mark!r} is left out, as one without"]
    assert [note[: len(said[0])] for note in encoder.notes] == said


def test_a_word_for_missing_may_be_a_class() -> None:
    values = ["NA", "EU"] * 8
    with pytest.raises(DataError, match=r"one class, 'EU'.*'NA' is left out, as one without a target"):
        fit(table(a=range(16), y=values))
    assert fit(table(a=range(16), y=values), markers=["?"]).targets["names"] == ["EU", "NA"]
    assert any("'None' is a class" in note for note in fit(table(a=range(8), y=["None", "x"] * 4)).notes)
    assert fit(table(a=range(12), y=["0", "1", "None"] * 4)).targets["names"] == ["0", "1"]


def test_values_missing_or_no_number_are_refused(tmp_path: Path) -> None:
    encoder = fit(table(a=range(60), y=[i * 0.5 for i in range(60)]))
    _, refused = write(encoder, table(a=range(5), y=["1.5", "NA", "abc", "1e400", "1e39"]), tmp_path)
    assert refused == {
        1: "y (target) is missing",
        2: "y (target) is not a number",
        3: "y (target) is infinite or beyond 3.4e38",
        4: "y (target) is infinite or beyond 3.4e38",
    }


# --- state, like, configuration ---


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-1e10, 1e10), min_size=30, max_size=40),
    st.sampled_from(["standard", "quantile", "piecewise", "none"]),
)
def test_state_is_json_and_comes_back_exactly(values: list[float], scale: str) -> None:
    rows = len(values)
    frame = table(
        a=[*values[:-1], None],
        b=[f"c{i % 3}" for i in range(rows)],
        c=[f"2020-{1 + i % 12:02}-01" for i in range(rows)],
        y=[Y[i % 2] for i in range(rows)],
    )
    encoder = fit(frame, scale=scale)
    state = json.loads(json.dumps(encoder.state(), allow_nan=False))
    back = FeatureEncoder.from_state(state, Path("x"))
    assert back.state() == encoder.state() == state
    np.testing.assert_array_equal(back.encode(frame)[0], encoder.encode(frame)[0])
    assert (back.inputs, back.targets) == (encoder.inputs, encoder.targets)


def test_a_broken_state_is_refused() -> None:
    state = fit(table(a=range(8), y=Y * 4)).state()
    for broken in ({}, {**state, "columns": [{"kind": "x"}]}, {**state, "fitted_target": {}}):
        with pytest.raises(DataError):
            FeatureEncoder.from_state(broken, Path("x"))


def prepared(directory: Path, frame: pd.DataFrame, **keys: Any) -> FeatureEncoder:
    encoder = fit(frame, **keys)
    meta, _ = write(encoder, frame, directory)
    card = make_card(
        "features", encoder.inputs, encoder.targets, encoder.state(), {"train": meta}, [], ["t.csv"]
    )
    (directory / "card.json").write_text(json.dumps(card))
    return encoder


def test_like_takes_the_columns_and_fits_the_target_anew(tmp_path: Path) -> None:
    base = prepared(tmp_path, table(a=range(8), b=["u", "v"] * 4, y=Y * 4))
    Dataset.open(tmp_path).verify()
    other = table(b=["u", "w"] * 4, more=range(8), a=[100] * 8, kind=list("pqrp") * 2)
    encoder = FeaturesEncode(like=str(tmp_path), target="kind").build(1)
    assert encoder.columns(list(other.columns)) == ["a", "b", "kind"]
    encoder.fit(Given(list(chunks(other))))
    assert encoder.fitted == base.fitted
    assert encoder.targets["names"] == ["p", "q", "r"]
    assert encoder.encode(other)[0][:, 0].tolist() == pytest.approx([(100 - 3.5) / np.arange(8).std()] * 8)
    same = FeaturesEncode(like=str(tmp_path)).build()
    assert same.columns(["a", "b", "y"]) == ["a", "b", "y"]
    with pytest.raises(ConfigError, match="no column 'a'"):
        FeaturesEncode(like=str(tmp_path)).build().columns(["b", "y"])
    with pytest.raises(ConfigError, match="'a' is an input"):
        FeaturesEncode(like=str(tmp_path), target="a").build().columns(["a", "b"])
    with pytest.raises(ConfigError, match=r"data.encode.like: .*no prepared dataset"):
        FeaturesEncode(like=str(tmp_path / "no")).build()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "needs a target"),
        ({"target": []}, "at least 1 item"),
        ({"target": "y", "like": "x", "scale": "none"}, "scale cannot stand beside it"),
        ({"target": ["a", "b"], "target_kind": "classes"}, "needs a single one"),
        ({"target": ["a", "a"]}, "stands twice"),
        ({"target": "y", "ignore": ["y"]}, "both target and ignore"),
        ({"target": "y", "columns": ["a", "y"]}, "both target and columns"),
        ({"target": "y", "numbers": ["a"], "dates": ["a"]}, "both numbers and dates"),
        ({"target": "y", "columns": ["a"], "numbers": ["b"]}, "in numbers but not in columns"),
        ({"target": "y", "bins": 4}, "only with scale: piecewise"),
        ({"target": "y", "scale": "minmax"}, "standard"),
        ({"target": "y", "limit": 3.0, "scale": "quantile"}, "limit is read only with scale: standard or"),
        ({"target": "y", "limit": 0.0}, "greater than 0"),
        ({"target": "y", "rare": 0}, "greater than or equal to 1"),
        ({"target": "y", "colums": ["a"]}, "colums"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeaturesEncode(**keys)


# --- bounded memory ---


def test_a_sample_is_exact_until_full_then_fair_whatever_is_merged() -> None:
    sample = FairSample(100, 0)
    sample.add(np.arange(60.0), np.arange(60))
    sample.add(np.arange(60.0, 100.0), np.arange(60, 100))
    assert sample.exact
    assert sample.values().tolist() == list(range(100))
    means = []
    for seed in range(200):
        whole, merged = FairSample(100, seed), FairSample(100, seed)
        for start in range(0, 2000, 70):
            places = np.arange(start, min(start + 70, 2000))
            whole.add(places.astype(float), places)
            part = FairSample(100, seed)
            for half in np.split(places, 2):
                part.add(half.astype(float), half)
            merged.merge(part)
        assert not whole.exact
        assert merged.seen == whole.seen == 2000
        assert merged.values().tolist() == whole.values().tolist()
        assert len(set(whole.values().tolist())) == 100
        means.append(whole.values().mean())
    assert np.mean(means) == pytest.approx(999.5, abs=4 * 577 / np.sqrt(100 * 200))
    assert np.std(means) == pytest.approx(577 / np.sqrt(100), rel=0.2)


def test_a_survey_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 1000)
    chance = np.random.default_rng(0)
    frame = table(
        number=chance.normal(0, 1, 3000),
        row=range(3000),
        word=[f"w{n}" for n in chance.integers(0, 40, 3000)],
        day=[f"20{n:02}-0{n % 9 + 1}-11" for n in chance.integers(0, 30, 3000)],
        mixed=[None if n % 7 == 0 else "x" if n % 500 == 1 else str(n) for n in range(3000)],
    )
    survey = Survey(list(frame.columns), frozenset({""}), 3)
    every = [list(chunks(frame, rows)) for rows in (3000, 701, 64)]
    one, *others = (survey.over(Given(parts)) for parts in every)
    for other in others:
        for left, right in zip(one, other, strict=True):
            assert left.kind() == right.kind()
            assert left.number_sample.values().tolist() == right.number_sample.values().tolist()
            assert left.numbers.deviation == pytest.approx(right.numbers.deviation, rel=1e-12)
            same = set(vars(left)) - {"numbers", "number_sample", "days", "day_sample", "years"}
            assert {key: vars(left)[key] for key in same} == {key: vars(right)[key] for key in same}
    assert [column.counts_rows for column in one] == [False, True, False, False, False]


def test_a_sampled_median_is_said_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 50)
    monkeypatch.setattr(statistics, "SAMPLES", 50)
    frame = table(a=np.random.default_rng(0).normal(0, 1, 3000), y=Y * 1500)
    one, two = fit(frame), fit(frame)
    assert one.state() == two.state()
    assert any("sampled values" in note for note in one.notes)
    assert abs(one.fitted[0].fill) < 0.2


def test_too_many_different_words_are_an_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DISTINCT", 1000)
    frame = table(a=range(4000), b=[f"u{i % 1500}" for i in range(4000)], y=Y * 2000)
    encoder = fit(frame)
    assert [column.name for column in encoder.fitted] == ["a"]
    assert any("'b' is left out" in note and "or more different" in note for note in encoder.notes)
