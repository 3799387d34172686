"""Multiple choice by likelihood, as in HellaSwag and ARC: the choice that the model finds likeliest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmtool.data.rows import nested
from llmtool.evaluation.questions import (
    Chat,
    FileSuite,
    Tick,
    Unusable,
    as_question,
    numbered,
    read,
    text,
    texts,
    ticks,
)
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally


@dataclass(frozen=True)
class Question:
    """context: what stands before a choice and a blank. target: the place of the right choice."""

    line: int
    context: str
    choices: list[str]
    target: int


class MultipleChoice(FileSuite):
    """One of several texts is right; the likeliest after the question is taken for the model's choice.

    Rows are those of HellaSwag (ctx or ctx_a and ctx_b, activity_label, endings, label), of ARC (question,
    choices with text and label, answerKey), or question, choices and answer. Prompts, HellaSwag's cleaning
    and figures are lm-evaluation-harness's: `accuracy` (acc) by the likelihood of the whole choice,
    `accuracy_norm` (acc_norm) by that for each character of it.
    """

    kind: Literal["multiple_choice"] = Field(description="the likeliest of several texts is taken")
    chat: Chat = False

    def questions(self) -> list[Question]:
        """The questions, with the text before their choices."""
        return read(self.path, self.limit, _question)

    def answers(self, questions: list[Question], scorer: Scorer, tick: Tick) -> SuiteTally:
        """Each choice scored after its question."""
        counts = [len(question.choices) for question in questions]
        asked = [(one.context, f" {choice}") for one in questions for choice in one.choices]
        found, _ = scorer.likelihoods(scorer.pairs(asked), ticks(tick, counts))
        parts = [found[start:end] for start, end in pairwise(accumulate(counts, initial=0))]
        return SuiteTally(self.kind, numbered(map(_record, questions, parts)))


def _record(question: Question, found: np.ndarray) -> dict[str, Any]:
    lengths = np.array([len(choice) for choice in question.choices])  # characters, as lm-evaluation-harness
    choice, norm = int(np.argmax(found)), int(np.argmax(found / lengths))
    return {
        "line": question.line,
        "target": question.target,
        "choice": choice,
        "choice_norm": norm,
        "right": choice == question.target,
        "right_norm": norm == question.target,
        "log_likelihoods": [float(value) for value in found],
    }


def _question(row: Mapping[str, Any], line: int) -> Question:
    if "endings" in row:
        context, choices, target = _hellaswag(row)
    elif "answerKey" in row:
        context, choices, target = _arc(row)
    elif "choices" in row:
        context, choices, target = _plain(row)
    else:
        raise Unusable(
            "no question with choices: HellaSwag has `endings`, ARC `choices` and `answerKey`, others "
            f"`question`, `choices` and `answer` (its fields: {', '.join(map(str, row)) or 'none'})"
        )
    if not all(choices):
        raise Unusable("a choice is empty")
    if not 0 <= target < len(choices):
        raise Unusable(f"the answer is number {target} of {len(choices)} choices, counted from 0")
    return Question(line, context, choices, target)


def _hellaswag(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    begun = f"{text(row, 'ctx_a')} {text(row, 'ctx_b').capitalize()}" if "ctx_a" in row else text(row, "ctx")
    endings = texts(nested(row["endings"]), "`endings`")
    return (
        _clean(f"{text(row, 'activity_label')}: {begun}"),
        [_clean(ending) for ending in endings],
        _whole(row.get("label"), "label"),
    )


def _clean(words: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag, as lm-evaluation-harness removes them."""
    words = words.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", words).replace("  ", " ")


def _arc(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """ARC as on the hub, or as its authors gave it out (`question` has `stem` and `choices`)."""
    asked: Any = nested(row.get("question"))
    choices: Any = nested(row.get("choices"))
    if isinstance(asked, dict):
        asked, choices = asked.get("stem"), asked.get("choices")
    if not isinstance(asked, str):
        raise Unusable("`question` is no text")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        listed: list[dict[str, Any]] = choices
        choices = {key: [choice.get(key) for choice in listed] for key in ("text", "label")}
    if not isinstance(choices, dict):
        raise Unusable("`choices` has no `text` and `label`")
    labels = texts(choices.get("label"), "the labels of `choices`")
    words = texts(choices.get("text"), "the texts of `choices`")
    key = row["answerKey"]
    if len(words) != len(labels) or str(key) not in labels:
        raise Unusable(f"answerKey {str(key)[:20]!r} is none of the labels {', '.join(labels)}")
    return as_question(asked), words, labels.index(str(key))


def _plain(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """The answer is a choice's number from 0, its letter from A, or the choice itself."""
    choices = texts(nested(row["choices"]), "`choices`")
    answer = row.get("answer")
    if isinstance(answer, str) and answer in choices:
        target = choices.index(answer)
    elif isinstance(answer, str) and re.fullmatch("[A-Z]", answer):
        target = ord(answer) - ord("A")
    else:
        target = _whole(answer, "answer")
    return as_question(text(row, "question")), choices, target


def _whole(value: Any, key: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    missing = value in (None, "")
    raise Unusable(f"{key!r} is {'missing: a test set without answers?' if missing else 'no whole number'}")
