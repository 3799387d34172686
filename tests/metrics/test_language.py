"""Language figures: sums that add, and what follows from them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from llmtool.metrics.language import PIECES, LanguageTally


def tally(nats: float, tokens: int, correct: int, size: float | None = None) -> LanguageTally:
    return LanguageTally(torch.tensor(nats), torch.tensor(tokens), torch.tensor(correct), size)


def test_figures_follow_from_the_sums() -> None:
    found = tally(20.0, 10, 4, 25).metrics()
    assert found["loss"] == 2.0
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["token_accuracy"] == 0.4
    assert found["bits_per_byte"] == pytest.approx(20 / math.log(2) / 25)


def test_without_the_length_of_the_text_there_are_no_bits_per_byte() -> None:
    judged = tally(20.0, 10, 4)
    assert "bits_per_byte" not in judged.metrics()
    assert judged.undefined == {"bits_per_byte": "the length of the scored text in bytes is not known"}


def test_uneven_batches_add_as_sums_never_as_means() -> None:
    parts = [tally(1.0, 1, 1, 2), tally(30.0, 10, 0, 20), tally(0.0, 0, 0, 0)]
    for order in ([0, 1, 2], [2, 1, 0]):
        whole = tally(0.0, 0, 0, 0)
        for index in order:
            whole.add(parts[index])
        assert whole.metrics()["loss"] == pytest.approx(31 / 11)
        assert (whole.tokens, whole.correct, whole.bytes) == (11, 1, 22)
    whole.add(tally(1.0, 1, 1))
    assert whole.bytes is None  # a part of unknown length leaves the sum unknown


def test_a_long_sum_of_small_batches_keeps_its_digits() -> None:
    whole = tally(0.0, 0, 0)
    for _ in range(2000):
        whole.add(tally(16384.1, 1, 0))
    assert whole.nats == pytest.approx(2000 * float(torch.tensor(16384.1)), rel=1e-14)


def test_nothing_scored_and_not_finite_and_too_large() -> None:
    assert tally(0.0, 0, 0).metrics() == {}
    assert set(tally(0.0, 0, 0).undefined.values()) == {"no token is scored"}
    assert tally(math.nan, 5, 0).metrics() == {}
    assert set(tally(math.inf, 5, 0).undefined.values()) == {"the model's outputs are not finite"}
    huge = tally(8000.0, 10, 0, 5)
    assert huge.metrics()["loss"] == 800
    assert huge.undefined == {"perplexity": "too large for a number"}
    json.dumps([tally(math.nan, 5, 0).details(), huge.details()], allow_nan=False)


def test_sums_of_many_batches_are_held_in_few_pieces() -> None:
    """Whatever the number of batches; and a unit's pieces come from batches far apart."""
    chance = torch.Generator().manual_seed(0)
    parts = torch.rand(1000, 3, 2, generator=chance, dtype=torch.float64)
    units = torch.randint(0, 7, (1000, 2), generator=chance)
    whole = LanguageTally(*parts[0], units=units[0])
    for part, unit in zip(parts[1:], units[1:], strict=True):
        whole.add(LanguageTally(*part, units=unit))
        assert len(whole._parts) <= PIECES + 1
    expected = torch.zeros(3, 7, dtype=torch.float64)
    expected.index_add_(1, units.flatten(), parts.permute(1, 0, 2).reshape(3, -1))
    torch.testing.assert_close(torch.from_numpy(whole.sums()), expected)
