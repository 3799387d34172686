"""What is said of two keys that differ, and hashes of files that are at rest."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmtool.core import files
from llmtool.core.errors import LlmtoolError
from llmtool.core.freshness import FORMS, Hashes, compare
from llmtool.experiment import Experiment

OLD_TIME = 1_700_000_000


def config(before: Any, now: Any) -> list[str]:
    return compare({"config": before}, {"config": now})


def test_values_are_told_apart_and_shown_as_a_config_writes_them() -> None:
    same = {"config": {"a": 1}, "code": "1+a"}
    assert compare(same, {"config": {"a": 1}, "code": "1+a"}) == []
    assert compare(same, {"config": {"a": True}, "code": "1+a"}) == ["a: 1 -> true"]
    assert compare(same, {"config": {"a": "1"}, "code": "1+a"}) == ['a: 1 -> "1"']
    assert compare(same, {"config": {"a": 1}, "code": "1+b"}) == ["llmtool's code changed (1+a -> 1+b)"]
    assert compare(same, {**same, "machine": "x"}) == ["machine: (not set) -> x"]
    assert config({"a": [1]}, {"a": [True]}) == ["a: [1] -> [true]"]
    assert config({"a": {}}, {"a": {"b": 1}}) == ["a.b: (not set) -> 1"]
    assert config({"a": None}, {"a": {"metric": "f1", "mode": "max"}}) == [
        "a: null -> {metric: f1, mode: max}"
    ]
    assert config({"a": "", "b": "null"}, {"a": " x", "b": None}) == ['a: "" -> " x"', 'b: "null" -> null']


def test_inputs_are_named() -> None:
    before = {"inputs": {"a.csv": "1", "b.csv": "2"}}
    assert compare(before, {"inputs": {"a.csv": "9", "c.csv": "3"}}) == [
        "a.csv: contents changed",
        "c.csv: new",
        "b.csv: not read any more",
    ]


def test_of_a_list_of_sections_only_what_differs_is_said() -> None:
    steps: list[dict[str, Any]] = [
        {"step": "require", "columns": ["a"]},
        {"step": "drop_duplicates", "columns": None},
    ]
    other = [steps[0], {"step": "drop_duplicates", "columns": ["a", "b"]}]
    assert config({"clean": steps}, {"clean": other}) == ["clean.1.columns: null -> [a, b]"]
    step = {"step": "length", "column": "a"}
    assert config({"clean": steps}, {"clean": [step, *steps]}) == [
        "clean.0: (not set) -> {step: length, column: a}"
    ]
    assert config({"clean": [step, *steps]}, {"clean": steps}) == [
        "clean.0: {step: length, column: a} -> (not set)"
    ]
    assert config({"clean": steps}, {"clean": steps[::-1]}) != []


def test_a_section_of_another_form_is_one_line_and_what_both_forms_have() -> None:
    adamw = {"lr": 0.1, "name": "adamw", "betas": [0.9, 0.99], "epsilon": 1e-8, "weight_decay": 0.01}
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    assert config({"optimizer": adamw}, {"optimizer": sgd}) == [
        "optimizer.name: adamw -> sgd",
        "optimizer.weight_decay: 0.01 -> 0.0",
    ]
    # what a person names freely is no form: every entry counts
    assert config({"require": {"test.f1": ">=0.8"}}, {"require": {"test.f1": ">=0.9", "test.r2": ">0"}}) == [
        "require.test.f1: >=0.8 -> >=0.9",
        "require.test.r2: (not set) -> >0",
    ]


def test_the_forms_are_those_of_the_language() -> None:
    """Every key that tells the members of a union apart, found in the schema."""
    found = set()

    def look(part: Any) -> None:
        if isinstance(part, dict):
            found.update([part["discriminator"]["propertyName"]] if "discriminator" in part else [])
            part = list(part.values())
        for item in part if isinstance(part, list) else []:
            look(item)

    look(Experiment.model_json_schema(by_alias=True))
    assert found == set(FORMS)


def test_long_values_show_where_they_part() -> None:
    path = "runs/" + "very_" * 20
    [line] = config({"start": path + "old"}, {"start": path + "new"})
    assert line == "start: ...very_very_very_old -> ...very_very_very_new"
    [line] = config({"a": "x"}, {"a": "y" * 500})
    assert len(line) < 80
    names = [f"column_{number}" for number in range(20)]
    [line] = config({"header": names}, {"header": ["age", *names[1:]]})
    assert line == "header: 20 items -> without [column_0], with [age]"
    [line] = config({"header": names}, {"header": names[::-1]})
    assert line == "header: 20 items -> 20 in another order or number"


# --- hashes -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file at rest for years. Its ctime is now, so the tests' clock runs ahead."""
    path = tmp_path / "a.csv"
    path.write_text("one")
    os.utime(path, (OLD_TIME, OLD_TIME))
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are really hashed, as they come."""
    real, found = files.hash_file, []

    def hash_file(path: Path) -> str:
        found.append(path)
        return real(path)

    monkeypatch.setattr(files, "hash_file", hash_file)
    return found


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)


def test_a_file_at_rest_is_hashed_once(file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 60)
    first = Hashes()
    expected = first.hash(file)
    assert Hashes(first.seen).hash(file) == expected
    assert read == [file]
    assert Hashes({"a.csv": "no stamp", str(file): {}}).hash(file) == expected  # a record of nonsense
    with pytest.raises(LlmtoolError, match=r"none\.csv: no such file"):
        first.hash(file.parent / "none.csv")


@pytest.mark.parametrize("how", ["size", "touched", "time put back", "replaced"])
def test_a_file_that_was_touched_is_hashed_again(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    later(monkeypatch, 60)
    first = Hashes()
    first.hash(file)
    if how == "replaced":  # by one of the same size and time
        (file.parent / "b").write_text("two")
        os.utime(file.parent / "b", (OLD_TIME, OLD_TIME))
        os.replace(file.parent / "b", file)
    else:
        file.write_text({"size": "four", "touched": "one", "time put back": "two"}[how])
        if how == "time put back":  # of the same size: only ctime tells, which nobody can set
            os.utime(file, (OLD_TIME, OLD_TIME))
    assert Hashes(first.seen).hash(file) == files.hash_bytes(file.read_bytes())
    assert len(read) == 2


def test_a_file_changed_just_now_is_not_trusted(file: Path, read: list[Path]) -> None:
    """Within the clock's grain a second write may leave the same times: such a file is read every time."""
    first = Hashes()
    first.hash(file)
    first.hash(file)
    assert read == [file]  # in this process, once
    assert first.seen == {}
    Hashes(first.seen).hash(file)
    assert len(read) == 2


def test_what_we_wrote_ourselves_is_known(file: Path, read: list[Path]) -> None:
    first = Hashes()
    first.written(file, "xxh3:1")
    assert Hashes(first.seen).hash(file) == first.hash(file) == "xxh3:1"
    assert read == []
