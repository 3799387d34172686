"""The kinds of suites: what is read from each form of row, what is asked, how answers are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import DataError
from llmtool.evaluation import EvaluateConfig
from llmtool.evaluation.exact_match import ExactMatch, extract_flexible, extract_strict
from llmtool.evaluation.last_word import LastWord
from llmtool.evaluation.multiple_choice import MultipleChoice
from llmtool.evaluation.perplexity import Perplexity, undone
from llmtool.evaluation.suites import SuiteConfig

ADAPTER: TypeAdapter[Any] = TypeAdapter(SuiteConfig)


def suite(directory: Path, rows: list[dict[str, Any]], **keys: Any) -> Any:
    path = directory / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ADAPTER.validate_python({"path": str(path), **keys})


class Fixed:
    """A scorer with given answers."""

    def __init__(self, nats: list[float] | None = None, texts: list[str] | None = None) -> None:
        self.nats, self.texts, self.asked = nats or [], iter(texts or []), []

    def pairs(self, texts: list[tuple[str, str]]) -> list[Any]:
        self.asked += texts
        return texts

    def rolling(self, text: str) -> list[Any]:
        return [([0], list(text[:4])), ([0], list(text[4:]))]

    def likelihoods(self, pairs: list[Any], tick: Any) -> tuple[np.ndarray, np.ndarray]:
        tick(len(pairs))
        values = np.array(self.nats[: len(pairs)])
        return values, values > -1

    def write(self, prompts: list[str], tokens: int, stop: list[str], tick: Any) -> list[str]:
        self.asked += prompts
        return [next(self.texts) for _ in prompts]


HELLASWAG = {
    "activity_label": "Removing ice [header]",
    "ctx_a": "A man  is [step] outside.",
    "ctx_b": "he THEN",
    "endings": [" walks [title] off", "sits."],
    "label": "1",
}
ARC = {"question": "Which?", "choices": {"text": ["x", "yyyy"], "label": ["1", "2"]}, "answerKey": "2"}


def test_multiple_choice_asks_as_the_harness_does(tmp_path: Path) -> None:
    authors = {
        "question": {"stem": "Who?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
        "answerKey": "A",
    }
    plain = [{"question": "Q", "choices": ["no", "yes"], "answer": answer} for answer in (1, "1", "B", "yes")]
    asked = suite(tmp_path, [HELLASWAG, ARC, authors, *plain], kind="multiple_choice").questions()
    assert [one.target for one in asked] == [1, 1, 0, 1, 1, 1, 1]
    assert asked[0].context == "Removing ice : A man is outside. He then"
    assert asked[0].choices == ["walks. off", "sits."]
    assert asked[1].context == "Question: Which?\nAnswer:"
    assert asked[1].choices == ["x", "yyyy"]
    assert asked[2].context == "Question: Who?\nAnswer:"
    text = dict(HELLASWAG, ctx="As it is. He", endings=json.dumps(HELLASWAG["endings"]))
    del text["ctx_a"], text["ctx_b"]
    (other,) = suite(tmp_path, [text], kind="multiple_choice").questions()
    assert other.context == "Removing ice : As it is. He"


def test_multiple_choice_is_judged_whole_and_by_the_character(tmp_path: Path) -> None:
    made: MultipleChoice = suite(tmp_path, [ARC, ARC], kind="multiple_choice", name="arc")
    scorer: Any = Fixed([-2.0, -3.0, -4.0, -1.0])
    ticks: list[int] = []
    tally = made.answers(made.questions(), scorer, ticks.append)
    assert scorer.asked[:2] == [("Question: Which?\nAnswer:", " x"), ("Question: Which?\nAnswer:", " yyyy")]
    assert tally.metrics() == {"accuracy": 0.5, "accuracy_norm": 1.0}
    first = tally.records[0]
    assert (first["choice"], first["choice_norm"], first["target"]) == (0, 1, 1)
    assert (first["question"], first["line"], first["log_likelihoods"]) == (1, 1, [-2.0, -3.0])
    assert sum(ticks) == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"a": 1}, "no question with choices"),
        ({**HELLASWAG, "label": ""}, "'label' is missing: a test set without answers"),
        ({**HELLASWAG, "label": 2}, "the answer is number 2 of 2 choices"),
        ({**HELLASWAG, "endings": "x"}, "`endings` are no list of texts"),
        ({**HELLASWAG, "endings": ["a", ""]}, "a choice is empty"),
        ({**ARC, "answerKey": "C"}, "answerKey 'C' is none of the labels 1, 2"),
        ({**ARC, "question": None}, "`question` is no text"),
        ({**ARC, "choices": ["a"]}, "`choices` has no `text` and `label`"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "maybe"}, "'answer' is no whole number"),
        ({"question": "Q", "choices": ["a", "b"]}, "'answer' is missing"),
        ({"question": "Q", "choices": ["a", "b"], "answer": True}, "'answer' is no whole number"),
    ],
)
def test_rows_that_are_no_multiple_choice(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    made = suite(tmp_path, [ARC, row], kind="multiple_choice")
    with pytest.raises(DataError, match=r"asked\.jsonl:2: ") as error:
        made.questions()
    assert says in str(error.value)
    assert len(made.model_copy(update={"limit": 1}).questions()) == 1  # what is not asked is not read


@pytest.mark.parametrize(
    ("written", "strict", "flexible"),
    [
        ("so 3 + 4 = 7.\n#### 7", "7", "7"),
        ("#### -1,234.50 and more 9", "-1,234.50", "9"),
        ("it costs $12.", "[invalid]", "$12."),
        ("none", "[invalid]", "[invalid]"),
        ("#### x 5", "[invalid]", "5"),
        ("#### 5\n#### 6", "5", "6"),
        ("the answer is -8", "[invalid]", "-8"),
    ],
)
def test_extracting_an_answer(written: str, strict: str, flexible: str) -> None:
    assert (extract_strict(written), extract_flexible(written)) == (strict, flexible)


def test_exact_match_shows_examples_and_ignores_signs(tmp_path: Path) -> None:
    problems = [{"question": f"q{n}", "answer": f"so\n#### 1,00{n}"} for n in range(3)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in problems))
    made: ExactMatch = suite(
        tmp_path, problems[:2], kind="exact_match", shots=1, examples=str(path), tokens=5
    )
    scorer: Any = Fixed(texts=["#### 1000", "it is $1001."])
    tally = made.answers(made.questions(), scorer, lambda count: None)
    assert scorer.asked == [
        "Question: q1\nAnswer: so\n#### 1,001\n\nQuestion: q0\nAnswer:",  # not the problem itself
        "Question: q0\nAnswer: so\n#### 1,000\n\nQuestion: q1\nAnswer:",
    ]
    assert tally.metrics() == {"exact_match": 0.5, "exact_match_flexible": 1.0}
    assert tally.records[1]["answer"] == "1001"
    assert tally.records[1]["text"] == "it is $1001."
    few = made.model_copy(update={"shots": 3})
    with pytest.raises(DataError, match="too few examples beside the problem itself"):
        few.questions()
    with pytest.raises(DataError, match="3 examples, fewer than `shots: 4`"):
        made.model_copy(update={"shots": 4}).questions()
    for wrong in ({"shots": 1}, {"examples": "x"}, {"stop": [""]}, {"name": "a.b"}, {"limit": 0}):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python({"kind": "exact_match", "path": "x", **wrong})


def test_the_last_word(tmp_path: Path) -> None:
    made: LastWord = suite(tmp_path, [{"text": "a b\n\nc d"}, {"text": "alone"}], kind="last_word")
    scorer: Any = Fixed([-0.5, -2.0])
    tally = made.answers(made.questions(), scorer, lambda count: None)
    assert scorer.asked == [("a b\n\nc", " d"), ("", " alone")]
    assert tally.metrics() == pytest.approx({"accuracy": 0.5, "perplexity": np.exp(1.25)})
    for row, says in (
        ({"text": "a b "}, "no last word"),
        ({"txt": "a"}, "no 'text'"),
        ({"text": 3}, "no te"),
    ):
        with pytest.raises(DataError, match=says):
            suite(tmp_path, [row], kind="last_word").questions()


WIKI = " \n = One = \n \n It was 3 @.@ 5 @-@ fold . \n = = Part = = \n More ( a ) \n \n = Two = \n Words \n"


def test_documents_of_perplexity(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(WIKI)
    kinds = {name: Perplexity(kind="perplexity", path=str(path), documents=name)
             for name in ("file", "lines", "wikitext")}  # fmt: skip
    (whole,) = kinds["file"].questions()
    assert (whole.scored, whole.size, whole.line) == (WIKI, len(WIKI), 1)
    assert whole.words == len(WIKI.split()) + 2  # as the harness counts: blanks at both ends are words
    assert [one.line for one in kinds["lines"].questions()] == [2, 4, 5, 6, 8, 9]
    one, two = kinds["wikitext"].questions()
    assert one.scored.startswith(" = One =\n\nIt was 3.5-fold.")
    assert "(a)" in one.scored
    assert "== Part ==" in one.scored
    assert (one.line, two.line) == (2, 8)
    assert one.size + two.size == len(WIKI) - 2  # of the text as it stood
    tally = kinds["wikitext"].answers([one, two], Fixed([-1.0, -2.0, -3.0, -4.0]), lambda n: None)  # type: ignore[arg-type]
    assert [record["nats"] for record in tally.records] == [3.0, 7.0]
    rows = suite(tmp_path, [{"text": "a b"}, {"text": " \n"}, {"text": "c"}], kind="perplexity")
    assert [(one.line, one.words) for one in rows.questions()] == [(1, 2), (3, 1)]
    assert len(rows.model_copy(update={"limit": 1}).questions()) == 1
    path.write_text(" \n")
    with pytest.raises(DataError, match="there is no text in it"):
        kinds["file"].questions()


def test_undoing_wikitext_by_hand() -> None:
    assert undone(' he said " yes " , 1 @,@ 000 N x \'s \n') == ' he said "yes", 1,000 1 x\'s\n'


def test_names_of_suites() -> None:
    named = [
        {"kind": "last_word", "path": "data/lambada test.v2.jsonl.gz"},
        {"kind": "last_word", "path": "b"},
    ]
    config = EvaluateConfig.model_validate({"suites": named, "require": {"suites.b.accuracy": ">0"}})
    assert [one.name for one in config.suites] == ["lambada_test", "b"]
    for wrong, says in (
        ({"suites": [*named, named[0]]}, "two of them are called lambada_test"),
        ({"suites": named, "require": {"suites.c.accuracy": ">0"}}, "there is no suite 'c'"),
        ({"suites": named, "require": {"suites.b": ">0"}}, "suites.name.metric"),
        ({"require": {"suites.b.accuracy": ">0"}}, "there is no suite 'b'"),
    ):
        with pytest.raises(ValidationError, match=says):
            EvaluateConfig.model_validate(wrong)
