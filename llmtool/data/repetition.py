"""A cleaning step that drops documents which repeat themselves, by the rules of Gopher."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from llmtool.core.config import Section
from llmtool.data.cleaning import Applied
from llmtool.data.corpus import Verdict, above, over_texts, words_of
from llmtool.data.quality import lines_of

if TYPE_CHECKING:
    import pandas as pd

_PARAGRAPHS = re.compile(r"\n\s*\n")
TOP, DUPLICATE = range(2, 5), range(5, 11)  # numbers of words
Share = Annotated[float, Field(ge=0, le=1)]


class GopherRepetition(Section):
    """Drop documents that repeat themselves (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1). A
    rule is off where its key is null.

    Shares are of lines, of paragraphs, or of characters (blanks do not count). A duplicate is what has stood
    in the document before; an n-gram is n words, and a character within several of them counts once. In
    scripts without blanks each character is a word.
    """

    step: Literal["gopher_repetition"]
    column: str = Field(default="text", description="a column of text")
    max_duplicate_lines: Share | None = Field(default=0.30, description="share of the lines")
    max_duplicate_paragraphs: Share | None = Field(default=0.30, description="share of the paragraphs")
    max_duplicate_line_characters: Share | None = Field(default=0.20, description="share within such lines")
    max_duplicate_paragraph_characters: Share | None = Field(
        default=0.20, description="share within such paragraphs"
    )
    max_top_ngrams: list[Share] | None = Field(
        default=[0.20, 0.18, 0.16],
        min_length=len(TOP),
        max_length=len(TOP),
        description="share within the most frequent run of 2, 3, 4 words that stands there more than once",
    )
    max_duplicate_ngrams: list[Share] | None = Field(
        default=[0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
        min_length=len(DUPLICATE),
        max_length=len(DUPLICATE),
        description="share within duplicate runs of 5, 6, 7, 8, 9, 10 words",
    )

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for each rule."""
        return over_texts(frame, [self.column], self.step, self._look)

    def _look(self, text: str) -> Verdict:
        broken = next(self._broken(text), None)
        return Verdict(text, None if broken is None else f"{broken[0]} ({self.step}.{broken[1]})")

    def _broken(self, text: str) -> Iterator[tuple[str, str]]:
        """What repeats, and the key, of each rule that the text breaks."""
        for what, parts, share, characters in (
            ("line", lines_of(text), self.max_duplicate_lines, self.max_duplicate_line_characters),
            (
                "paragraph",
                [part for part in map(str.strip, _PARAGRAPHS.split(text)) if part],
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_characters,
            ),
        ):
            found = duplicates(parts)
            if above(found[0], share):
                yield f"too many duplicate {what}s", f"max_duplicate_{what}s"
            if above(found[1], characters):
                yield f"too many characters in duplicate {what}s", f"max_duplicate_{what}_characters"
        if self.max_top_ngrams is None and self.max_duplicate_ngrams is None:
            return
        for n, top, again in ngrams(words_of(text)):
            if n in TOP and self.max_top_ngrams and top > self.max_top_ngrams[n - TOP.start]:
                yield f"the most frequent {n}-gram too often", "max_top_ngrams"
            limits = self.max_duplicate_ngrams
            if n in DUPLICATE and limits and again > limits[n - DUPLICATE.start]:
                yield f"too many duplicate {n}-grams", "max_duplicate_ngrams"


def duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """The share of the parts that have stood there before, and of the characters within them."""
    seen: set[str] = set()
    again = characters = 0
    for part in parts:
        if part in seen:
            again += 1
            characters += len(part)
        seen.add(part)
    return again / max(1, len(parts)), characters / max(1, sum(map(len, parts)))


def ngrams(words: Sequence[str]) -> Iterator[tuple[int, float, float]]:
    """(n, share of the characters within the most frequent n-gram, share within n-grams that have stood there
    before), for n from 2 to 10 as long as any n-gram stands there twice. Linear but for sorting."""
    numbers: dict[str, int] = {}
    codes = np.fromiter(
        (numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words)
    )  # (W,)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    whole = max(1, int(sizes.sum()))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    runs = codes  # (W - n + 1,): the number of the n-gram that begins at each word
    for n in range(TOP.start, DUPLICATE.stop):
        if len(words) < n:
            return
        pairs = runs[:-1] * len(numbers) + codes[n - 1 :]
        _, first, runs, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if (most := counts.max()) < 2:
            return  # no longer run stands there twice either
        often = np.sort(first[counts == most])
        longest = often[
            np.argmax(ends[often + n] - ends[often])
        ]  # of equally frequent ones; the first of these
        repeated = np.ones(len(runs), bool)
        repeated[first] = False
        yield n, _covered(runs == runs[longest], n, sizes) / whole, _covered(repeated, n, sizes) / whole


def _covered(starts: np.ndarray, n: int, sizes: np.ndarray) -> int:
    """Characters of the words within n-grams that begin where `starts` holds."""
    inside = np.zeros(len(sizes), bool)
    for offset in range(n):
        inside[offset : offset + len(starts)] |= starts
    return int(sizes[inside].sum())
