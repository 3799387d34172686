"""Answers that the model writes out, as in GSM8K: the number it ends with is compared with the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.errors import DataError
from llmtool.evaluation.questions import Chat, FileSuite, Tick, Unusable, as_question, numbered, read, text
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = [re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$")]
NONE = "[invalid]"  # the answer of a text without one


@dataclass(frozen=True)
class Problem:
    """answer: with its reasoning, as it stands in the file."""

    line: int
    question: str
    answer: str


class ExactMatch(FileSuite):
    """Problems (fields `question` and `answer`) that the model solves in writing, by greedy choice.

    As lm-evaluation-harness's gsm8k (https://arxiv.org/abs/2110.14168): the right answer is what follows
    `####`. `exact_match` takes the first number after `####` for the model's, `exact_match_flexible` the last
    number that it wrote; commas, dollar signs and a closing full stop are ignored. Examples are the first
    `shots` of their file, never the problem itself.
    """

    kind: Literal["exact_match"] = Field(description="answers that the model writes out")
    shots: int = Field(default=0, ge=0, le=1000, description="solved examples in front of each problem")
    examples: str | None = Field(default=None, description="the file of solved examples")
    chat: Chat = False
    tokens: int = Field(default=256, gt=0, description="the most tokens of an answer")
    stop: list[str] = Field(
        default=["Question:", "</s>", "<|im_end|>"], description="texts before which an answer ends"
    )

    @model_validator(mode="after")
    def _examples_and_their_number(self) -> Self:
        if (self.examples is None) != (self.shots == 0):
            raise ValueError("`examples` and `shots` go together: a file, and how many of it are shown")
        if "" in self.stop:
            raise ValueError("stop: an empty text stands everywhere")
        return self

    def files(self) -> list[Path]:
        """The problems, and the examples where there are any."""
        return [Path(self.path), *([Path(self.examples)] if self.examples else [])]

    def questions(self) -> list[tuple[Problem, str]]:
        """The problems, and the prompt of each."""
        problems = read(self.path, self.limit, _problem)
        shown = read(self.examples, self.shots + 1, _problem) if self.examples else []
        if len(shown) < self.shots:
            raise DataError(f"{self.examples}: {len(shown)} examples, fewer than `shots: {self.shots}`")
        return [(problem, self._prompt(problem, shown)) for problem in problems]

    def _prompt(self, problem: Problem, shown: list[Problem]) -> str:
        others = [one for one in shown if (one.question, one.answer) != (problem.question, problem.answer)]
        if len(others) < self.shots:
            raise DataError(f"{self.examples}: too few examples beside the problem itself")
        solved = [f"{as_question(one.question)} {one.answer}\n\n" for one in others[: self.shots]]
        return "".join([*solved, as_question(problem.question)])

    def answers(self, questions: list[tuple[Problem, str]], scorer: Scorer, tick: Tick) -> SuiteTally:
        """Each problem answered in writing."""
        written = scorer.write([prompt for _, prompt in questions], self.tokens, self.stop, tick)
        records = (_record(problem, text) for (problem, _), text in zip(questions, written, strict=True))
        return SuiteTally(self.kind, numbered(records))


def _record(problem: Problem, written: str) -> dict[str, Any]:
    strict, flexible = extract_strict(written), extract_flexible(written)
    right = _plain(problem.answer)
    return {
        "line": problem.line,
        "answer": right,
        "right": _plain(strict) == right,
        "right_flexible": _plain(flexible) == right,
        "extracted": strict,
        "extracted_flexible": flexible,
        "text": written,
    }


def extract_strict(written: str) -> str:
    """The first number after `####`."""
    found = STRICT.search(written)
    return found[1].strip() if found else NONE


def extract_flexible(written: str) -> str:
    """The last number."""
    found = FLEXIBLE.findall(written)
    return next(part for part in found[-1] if part).strip() if found else NONE


def _plain(answer: str) -> str:
    for pattern in IGNORED:
        answer = pattern.sub("", answer)
    return answer.lower()


def _problem(row: Mapping[str, Any], line: int) -> Problem:
    answer = text(row, "answer")
    if not answer.strip():
        raise Unusable("'answer' is empty")
    return Problem(line, text(row, "question"), answer)
