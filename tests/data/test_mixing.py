"""The mixed order: exact shares in every stretch, each part in epochs of its own, by its number alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.batches import FeatureBatches, TextBatches, TokenBatches, part_of_units
from llmtool.data.mixing import MixedBatches, MixedOrder, counts_of, joined, parts_of, refuse_other_parts
from llmtool.data.packing import ChatBatches
from llmtool.data.store import Split
from llmtool.stages import by_part

WEIGHTS = st.lists(st.sampled_from([0, 0.1, 0.3, 0.7, 1, 2, 9.5, 1 / 3]), min_size=2, max_size=5).filter(any)


# --- the order ---


@given(WEIGHTS, st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_stretch_has_each_parts_share(weights: list[float], start: int, count: int, seed: int) -> None:
    parts, before = MixedOrder(weights, seed).rows(start, count)
    shares = np.array(weights) / sum(weights)
    counts = np.bincount(parts, minlength=len(weights))
    assert counts.sum() == count
    assert (np.abs(counts - shares * count) <= 2 * len(weights) + 2).all()
    assert (np.abs(before - shares * start) <= len(weights) + 2).all()
    assert not counts[shares == 0].any()


def test_whole_blocks_hold_exact_shares_for_ever() -> None:
    order = MixedOrder([0.7, 0.3], 5)
    for blocks in (1, 10, 10**9):  # a billion blocks are a million million rows
        assert order.seen(blocks * order.block * 10).tolist() == [
            blocks * order.block * 7,
            blocks * order.block * 3,
        ]
    thirds = MixedOrder([1, 1, 1], 5)
    assert (np.abs(thirds.seen(10**12) - 10**12 / 3) <= 1).all()


def test_a_part_of_little_weight_has_its_row_in_a_longer_block() -> None:
    order = MixedOrder([1, 1e-5], 0)
    assert order.block > 100_000
    assert order.seen(10 * 100_001).tolist() == [10 * 100_000, 10]


@given(WEIGHTS, st.integers(0, 4000), st.lists(st.integers(0, 700), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_order_is_a_pure_function_of_the_rows_number(
    weights: list[float], start: int, cuts: list[int]
) -> None:
    parts, before = MixedOrder(weights, 3).rows(start, sum(cuts))
    found, at = [], start
    for cut in cuts:
        other, earlier = MixedOrder(weights, 3).rows(at, cut)
        expected = before + np.bincount(parts[: at - start], minlength=len(weights))
        assert earlier.tolist() == expected.tolist()
        found.append(other)
        at += cut
    assert np.concatenate(found).tolist() == parts.tolist()


def test_seeds_differ_and_parts_do_not_take_turns_like_clockwork() -> None:
    one, other = (MixedOrder([1, 1], seed).rows(0, 1000)[0] for seed in (0, 1))
    assert one.tolist() != other.tolist()
    assert 100 < int((one[1:] == one[:-1]).sum()) < 900


# --- batches ---


def stream(lengths: dict[str, list[int]]) -> Split:
    """Token i of the stream is i; documents of each part, one part after the other."""
    ends = np.cumsum([length for part in lengths.values() for length in part]).astype(np.int64)
    origin = np.stack([np.zeros(len(ends), np.int64), np.arange(len(ends)) + 1], axis=1)
    arrays = {"tokens": np.arange(int(ends[-1])).astype(np.uint16), "documents": ends, "origin": origin}
    meta = {"parts": {name: {"rows": len(part)} for name, part in lengths.items()}}
    return Split("train", len(ends), arrays, meta, ["a.txt"])


def mixed(split: Split, make: Any, weights: dict[str, float], seed: int = 0) -> MixedBatches:
    parts = {name: make(part, seed + at + 1) for at, (name, part) in enumerate(parts_of(split).items())}
    return MixedBatches(parts, weights, seed, make(split, seed))


def windows(split: Split, seed: int) -> TokenBatches:
    return TokenBatches(split, 8, seed, packed=True)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.inputs, other.inputs), (one.targets, other.targets), (one.segments, other.segments)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def test_each_part_goes_through_epochs_of_its_own() -> None:
    split = stream({"web": [40] * 20, "code": [30] * 5})  # 800 and 150 tokens
    batches = mixed(split, windows, {"web": 0.25, "code": 0.75})
    web, code = (TokenBatches(part, 8, 0).rows for part in parts_of(split).values())
    assert batches.rows == web + code
    rows = batches.batch(0, 400)
    first = rows.inputs[:, 0]
    assert int((first < 800).sum()) == 100  # 0.25 of them, whatever the parts' sizes
    assert batches.seen(400) == {"web": 100 / web, "code": 300 / code}
    # a part's rows are those of its own order, one after the other, epoch after epoch
    alone = windows(parts_of(split)["code"], 2)
    expected = alone.batch(0, 300)
    assert torch.equal(rows.inputs[first >= 800], expected.inputs)
    assert torch.equal(rows.targets[first >= 800], expected.targets)


@given(st.integers(0, 300), st.lists(st.integers(1, 40), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_micro_batch_and_any_rank_sees_the_same_rows(start: int, sizes: list[int]) -> None:
    split = stream({"web": [40] * 20, "code": [30] * 5, "books": [200]})
    weights = {"web": 2, "code": 1, "books": 1}
    whole = mixed(split, windows, weights).batch(start, sum(sizes))
    at, parts = start + sum(sizes), []
    for size in reversed(sizes):  # in any order, each by batches of its own, as ranks have them
        at -= size
        parts.insert(0, mixed(split, windows, weights).batch(at, size))
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert whole.segments is not None
    assert torch.equal(
        torch.cat([part.segments for part in parts if part.segments is not None]), whole.segments
    )


def test_no_row_holds_tokens_of_two_parts_and_every_row_is_named() -> None:
    split = stream({"web": [40] * 20, "code": [30] * 5})
    batches = mixed(split, windows, {"web": 1, "code": 1})
    rows = batches.batch(0, 200).inputs
    assert ((rows < 800).all(dim=1) | (rows >= 800).all(dim=1)).all()
    names = batches.where(0, 200)
    for row, name in zip(rows, names, strict=True):
        part, begins = ("web", 0) if row[0] < 800 else ("code", 800)
        begin = int(row[0]) - begins
        assert name.startswith(f"tokens {begin}..{begin + 8} of train, part {part} (document ")


def test_a_part_of_weight_0_is_never_drawn_and_needs_no_rows() -> None:
    split = stream({"web": [40] * 20, "code": [3]})
    batches = mixed(split, windows, {"web": 1, "code": 0})
    assert (batches.batch(0, 300).inputs < 800).all()
    assert batches.seen(300)["code"] == 0
    assert batches.rows == TokenBatches(parts_of(split)["web"], 8, 0).rows
    with pytest.raises(DataError, match="the part code has no rows"):
        mixed(split, windows, {"web": 1, "code": 1})


def test_every_row_once_reads_the_split_as_it_stands() -> None:
    split = stream({"web": [40] * 20, "code": [30] * 5})
    found = list(mixed(split, windows, {"web": 1, "code": 9}).in_order(3))
    expected = list(TokenBatches(split, 8, 0).in_order(3))
    assert len(found) == len(expected)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_tables_and_labelled_texts_by_the_same_mechanism() -> None:
    count = 30
    arrays = {
        "inputs": np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        "targets": np.arange(count),
        "origin": np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1),
    }
    parts = {"parts": {"a": {"rows": 24}, "b": {"rows": 6}}}
    batches = mixed(Split("train", count, arrays, parts, ["a.csv"]), FeatureBatches, {"a": 1, "b": 1})
    targets = batches.batch(0, 2048).targets
    assert int((targets >= 24).sum()) == 1024
    assert batches.chosen(0, 2048).tolist() == targets.tolist()
    assert sorted(targets[targets < 24][:24].tolist()) == list(range(24))

    lengths = np.random.default_rng(0).integers(1, 9, count)
    tokens = np.repeat(np.arange(count), lengths).astype(np.uint16)
    text = {"tokens": tokens, "documents": np.cumsum(lengths), "targets": np.arange(count)}
    batches = mixed(Split("train", count, text, parts, []), TextBatches, {"a": 3, "b": 1})
    found = batches.batch(0, 400)
    assert found.segments is not None
    assert int((found.targets >= 24).sum()) == 100
    for row, segments, target in zip(found.inputs, found.segments, found.targets.tolist(), strict=True):
        assert row[segments > 0].tolist() == [target] * int(lengths[target])
        assert not row[segments == 0].any()


@pytest.mark.parametrize("packing", [False, True])
def test_conversations_of_parts_of_other_lengths(packing: bool) -> None:
    lengths = {"short": [4] * 12, "long": [20] * 6}
    split = stream(lengths)
    split.arrays["trained"] = np.ones(len(split.arrays["tokens"]), np.uint8)
    batches = mixed(split, lambda part, seed: ChatBatches(part, 24, seed, packing), {"short": 1, "long": 1})
    found = batches.batch(0, 64)
    assert found.inputs.shape == (64, batches.tokens_per_row) == (64, 24 if packing else 19)
    assert (found.segments is not None) == packing
    learned = (found.targets != IGNORE).sum(dim=1)
    assert learned.tolist() == batches.lengths(0, 64)
    assert (found.targets[found.targets != IGNORE] == found.inputs[found.targets != IGNORE] + 1).all()


def test_rows_of_one_width_need_no_padding_and_keep_their_places() -> None:
    ones, twos = (Batch(torch.full((2, 3), n), torch.full((2, 3), n)) for n in (1, 2))
    found = joined([ones, twos], [np.array([0, 3]), np.array([1, 2])], None, masked=False)
    assert found.inputs[:, 0].tolist() == [1, 2, 2, 1]
    assert found.segments is None


def test_what_rules_allow_is_padded_with_its_rows() -> None:
    ids, legal = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, 5, dtype=torch.bool)
    wide = Batch(torch.zeros(1, 4, dtype=torch.int64), ids.new_zeros(1, 4), allowed=legal.new_ones(1, 4, 5))
    found = joined([Batch(ids, ids, allowed=legal), wide], [np.array([1]), np.array([0])], None, masked=False)
    assert found.allowed is not None
    assert found.allowed.sum(dim=2).tolist() == [[5, 5, 5, 5], [5, 5, 0, 0]]


# --- parts of a split ---


def test_units_know_their_part() -> None:
    split = stream({"web": [40] * 20, "none": [], "code": [30] * 5})
    names, part = part_of_units(split)
    assert names == ["web", "none", "code"]
    assert part.tolist() == [0] * 20 + [2] * 5
    few = stream({"play": [10_000], "code": [5_000]})  # a few documents: cut into stretches
    names, part = part_of_units(few)
    assert len(part) > 50
    assert np.bincount(part).tolist() == [67, 33]  # by their lengths


def test_what_the_card_says_of_parts_must_be_there() -> None:
    split = stream({"web": [4, 4], "code": [4]})
    assert counts_of(split) == {"web": 2, "code": 1}
    beginning = Split("train", 1, {"documents": split.arrays["documents"][:1]}, split.meta, [])
    assert counts_of(beginning) == {"web": 1, "code": 0}
    split.meta["parts"]["web"]["rows"] = 1
    with pytest.raises(DataError, match="its parts have 2 rows of 3"):
        counts_of(split)


def test_weights_are_for_the_parts_that_there_are() -> None:
    refuse_other_parts({"web": 1, "code": 0}, ["web", "code"])
    with pytest.raises(ConfigError, match=r"no part 'wbe'; did you mean"):
        refuse_other_parts({"wbe": 1, "code": 0}, ["web", "code"])
    with pytest.raises(ConfigError, match="no weight for the part 'code'"):
        refuse_other_parts({"web": 1}, ["web", "code"])
    with pytest.raises(ConfigError, match="the data has no parts"):
        refuse_other_parts({"web": 1}, [])


def test_evidence_of_several_ranks_is_known_by_its_rows() -> None:
    arrays = {"inputs": np.zeros((11, 1), np.float32), "targets": np.arange(11)}
    batches = FeatureBatches(Split("validation", 11, arrays, {}, []), 0)
    assert by_part.order(batches, 4, 1).tolist() == list(range(11))
    # batches 0 1 2 of four rows: the first rank has 0 and 2, the second 1
    assert by_part.order(batches, 4, 2).tolist() == [0, 1, 2, 3, 8, 9, 10, 4, 5, 6, 7]
    batches.scored = np.arange(11)[::-1]
    assert by_part.order(batches, 4, 2).tolist() == [10, 9, 8, 7, 2, 1, 0, 6, 5, 4, 3]
