"""The words of labelled texts, or their characters, as classical baselines count them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmtool.data.decoding import texts_of
from llmtool.data.store import Dataset
from llmtool.data.tokenizers import UNKNOWN
from llmtool.data.writing_systems import is_unspaced

WORDS = 100_000  # words and pairs of them, the most frequent
TEXT_TOKENS = 10_000_000  # tokens of texts that words are learned from
EACH_WORD = "on the share of each word and pair of words, rare ones weighing more"
CHARACTERS = "on the share of each character and pair of them, rare ones weighing more"
WORD = r"(?u)\b\w+\b"  # scikit-learn's own pattern leaves out words of one letter: grades, digits, "I"
LOOKED_AT = 200  # texts by which it is seen whether blanks part their words


def looks_at(dataset: Dataset) -> str:
    """Words, or the characters of texts in which no blanks part the words, as in Chinese."""
    rows = np.arange(min(LOOKED_AT, dataset.split("train").rows))
    return CHARACTERS if is_unspaced(texts_of_split(dataset, "train", rows)) else EACH_WORD


def _without_blanks(text: str) -> str:
    """Characters that tokens' blanks part, side by side again."""
    return "".join(text.lower().split())


def most_texts(dataset: Dataset) -> int:
    """How many training texts words are learned from."""
    train = dataset.split("train")
    return max(1000, train.rows * TEXT_TOKENS // max(1, len(train.arrays["tokens"])))


def words_of(dataset: Dataset, rows: np.ndarray | None) -> tuple[Any, Any]:
    """What finds the words of texts, and those of the training texts at `rows`, of all when None."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    how: dict[str, Any] = {"token_pattern": WORD}
    if looks_at(dataset) == CHARACTERS:
        how = {"analyzer": "char", "preprocessor": _without_blanks}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=WORDS, **how)
    return words, words.fit_transform(texts_of_split(dataset, "train", rows))


def texts_of_split(dataset: Dataset, split: str, rows: np.ndarray | None = None) -> list[str]:
    """The texts as the model sees them: as far as they were kept, as their tokens spell them."""
    rows = np.arange(dataset.split(split).rows) if rows is None else rows
    return [text.replace(UNKNOWN, " ") for text in texts_of(dataset, split, rows, around=False)]
