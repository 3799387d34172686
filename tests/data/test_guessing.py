"""Guesses from rows: the target and why, texts, identifiers, leaks, markers, splits, conversations."""

import json

import numpy as np
import pandas as pd
import pytest

from llmtool.core.errors import ConfigError
from llmtool.data.guessing import guess, lengths, other_spellings

RANDOM = np.random.default_rng(0)
N = 200


def frame(**columns):
    return pd.DataFrame(
        {name: [str(value) for value in values] for name, values in columns.items()}, dtype=object
    )


def numbers(n=N):
    return np.round(RANDOM.normal(size=n), 3)


def words(values, n=N):
    return [values[i % len(values)] for i in range(n)]


def texts(n=N):
    return [
        f"this is the review number {i} of a film that some people liked and some did not" for i in range(n)
    ]


TABLE = {"height": numbers(), "width": numbers(), "town": words(["Bern", "Basel", "Chur"])}


@pytest.mark.parametrize(
    ("columns", "target", "words_"),
    [
        ({"label": words("ab"), **TABLE}, "label", "by its name"),
        ({"Survived": words("01"), **TABLE}, "Survived", "by its name"),
        ({"species": words("ab"), "label": words("ab"), **TABLE}, "label", "by its name"),
        ({"house_value": numbers(), **TABLE}, "house_value", "end of its name"),
        (
            {"kind_of": words("abc"), "a": numbers(), "b": numbers(), "c": numbers()},
            "kind_of",
            "only column of words",
        ),
        ({"a": numbers(), "b": numbers(), "c": words("xy"), "d": words("uv")}, "d", "last column"),
        ({"d": words("uv"), "e": words("pq"), "id": range(N)}, "d", "first column"),
        ({"review": texts(), "group": words("12345")}, "group", "few values beside the text"),
    ],
)
def test_the_target(columns, target, words_):
    found = guess(frame(**columns), None, None)
    assert found.target == target
    assert words_ in found.why["target"]


def test_other_candidates_are_named():
    found = guess(frame(species=words("ab"), label=words("ab"), **TABLE), None, None)
    assert "species" in found.candidates
    assert guess(frame(species=words("ab"), label=words("ab"), **TABLE), "species", None).target == "species"


def test_without_names_the_place_counts():
    found = guess(frame(y=numbers(), c2=numbers(), c3=words("ab", N)), None, None, named=False)
    assert found.target == "c3"


@pytest.mark.parametrize(
    ("columns", "target", "task", "says"),
    [
        ({"a": words("x")}, None, None, "single column"),
        ({"id": range(N), "name": [f"n{i}" for i in range(N)]}, None, None, "no column to predict"),
        (TABLE, "heigth", None, "did you mean"),
        (TABLE, None, "language", "no column holds texts"),
        ({"a": texts(), **TABLE}, "a", None, "--target"),
        ({"prompt": texts(), "chosen": texts(), "rejected": texts()}, None, None, "preferences"),
    ],
)
def test_nothing_to_guess(columns, target, task, says):
    with pytest.raises(ConfigError, match=says):
        guess(frame(**columns), target, task)


