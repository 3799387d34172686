"""Cleaning steps that tell prose from what else stands on web pages, by the rules of Gopher and of C4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmtool.core.config import Section
from llmtool.data.cleaning import Applied
from llmtool.data.corpus import Verdict, above, below, over_texts, words_of
from llmtool.data.writing_systems import is_unspaced

if TYPE_CHECKING:
    import pandas as pd

BULLETS = ("•", "‣", "◦", "▪", "●", "-", "*")
ELLIPSES = ("...", "…")
STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
_LETTER = re.compile(r"[^\W\d_]")
_EDGES = "\"'“”‘’.,;:!?()[]"

GOPHER = {  # key -> what a document is that it sends away
    "min_words": "fewer than {:,} words",
    "max_words": "more than {:,} words",
    "min_mean_word_length": "words shorter than {:g} characters on average",
    "max_mean_word_length": "words longer than {:g} characters on average",
    "max_symbols": "more than {:g} hashes or ellipses a word",
    "max_bullet_lines": "more than {:.0%} of the lines begin with a bullet",
    "max_ellipsis_lines": "more than {:.0%} of the lines end with an ellipsis",
    "min_alphabetic_words": "fewer than {:.0%} of the words hold a letter",
    "min_stop_words": "fewer than {} stop words",
}
C4 = {
    "drop_lorem_ipsum": "lorem ipsum",
    "drop_braces": "a curly bracket",
    "cut_citations": "citation marks cut",
    "end_marks": "lines without an end mark cut",
    "min_line_words": "lines of fewer than {} words cut",
    "cut_javascript": "lines on Javascript cut",
    "cut_policy": "lines on policies cut",
    "min_sentences": "fewer than {} sentences",
}


class GopherQuality(Section):
    """Drop documents that do not look like prose: the quality filter of Gopher (Rae et al. 2021,
    https://arxiv.org/abs/2112.11446, appendix A.1.1). A rule is off where its key is null.

    In scripts without blanks between words each character is one; their mean length is not judged. The stop
    words are English: of another language name its own.
    """

    step: Literal["gopher_quality"]
    column: str = Field(default="text", description="a column of text; a missing one has no words")
    min_words: int | None = Field(default=50, ge=1, description="fewest words of a document")
    max_words: int | None = Field(default=100_000, ge=1, description="most words of a document")
    min_mean_word_length: float | None = Field(
        default=3, ge=0, description="characters of a word, on average"
    )
    max_mean_word_length: float | None = Field(
        default=10, ge=0, description="characters of a word, on average"
    )
    max_symbols: float | None = Field(default=0.1, ge=0, description="hashes a word, and ellipses a word")
    max_bullet_lines: float | None = Field(
        default=0.9, ge=0, le=1, description="share of the lines that begin with a bullet"
    )
    max_ellipsis_lines: float | None = Field(
        default=0.3, ge=0, le=1, description="share of the lines that end with an ellipsis"
    )
    min_alphabetic_words: float | None = Field(
        default=0.8, ge=0, le=1, description="share of the words in which a letter stands"
    )
    min_stop_words: int | None = Field(
        default=2, ge=0, description="how many of the stop words must stand there"
    )
    stop_words: list[str] = Field(default=STOP_WORDS, min_length=1, description="words of any prose")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for each rule."""
        return over_texts(frame, [self.column], self.step, self._look)

    def _look(self, text: str) -> Verdict:
        broken = self._broken(text)
        if broken is None:
            return Verdict(text)
        return Verdict(text, f"{GOPHER[broken].format(getattr(self, broken))} ({self.step}.{broken})")

    def _broken(self, text: str) -> str | None:
        """The key of the first rule that the text breaks."""
        words = words_of(text)
        count = len(words)
        if below(count, self.min_words):
            return "min_words"
        if above(count, self.max_words):
            return "max_words"
        if not words:
            return None
        mean = sum(map(len, words)) / count
        if below(mean, self.min_mean_word_length) and not is_unspaced([text]):
            return "min_mean_word_length"
        if above(mean, self.max_mean_word_length):
            return "max_mean_word_length"
        if above(max(text.count("#"), sum(map(text.count, ELLIPSES))) / count, self.max_symbols):
            return "max_symbols"
        lines = lines_of(text)
        if above(sum(line.startswith(BULLETS) for line in lines) / len(lines), self.max_bullet_lines):
            return "max_bullet_lines"
        if above(sum(line.endswith(ELLIPSES) for line in lines) / len(lines), self.max_ellipsis_lines):
            return "max_ellipsis_lines"
        lettered = sum(word.isalpha() or _LETTER.search(word) is not None for word in words)
        if below(lettered / count, self.min_alphabetic_words):
            return "min_alphabetic_words"
        return None if self._has_stop_words(words) else "min_stop_words"

    def _has_stop_words(self, words: Sequence[str]) -> bool:
        wanted, missing = set(self.stop_words), self.min_stop_words or 0
        for word in words:
            if missing <= 0:
                break
            if (plain := word.lower().strip(_EDGES)) in wanted:
                wanted.discard(plain)
                missing -= 1
        return missing <= 0


def lines_of(text: str) -> list[str]:
    """The lines in which something stands, without the blanks around it."""
    return [line for part in text.split("\n") if (line := part.strip())]


# --- C4 ---------------------------------------------------------------------------------------------------

_CITATION = re.compile(r"\[(?:[0-9]{0,6}|edit|citation needed)\]")
# A run of marks is looked at where it begins only, so that a megabyte of them takes no longer than of words.
_SENTENCE = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+(?!\S)|(?<![。！？])[。！？]++")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class C4Quality(Section):
    """Cut lines that are no sentences, and drop documents of which little is left, as C4 was made (Raffel et
    al. 2020, https://arxiv.org/abs/1910.10683, section 2.2). A rule is off where its key is null or false.

    A sentence ends where its mark does (the paper has NLTK tell sentences). C4's list of obscene words is not
    here; its language and its copies are the matter of other steps.
    """

    step: Literal["c4_quality"]
    column: str = Field(default="text", description="a column of text; a missing one has no sentences")
    end_marks: list[str] | None = Field(
        default=[".", "!", "?", '"', "”"],
        min_length=1,
        description="a line that does not end in one of them is cut; of Chinese name 。 ！ ？ ” too",
    )
    min_line_words: int | None = Field(default=5, ge=1, description="a line of fewer words is cut")
    cut_javascript: bool = Field(default=True, description="cut lines in which the word Javascript stands")
    cut_policy: bool = Field(default=True, description="cut lines on terms of use, privacy and cookies")
    cut_citations: bool = Field(default=True, description="cut marks such as [1], [edit], [citation needed]")
    drop_lorem_ipsum: bool = Field(default=True, description='drop documents in which "lorem ipsum" stands')
    drop_braces: bool = Field(default=True, description="drop documents with a curly bracket: code")
    min_sentences: int | None = Field(default=3, ge=1, description="fewest sentences of what is left")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for each rule that drops; rows changed for each rule that cuts."""
        return over_texts(frame, [self.column], self.step, self._look)

    def _look(self, text: str) -> Verdict:
        if self.drop_lorem_ipsum and "lorem ipsum" in text.lower():
            return Verdict(text, self._said("drop_lorem_ipsum"))
        if self.drop_braces and "{" in text:
            return Verdict(text, self._said("drop_braces"))
        kept: list[str] = []
        cut: dict[str, None] = {}  # keys of rules, in the order in which they found something
        for whole in text.split("\n"):
            line = whole.strip()
            if self.cut_citations and (plain := _CITATION.sub("", line).strip()) != line:
                line = plain
                cut["cut_citations"] = None
            if not line:
                continue
            if (broken := self._broken(line)) is None:
                kept.append(line)
            else:
                cut[broken] = None
        left = "\n".join(kept)
        if below(sum(1 for _ in _SENTENCE.finditer(left)), self.min_sentences):
            return Verdict(text, self._said("min_sentences"))
        return Verdict(left if cut else text, None, tuple(self._said(key) for key in cut))

    def _broken(self, line: str) -> str | None:
        """The key of the first rule that cuts the line."""
        if self.end_marks is not None and not line.endswith(tuple(self.end_marks)):
            return "end_marks"
        if self.min_line_words is not None and len(words_of(line)) < self.min_line_words:
            return "min_line_words"
        plain = line.lower()
        if self.cut_javascript and "javascript" in plain:
            return "cut_javascript"
        if self.cut_policy and any(words in plain for words in _POLICY):
            return "cut_policy"
        return None

    def _said(self, key: str) -> str:
        return f"{C4[key].format(getattr(self, key))} ({self.step}.{key})"
