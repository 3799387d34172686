"""What every evaluation suite shares: its keys, reading its file, and the fields of a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.config import Section
from llmtool.core.errors import DataError
from llmtool.data.rows import refuse, rows
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally

Tick = Callable[[int], None]
Chat = Annotated[
    Literal["auto"] | bool,
    Field(
        description="true: asked as a user's turn through the model's chat template; auto: so where it has "
        "one; false: the plain text, as lm-evaluation-harness asks unless told otherwise"
    ),
]


class Suite(Section):
    """What a language model is asked, and how its answers are judged."""

    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="what the suite is called in results and in `require`; default: the file's name (of "
        "games: the opponent)",
    )

    @property
    def through(self) -> Literal["auto"] | bool:
        """Whether it is asked through the model's chat template; some kinds have the key `chat` for that."""
        return getattr(self, "chat", False)

    def files(self) -> list[Path]:
        """Every file that the suite reads."""
        return []

    def fewer(self, count: int) -> Self:
        """The same suite with at most so many questions."""
        raise NotImplementedError

    def questions(self) -> list[Any]:
        """The questions, in their order."""
        raise NotImplementedError

    def answers(self, questions: list[Any], scorer: Scorer, tick: Tick) -> SuiteTally:
        """What the model makes of the questions; tick: told of questions as they are done."""
        raise NotImplementedError


class FileSuite(Suite):
    """Questions in a local file.

    `questions` gives those of the file, in its order, at most `limit`. DataError for a file that cannot be
    read, for one without questions, and for the first row that is no question of this suite: a suite with
    other questions would have other figures.
    """

    path: str = Field(
        min_length=1,
        description="the file of questions: .jsonl, .json (an array), .csv, .tsv or .parquet; .gz and .zst "
        "are unpacked",
    )
    limit: int | None = Field(
        default=None, gt=0, description="questions taken, from the file's beginning; default: all"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(self.path).name.partition(".")[0])
            object.__setattr__(self, "name", stem or "suite")  # frozen for everybody but the one who makes it
        return self

    def files(self) -> list[Path]:
        """Every file that the suite reads."""
        return [Path(self.path)]

    def fewer(self, count: int) -> Self:
        """The same suite with at most so many questions."""
        return self.model_copy(update={"limit": min(self.limit or count, count)})


class Unusable(Exception):
    """This row is no question of the suite; the argument is the reason."""


def read(path: str, limit: int | None, question: Callable[[Mapping[str, Any], int], Any]) -> list[Any]:
    """`question(row, line)` of the first rows of a file, where it is not None; what it raises as Unusable
    becomes a DataError."""
    found: list[Any] = []
    for line, row in rows(Path(path)):
        if limit is not None and len(found) == limit:
            break
        try:
            one = question(row, line)
        except Unusable as error:
            raise refuse(Path(path), line, str(error)) from None
        if one is not None:
            found.append(one)
    if not found:
        raise DataError(f"{path}: there is no question in it")
    return found


def text(row: Mapping[str, Any], key: str) -> str:
    """The text of a field. Unusable where there is none."""
    if key not in row:
        raise Unusable(f"no {key!r} (its fields: {', '.join(map(str, row)) or 'none'})")
    if not isinstance(row[key], str):
        raise Unusable(f"{key!r} is no text")
    return row[key]


def texts(value: Any, what: str) -> list[str]:
    """A list of texts. Unusable where it is none."""
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise Unusable(f"{what} are no list of texts")
    return value


def ticks(tick: Tick, counts: list[int]) -> Callable[[int], None]:
    """A tick of pairs as one of questions: of n pairs, in any order, each question has counts[i]."""
    left, mean = 0.0, sum(counts) / max(1, len(counts))

    def told(pairs: int) -> None:
        nonlocal left
        left += pairs / mean if mean else 0
        tick(int(left))
        left -= int(left)

    return told


def numbered(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their number in front."""
    return [{"question": number, **record} for number, record in enumerate(records, 1)]


def as_question(text: str) -> str:
    """The prompt that lm-evaluation-harness makes of a question for ARC and GSM8K."""
    return f"Question: {text}\nAnswer:"
