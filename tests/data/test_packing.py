"""Best fit decreasing: everything is packed once, nothing overflows, the same lengths give the same bins."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmtool.data.packing import best_fit


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_stands_in_one_bin(lengths: list[int]) -> None:
    bins = best_fit(np.array(lengths, np.int64), 64)
    assert sorted(document for bin_ in bins for document in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[document] for document in bin_) <= 64 for bin_ in bins)
    assert bins == best_fit(np.array(lengths, np.int64), 64)
    assert len(bins) <= 11 / 9 * np.ceil(sum(lengths) / 64) * 1.5 + 1
    fullest = sorted(sum(lengths[document] for document in bin_) for bin_ in bins)
    assert len(fullest) < 2 or fullest[0] + fullest[1] > 64  # no two of them would share one


def test_the_fullest_bin_that_fits_is_taken() -> None:
    assert best_fit(np.array([6, 5, 4, 5]), 10) == [[0, 2], [1, 3]]
    assert best_fit(np.array([], np.int64), 10) == []
