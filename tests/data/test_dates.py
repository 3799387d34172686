"""Dates in the orders of different countries: which order fits, and what they are as ISO text."""

import pytest

from llmtool.data.dates import advice, is_local, iso, orders_of

DAYS, MONTHS = "day/month/year", "month/day/year"


@pytest.mark.parametrize(
    ("word", "order", "expected"),
    [
        ("17/3/2021", DAYS, "2021-03-17"),
        ("3/17/2021", MONTHS, "2021-03-17"),
        ("03-04-2021 9:05", DAYS, "2021-04-03T09:05"),
        ("17.3.2021", MONTHS, "2021-03-17"),  # full stops: the day is first everywhere
        ("2021-03-17", DAYS, "2021-03-17"),
        ("17/3/2021", "iso", "17/3/2021"),
        ("17/3/21", DAYS, "17/3/21"),
        ("1/2.2021", DAYS, "1/2.2021"),
    ],
)
def test_as_iso_text(word, order, expected):
    assert iso(word, order) == expected


@pytest.mark.parametrize(
    ("words", "orders"),
    [
        (["1/2/2021", "17/3/2021"], [DAYS]),
        (["1/2/2021", "3/17/2021"], [MONTHS]),
        (["1/2/2021", "3/12/2021"], [DAYS, MONTHS]),
        (["1.2.2021"], [DAYS]),
        (["17/3/2021", "3/17/2021"], []),
        (["2021-03-17", "1/2/2021"], []),
        ([], []),
    ],
)
def test_orders_that_fit(words, orders):
    assert orders_of(words) == orders


def test_what_a_column_of_them_needs():
    assert is_local(["17/3/2021", "1/2/2021"])
    assert not is_local(["17/3/2021", "red"])
    assert not is_local([])
    assert "columns: {when: date}, dates: month/day/year} of data.clean" in advice("when", "3/17/2021")
