"""How well a model predicts texts: perplexity by word and by byte, bits per byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from llmtool.core.errors import DataError
from llmtool.data import readers
from llmtool.data.rows import form_of
from llmtool.evaluation.questions import FileSuite, Tick, numbered, read, text, ticks
from llmtool.evaluation.scorer import Scorer
from llmtool.metrics.suites import SuiteTally

TEXT_LIMIT = 1 << 30  # characters of a text file
HEADING = re.compile(r"^ ?= [^=\n].*[^=\n] = ?$", re.MULTILINE)  # of an article; sections have more signs


@dataclass(frozen=True)
class Document:
    """scored: what the model reads. words, size: of the text as it stood in the file, size in bytes."""

    line: int
    scored: str
    words: int
    size: int


class Perplexity(FileSuite):
    """Every token of each document is predicted once, and its surprise set against words and bytes.

    As lm-evaluation-harness's wikitext: a document longer than the model's context is scored in windows of
    that length that follow each other; each begins from the last token before it alone, but for the last
    window, which reaches back to be as long as the others (its first tokens are context only). Words are what
    stands between blanks.
    """

    kind: Literal["perplexity"] = Field(description="how well texts are predicted")
    path: str = Field(
        min_length=1,
        description="a text file, or rows with the field `text` (.jsonl, .json, .csv, .tsv, .parquet); .gz "
        "and .zst are unpacked",
    )
    documents: Literal["file", "lines", "wikitext"] = Field(
        default="file",
        description="of a text file: it is one document, each line is one, or each article of WikiText, "
        "whose spaced-out punctuation is undone then, of rows too",
    )

    def questions(self) -> list[Document]:
        """The documents; blank ones are none."""
        wiki = self.documents == "wikitext"
        if form_of(Path(self.path)):
            found = read(self.path, self.limit, lambda row, line: _document(text(row, "text"), line, wiki))
        else:
            documents = (_document(part, line, wiki) for line, part in _parts(self.path, self.documents))
            found = [one for one in documents if one is not None][: self.limit]
        if not found:
            raise DataError(f"{self.path}: there is no text in it")
        return found

    def answers(self, questions: list[Document], scorer: Scorer, tick: Tick) -> SuiteTally:
        """Each document scored in windows."""
        windows = [scorer.rolling(one.scored) for one in questions]
        counts = [len(of) for of in windows]
        nats, _ = scorer.likelihoods([pair for of in windows for pair in of], ticks(tick, counts))
        parts = [nats[start:end] for start, end in pairwise(accumulate(counts, initial=0))]
        records = (
            {"line": one.line, "nats": -float(part.sum()), "words": one.words, "bytes": one.size,
             "tokens": sum(len(scored) for _, scored in of)}
            for one, part, of in zip(questions, parts, windows, strict=True)
        )  # fmt: skip
        return SuiteTally(self.kind, numbered(records))


def _document(whole: str, line: int, wiki: bool) -> Document | None:
    if not whole.strip():
        return None
    scored = undone(whole) if wiki else whole
    return Document(line, scored, len(re.split(r"\s+", whole)), len(whole.encode("utf-8")))


def _parts(path: str, form: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each document of a text file."""
    (file,) = readers.expand(path, (".txt",))
    blocks, size = [], 0
    for block in readers.characters(file, "utf-8", strict=True):
        blocks.append(block)
        size += len(block)
        if size > TEXT_LIMIT:
            raise DataError(f"{path}: more than {TEXT_LIMIT:,} characters; give a part of it")
    whole = "".join(blocks)
    if problem := readers.flaw(whole, "utf-8"):
        raise DataError(f"{path}: {problem}")
    if form == "file":
        yield 1, whole
    elif form == "lines":
        yield from enumerate(whole.split("\n"), 1)
    else:
        starts = [0, *(match.start() for match in HEADING.finditer(whole)), len(whole)]
        line = 1
        for start, end in pairwise(starts):
            yield line, whole[start:end]
            line += whole.count("\n", start, end)


def undone(words: str) -> str:
    """WikiText with its tokenisation undone, step by step as lm-evaluation-harness does (its steps that
    cannot apply included, so that figures agree)."""
    words = words.replace("s '", "s'")
    words = re.sub(r"/' [0-9]/", r"/'[0-9]/", words)
    for spaced, joined in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        words = words.replace(spaced, joined)
    for sign in ":;.!?,":
        words = words.replace(f" {sign} ", f"{sign} ")
    words = re.sub(r"\(\s*([^\)]*?)\s*\)", r"(\1)", words)
    words = re.sub(r"\[\s*([^\]]*?)\s*\]", r"[\1]", words)
    words = re.sub(r"{\s*([^}]*?)\s*}", r"{\1}", words)
    words = re.sub(r"\"\s*([^\"]*?)\s*\"", r'"\1"', words)
    words = re.sub(r"'\s*([^']*?)\s*'", r"'\1'", words)
    for spaced, joined in (
        ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
        (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
    ):  # fmt: skip
        words = words.replace(spaced, joined)
    return words
