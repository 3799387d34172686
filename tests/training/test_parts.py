"""Parts of a batch: only what divides it, each smaller than the one before."""

from __future__ import annotations

import pytest

from llmtool.training.parts import divisor, most_that_fits, smaller


def test_parts_divide_the_batch_and_end_at_one() -> None:
    for batch in (1, 7, 60, 64):
        part, found = batch, [batch]
        while (part_ := smaller(batch, part)) is not None:
            part = part_
            found.append(part)
        assert found == [size for size in range(batch, 0, -1) if batch % size == 0]


def test_a_part_that_does_not_divide_gives_one_that_does() -> None:
    assert smaller(20, 16) == 10
    assert smaller(8, 2, least=2) is None
    assert smaller(9, 3, least=2) is None


@pytest.mark.parametrize(("most", "found"), [(0, 1), (1, 1), (7, 6), (12, 12), (100, 24)])
def test_the_largest_part_that_may_be(most: int, found: int) -> None:
    assert divisor(24, most) == found


@pytest.mark.parametrize("limit", range(61))
def test_the_most_that_fits_is_found_by_few_trials(limit: int) -> None:
    tried: list[int] = []
    found = most_that_fits(60, 60, lambda rows: (tried.append(rows), rows <= limit)[1])
    assert found == (divisor(60, limit) if limit else None)
    assert len(tried) <= 4  # of the twelve parts
    assert most_that_fits(60, limit, lambda rows: True, least=2) == (
        divisor(60, limit) if limit > 1 else None
    )
