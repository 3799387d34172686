"""The last word of a passage, as in LAMBADA: is it what the model would write, and how likely is it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from llmtool.evaluation.questions import FileSuite, Tick, Unusable, numbered, read, text
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally


@dataclass(frozen=True)
class Passage:
    """word: the last one, without the blank before it."""

    line: int
    before: str
    word: str


class LastWord(FileSuite):
    """The last word of each passage (field `text`), given all before it (https://arxiv.org/abs/1606.06031).

    As lm-evaluation-harness's lambada_openai: words are split at blanks; `accuracy` is the share of passages
    whose last word's tokens are each the model's first choice, `perplexity` e to the mean surprise of a word.
    """

    kind: Literal["last_word"] = Field(description="the last word of passages")

    def questions(self) -> list[Passage]:
        """The passages, cut before their last word."""
        return read(self.path, self.limit, _passage)

    def answers(self, questions: list[Passage], scorer: Scorer, tick: Tick) -> SuiteTally:
        """Each last word scored after its passage."""
        asked = [(one.before, f" {one.word}") for one in questions]
        found, first = scorer.likelihoods(scorer.pairs(asked), tick)
        records = (
            {"line": one.line, "word": one.word, "right": bool(hit), "nats": -float(value)}
            for one, value, hit in zip(questions, found, first, strict=True)
        )
        return SuiteTally(self.kind, numbered(records))


def _passage(row: Mapping[str, Any], line: int) -> Passage:
    before, _, word = text(row, "text").rpartition(" ")
    if not word:
        raise Unusable("the text is empty or ends in a blank: it has no last word")
    return Passage(line, before, word)
