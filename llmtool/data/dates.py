"""Dates of which the order of day and month is a country's habit: 17/3/2021, 3/17/2021, 17.3.2021."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Literal

Order = Literal["iso", "day/month/year", "month/day/year"]

_LOCAL = re.compile(
    r"([0-9]{1,2})([/.-])([0-9]{1,2})\2([0-9]{4})"
    r"(?:[ T]([0-9]{1,2}):([0-9]{2})(:[0-9]{2}(?:\.[0-9]{1,6})?)?)?"
)
SHARE = 0.99  # of a column's different texts, from which it holds such dates


def iso(word: str, order: Order) -> str:
    """The date as ISO text, of which the day may not exist; what is no date of this order stays."""
    found = None if order == "iso" else _LOCAL.fullmatch(word)
    if found is None:
        return word
    first, sign, second, year, hour, minute, seconds = found.groups()
    day, month = (first, second) if order == "day/month/year" or sign == "." else (second, first)
    time = "" if hour is None else f"T{hour:0>2}:{minute}{seconds or ''}"
    return f"{year}-{month:0>2}-{day:0>2}{time}"


def is_local(words: Iterable[str]) -> bool:
    """Whether the first texts are such dates."""
    first = list(itertools.islice(words, 20))
    return bool(first) and all(map(_LOCAL.fullmatch, first))


def orders_of(words: Iterable[str]) -> list[Order]:
    """In which orders nearly all of a column's different texts can be read; of no dates: none.

    One is left as soon as a day above 12 stands somewhere, or full stops between the parts.
    """
    found = list(map(_LOCAL.fullmatch, words))
    dates = [match for match in found if match is not None]
    if not dates or len(dates) < SHARE * len(found):
        return []
    fits: dict[Order, int] = {
        "day/month/year": sum(int(date[1]) <= 31 and int(date[3]) <= 12 for date in dates),
        "month/day/year": sum(int(date[1]) <= 12 and int(date[3]) <= 31 and date[2] != "." for date in dates),
    }
    whole: list[Order] = [order for order, count in fits.items() if count == len(dates)]
    return whole or [order for order, count in fits.items() if count >= SHARE * len(found)]


def advice(column: str, word: str) -> str:
    """What to do where a column of such dates is read as ISO dates."""
    order = " or ".join(orders_of([word])) or "day/month/year"
    return (
        f"the step {{step: types, columns: {{{column}: date}}, dates: {order}}} of data.clean reads dates "
        f"such as {word!r}; without it ISO dates (2021-03-17) are read"
    )