def test_a_column_with_many_gaps_is_no_target():
    found = guess(frame(story=texts(), tag=["a", "b", "", "", ""] * (N // 5)), None, None)
    assert found.target is None
    assert found.texts == ["story"]


def test_the_task_decides_what_a_number_is():
    columns = {"grade": words("123456"), **TABLE}
    assert guess(frame(**columns), "grade", None).fitted.kind == "classes"
    assert guess(frame(**columns), "grade", "regression").fitted.kind == "values"
    assert guess(frame(**columns), "height", None).fitted.kind == "values"


def test_labels_are_told_from_classes():
    tags = words(["biz", "biz;long", "tech", "tech;long", "long"])
    found = guess(frame(text=texts(), tags=tags), None, None)
    assert (found.target, found.fitted.kind, found.fitted.separator) == ("tags", "labels", ";")
    assert found.fitted.names == ["biz", "long", "tech"]
    assert guess(frame(text=texts(), tags=tags), None, "classification").fitted.kind == "classes"
    assert guess(frame(text=texts(), tags=words("ab")), "tags", "multilabel").fitted.kind == "labels"
    with pytest.raises(ConfigError, match="of columns of 0 and 1"):
        guess(frame(text=texts(), tags=words("ab")), None, "multilabel")


def test_what_is_left_out():
    total = np.arange(N) % 37 + 1.0
    part = np.round(total * 0.25)
    columns = {
        "id": range(1000, 1000 + N), "note": [f"x{i}" for i in range(N)], "same": ["1"] * N,
        "empty": [""] * N,
        "first": part, "second": total - part, "copy": total, "count": total, "height": numbers(),
    }  # fmt: skip
    found = guess(frame(**columns), None, None)
    assert found.target == "count"
    assert set(found.ignore) == {"id", "note", "same", "empty", "first", "second", "copy"}
    assert f"{N} different values in {N} rows" in found.ignore["id"]
    assert "first + second = count" in found.ignore["second"]


def test_columns_that_never_stand_in_one_row_do_not_give_the_answer_away():
    old, new = ([n if row % 2 == odd else "" for row, n in enumerate(numbers())] for odd in (0, 1))
    found = guess(frame(old=old, new=new, width=numbers(), price=numbers()), None, None)
    assert found.target == "price"
    assert found.ignore == {}


def test_words_that_mean_missing():
    ages = [*numbers(N - 20), *["unknown"] * 20]
    found = guess(frame(age=ages, label=words("ab")), None, None)
    assert (found.markers, found.ignore) == (["unknown"], {})
    assert "'unknown' among 180 numbers" in found.why["markers"]


def test_splits():
    days = [f"2024-01-{1 + i // 8:02d} 10:00:00" for i in range(N)]
    in_time = guess(frame(day=days, label=words("ab"), **TABLE), None, None)
    assert (in_time.split["by"], in_time.split["on"]) == ("time", "day")
    shuffled = guess(frame(day=days[::3] + days[1::3] + days[2::3], label=words("ab"), **TABLE), None, None)
    assert shuffled.split["by"] == "stratified"
    users = guess(frame(user_id=words([str(i) for i in range(40)]), label=words("ab"), **TABLE), None, None)
    assert (users.split["by"], users.split["on"]) == ("grouped", "user_id")
    assert "user_id" in users.ignore
    uneven = guess(frame(label=["a"] * 150 + ["b"] * 50, **TABLE), None, None)
    assert "50 to 150 rows" in uneven.why["split"]
    assert guess(frame(price=numbers(), **TABLE), None, None).split["by"] == "random"


def test_texts():
    found = guess(
        frame(title=[f"a title of {i}" for i in range(N)], body=texts(), label=words("ab")), None, None
    )
    assert found.texts == ["title", "body"]
    tagged = guess(frame(body=[text + "<br />" for text in texts()], label=words("ab")), None, None)
    assert tagged.clean[0][0] == {"step": "normalize", "columns": ["body"], "strip_tags": True}
    copies = guess(frame(body=texts(N // 2) * 2, label=words("ab")), None, None)
    assert "drop_duplicates" in str(copies.clean)
    alone = guess(frame(body=texts(), day=["2024-01-01"] * N), None, None)
    assert (alone.target, alone.texts) == (None, ["body"])
    several = guess(frame(story=texts(), noun=words("ab"), verb=words("cd")), None, None)
    assert several.texts == ["story"]
    assert "--target" in several.why["text"]


def test_short_texts_are_read_where_nothing_else_is_left():
    titles = [f"oil price number {i}" for i in range(N)]
    alone = guess(frame(id=range(N), code=[f"k {i}" for i in range(N)], title=titles, topic=words("abc")),
                  None, None)  # fmt: skip
    assert (alone.target, alone.texts) == ("topic", ["title"])
    assert set(alone.ignore) == {"id", "code"}
    assert "only column left" in alone.why["text"]
    beside = guess(frame(title=titles, size=numbers(), topic=words("abc")), "topic", None)
    assert (beside.texts, set(beside.ignore)) == ([], {"title"})
    with pytest.raises(ConfigError, match=r"left to predict topic from \(code: names.*text, text: code}"):
        guess(frame(code=[f"k{i}" for i in range(N)], topic=words("abc")), "topic", None)
    with pytest.raises(
        ConfigError, match=r"left to predict topic from \(same: the same value in every row\)$"
    ):
        guess(frame(same="a" * N, topic=words("abc")), "topic", None)


def test_lengths_of_texts():
    english = lengths(frame(a=["one two three"] * 10), ["a"])
    assert (english["words"], english["letters"], english["chinese"]) == (3, 13, 0)
    chinese = lengths(frame(a=["秦川雄帝宅，函谷壯皇居。"] * 10), ["a"])
    assert chinese["words"] == 10 + 1
    assert chinese["chinese"] > 0.8


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages"),
        ({"instruction": "do", "input": "", "output": "done"}, "alpaca"),
        ({"question": "how much is one and one", "answer": "two"}, "prompt"),
    ],
)
def test_conversations(row, form):
    cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
    found = guess(pd.DataFrame([cells] * 20, dtype=object), None, None, form="jsonl")
    assert found.chat.form == form
    assert guess(pd.DataFrame([{"question": "", "answer": ""}] * 20 + [cells], dtype=object).assign(
        y=words("ab", 21)), "y", None).chat is None  # fmt: skip


def test_classes_that_the_test_file_spells_otherwise():
    found = guess(frame(income=words(["<=50K", ">50K"]), **TABLE), None, None)
    other_spellings(found, frame(income=words(["<=50K.", ">50K."]), **TABLE))
    assert found.clean[-1][0]["mapping"] == {"<=50K.": "<=50K", ">50K.": ">50K"}
