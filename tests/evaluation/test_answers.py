"""The answers to suites on disk, beside another run's, in requirements and on a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtool.evaluation import answers
from llmtool.evaluation.requirements import check
from llmtool.metrics.suites import SuiteTally


def tally(right: str, nats: float = 1.0) -> SuiteTally:
    return SuiteTally(
        "last_word", [{"right": sign == "+", "nats": nats + at / 9} for at, sign in enumerate(right)]
    )


def said(found: SuiteTally, **more: Any) -> dict[str, Any]:
    about = {"settings": {"limit": None}, "files": {"a.jsonl": "xxh3:1"}, "cut": 0, "answers": "x"}
    return {**answers.judged(found, 0), **about, **more}


FIRST, SECOND = tally("++--+-++-+" * 4), tally("-+---+-+-+" * 4, 2.0)


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = SuiteTally(
        "last_word", [{"right": True, "nats": 0.1 + 0.2, "word": "é\u2028\n"}, *SECOND.records]
    )
    hash_ = answers.write(tmp_path, "a", found)
    report = {"a": said(found, answers=hash_)}
    assert answers.saved(tmp_path, report)["a"].records == found.records
    path = answers.place(tmp_path, "a")
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(ValueError, match=r"a\.jsonl is not the file that was written"):
        answers.saved(tmp_path, report)


def test_two_runs_are_compared_question_by_question() -> None:
    report = {"a": said(FIRST)}
    compared = lambda there: answers.compared(report, {"a": FIRST}, there, {"a": SECOND}, "runs/o", 0)["a"]  # noqa: E731
    found = compared({"a": said(SECOND)})
    accuracy = found["figures"]["accuracy"]
    assert (accuracy["here"], accuracy["there"]) == (0.6, pytest.approx(0.4))
    assert accuracy["difference"] == pytest.approx(0.2)
    assert accuracy["interval"][0] < 0.2 < accuracy["interval"][1]
    assert accuracy["p"] == pytest.approx(0.0490, abs=1e-3)  # 12 against 4 questions: mid-p
    assert "better by" in found["figures"]["perplexity"]["says"]
    for there, why in (
        ({"a": said(SECOND, settings={"limit": 3})}, "was asked otherwise"),
        ({"a": said(SECOND, files={"b.jsonl": "xxh3:2"})}, "was asked other questions"),
    ):
        assert compared(there) == {"with": "runs/o", "figures": {}, "says": f"not compared: runs/o {why}"}
    alone = answers.compared(report, {"a": FIRST}, {}, {}, "runs/o", 0)["a"]
    assert alone["says"] == "not compared: runs/o did not answer it"


def test_requirements_on_suites_bounds_and_changes() -> None:
    compared = answers.compared({"a": said(FIRST)}, {"a": FIRST}, {"a": said(SECOND)}, {"a": SECOND}, "o", 0)
    figures, reasons = answers.required({"a": said(FIRST, comparison=compared["a"]), "b": said(SECOND)})
    wanted = {
        "suites.a.accuracy": ">=0.6",
        "suites.a.accuracy.low": ">=0.3",
        "suites.a.accuracy.change": ">=0.3",
        "suites.a.perplexity.change.high": "<0",
        "suites.b.accuracy.change": ">0",
        "suites.c.accuracy": ">0",
    }
    found = check(wanted, figures, reasons)
    assert [one.met for one in found] == [True, True, False, True, False, False]
    assert str(found[0]) == "suites.a.accuracy is 0.6"
    assert "evaluate.compare names no run" in found[4].reason
    assert "was not scored" in found[5].reason


def test_what_a_person_sees() -> None:
    small = said(tally("++"), cut=3, comparison={"with": "o", "figures": {}, "says": "not compared: why"})
    lines = answers.rows({"a": said(FIRST), "b": small})
    assert [line[:3] for line in lines] == [
        ["a", "accuracy", "0.6000"], ["", "perplexity", "23.73"],
        ["b", "accuracy", "1.0000"], ["", "perplexity", "2.8736"],
    ]  # fmt: skip
    notes = answers.notes({"a": said(FIRST), "b": small})
    assert any("3 texts were longer than the model's context" in note for note in notes)
    assert any("no interval of accuracy, perplexity: 2 units" in note for note in notes)
    assert "b: not compared: why" in notes
    changed = answers.before_after(
        {"a": said(SECOND)}, {"a": said(FIRST)}, {"a": answers.changes(FIRST, SECOND, 0)}
    )
    assert changed[0][:4] == ["a", "accuracy", "0.4000", "0.6000"]
    assert changed[0][4].startswith("better by 20.00 points")
