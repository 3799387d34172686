"""Columns whose cells are lists of labels, such as `world,long`: how they are told from plain classes."""

from __future__ import annotations

from collections import Counter

from llmtool.data.header import is_number
from llmtool.data.statistics import ColumnStatistics
from llmtool.data.targets import labels_in

SEPARATORS = (",", ";", "|")
MOST = 200  # different labels; more are no guess
LONG = 4  # words of a label, at most
SEVERAL = 0.1  # share of the rows that have more than one
SHARED = 0.8  # share of the labels that stand in more than one of the different lists


def separator_of(found: ColumnStatistics, asked: bool = False) -> str | None:
    """What parts the labels in the cells of a column; None where they are no lists of few different words.

    Lists differ in length and are made of the same labels again and again: of class names with a comma in
    them (`home, garden`; `Bern, CH`) most parts stand in one name only, and there are more parts than names.
    asked: the user says that there are labels.
    """
    if found.overflow or found.kind() != "category":
        return None
    return next((separator for separator in SEPARATORS if _joins(found, separator, asked)), None)


def _joins(found: ColumnStatistics, separator: str, asked: bool) -> bool:
    lists = {word: labels_in(word, separator) or [] for word in found.words}
    lengths = {len(labels) for labels in lists.values()}
    several = sum(found.words[word] for word, labels in lists.items() if len(labels) > 1)
    if 0 in lengths or several < SEVERAL * found.rows:
        return False
    stands_in = Counter(label for labels in lists.values() for label in labels)
    if not 2 <= len(stands_in) <= MOST or any(len(label.split()) > LONG for label in stands_in):
        return False
    if asked:
        return True
    shared = sum(count > 1 for count in stands_in.values())
    again = len(stands_in) < len(lists) and shared >= SHARED * len(stands_in)
    return again and len(lengths) > 1 and not any(map(is_number, stands_in))
