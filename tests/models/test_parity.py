"""Every case of every family in the parity table stays below its limit."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.models.parity import FAMILIES, LIMIT, Pair, pair

pytest.importorskip("transformers")


@cache
def made(number: int) -> Pair:
    return pair(FAMILIES[number], Path(mkdtemp()))


@pytest.mark.parametrize(
    ("number", "case"),
    [
        pytest.param(number, case, id=f"{family.name}: {case}")
        for number, family in enumerate(FAMILIES)
        for case in family.cases
    ],
)
def test_the_same_as_transformers(number, case):
    assert FAMILIES[number].cases[case](made(number)) <= LIMIT
