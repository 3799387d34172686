"""Batches: a pure function of the position, every row once an epoch, and no target across documents."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.batches import (
    ChatBatches,
    FeatureBatches,
    TextBatches,
    TokenBatches,
    open_batches,
    unit_edges,
)
from llmtool.data.store import ArrayWriter, Dataset, Split, make_card


def table(rows: int, seed: int = 0) -> FeatureBatches:
    arrays = {
        "inputs": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        "targets": np.arange(rows),
        "origin": np.stack([np.arange(rows) % 2, np.arange(rows) + 2], axis=1),
    }
    return FeatureBatches(Split("train", rows, arrays, {}, ["data/a.csv", "b.csv"]), seed)


def stream(lengths: list[int], context: int, seed: int = 0) -> TokenBatches:
    """Token i of the stream is i + 1000, so that a batch shows where it was taken."""
    ends = np.cumsum(lengths).astype(np.int64)
    total = int(ends[-1]) if len(ends) else 0
    origin = np.stack([np.zeros(len(ends), dtype=np.int64), np.arange(len(ends)) * 10 + 1], axis=1)
    arrays = {"tokens": np.arange(1000, 1000 + total).astype(np.uint16), "documents": ends, "origin": origin}
    return TokenBatches(Split("train", len(ends), arrays, {}, ["data/play.txt"]), context, seed)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


# --- every n-th batch ---


@pytest.mark.parametrize("every", [1, 2, 3, 20])
@pytest.mark.parametrize("kind", ["table", "tokens", "texts", "games"])
def test_every_nth_batch_is_one_of_all(kind: str, every: int) -> None:
    lengths = [3, 9, 2, 5, 7, 1, 4, 8, 6, 2]
    texts = {"tokens": np.arange(47) + 5, "documents": np.cumsum(lengths), "targets": np.arange(10)}
    split = Split("test", 10, texts, {}, [])
    batches: Any = {
        "table": lambda: table(10),
        "tokens": lambda: stream(lengths, 8),
        "texts": lambda: TextBatches(split, 0),
        "games": lambda: ChatBatches(Split("test", 10, texts, {"whole": True}, []), 16, 0, True),
    }[kind]()
    whole = list(batches.in_order(2))
    assert len(whole) > 2
    for first in range(every):
        part = list(batches.in_order(2, first, every))
        expected = whole[first::every]
        assert [batch.inputs.tolist() for batch in part] == [batch.inputs.tolist() for batch in expected]
        assert [batch.targets.tolist() for batch in part] == [batch.targets.tolist() for batch in expected]


# --- tables ---


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_every_epoch_is_a_permutation(rows: int) -> None:
    batches = table(rows)
    for epoch in range(3):
        assert sorted(batches.batch(epoch * rows, rows).targets.tolist()) == list(range(rows))
    if rows == 64:
        orders = {tuple(batches.batch(epoch * rows, rows).targets.tolist()) for epoch in range(3)}
        assert len(orders) == 3


def test_a_batch_is_a_pure_function_of_its_place() -> None:
    one, two = table(10), table(10)
    places = [(95, 4), (0, 3), (8, 4), (3, 30), (95, 4)]
    forward = [one.batch(*place).inputs for place in places]
    for place, expected in reversed(list(zip(places, forward, strict=True))):
        assert torch.equal(two.batch(*place).inputs, expected)
    assert not torch.equal(table(64).batch(0, 64).inputs, table(64, seed=1).batch(0, 64).inputs)


@given(st.integers(1, 20), st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_micro_batches_are_the_whole(rows: int, start: int, sizes: list[int]) -> None:
    batches = table(rows)
    whole = batches.batch(start, sum(sizes))
    parts, at = [], start
    for size in sizes:
        parts.append(batches.batch(at, size))
        at += size
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert len(whole) == sum(sizes)


def test_tables_in_order() -> None:
    found = list(table(10).in_order(4))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.cat([batch.targets for batch in found]).tolist() == list(range(10))
    assert found[0].inputs.dtype == torch.float32
    assert found[0].targets.dtype == torch.int64
    assert found[0].segments is None
    assert list(table(0).in_order(4)) == []


def test_rows_of_a_table_are_named() -> None:
    batches = table(10)
    names = batches.where(7, 6)
    rows = batches.batch(7, 6).targets.tolist()
    assert names == [f"{['a.csv', 'b.csv'][row % 2]}:{row + 2} (row {row + 1} of train)" for row in rows]
    plain = Split("test", 1, {"inputs": np.zeros((1, 1), np.float32), "targets": np.zeros(1)}, {}, [])
    assert FeatureBatches(plain, 0).where(0, 1) == ["row 1 of test"]


def test_no_rows_are_an_error_only_for_training() -> None:
    with pytest.raises(DataError, match="train has no rows to train on"):
        table(0).batch(0, 1)


# --- tokens ---


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 40), st.integers(1, 9))
def test_windows_targets_and_segments(lengths: list[int], context: int, start: int, count: int) -> None:
    batches = stream(lengths, context)
    if batches.rows == 0:
        return
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    batch = batches.batch(start, count)
    assert batch.inputs.shape == batch.targets.shape == (count, context)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert (batch.segments is None) == (len(lengths) == 1)
    for row in range(count):
        at = batch.inputs[row].numpy() - 1000
        assert (np.diff(at) == 1).all()
        following = np.where(document[at + 1] == document[at], at + 1001, IGNORE)
        assert batch.targets[row].tolist() == following.tolist()
        if batch.segments is not None:
            assert batch.segments[row].tolist() == (document[at] - document[at[0]] + 1).tolist()
            assert batch.segments.dtype == torch.int32


@pytest.mark.parametrize(("total", "context"), [(1000, 7), (50, 24), (50, 49), (9, 4), (2, 1)])
def test_an_epoch_has_every_window_of_its_grid_once(total: int, context: int) -> None:
    batches = stream([total], context)
    assert batches.rows >= 1
    assert batches.tokens_per_row == context
    offsets = set()
    for epoch in range(20):
        firsts = np.sort(batches.batch(epoch * batches.rows, batches.rows).inputs[:, 0].numpy()) - 1000
        assert (np.diff(firsts) == context).all()
        assert firsts[-1] + context + 1 <= total
        offsets.add(int(firsts[0]))
    if total == 1000:
        assert len(offsets) > 4


def test_windows_are_a_pure_function_of_their_place() -> None:
    one, two = stream([300, 200], 16), stream([300, 200], 16)
    places = [(400, 8), (0, 3), (20, 40), (399, 2)]
    expected = [one.batch(*place) for place in places]
    for place, batch in reversed(list(zip(places, expected, strict=True))):
        again = two.batch(*place)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.targets, batch.targets)
        assert torch.equal(again.segments, batch.segments)
    whole = one.batch(5, 60)
    halves = [one.batch(5, 30), one.batch(35, 30)]
    assert torch.equal(torch.cat([half.targets for half in halves]), whole.targets)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 12), st.integers(1, 5))
def test_in_order_scores_every_token_but_the_first_of_a_document_once(
    lengths: list[int], context: int, size: int
) -> None:
    batches = stream(lengths, context)
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    scored: list[int] = []
    for batch in batches.in_order(size):
        assert 1 <= len(batch) <= size
        assert batch.inputs.shape == (len(batch), context)
        for row in range(len(batch)):
            used = batch.targets[row] != IGNORE
            at = batch.inputs[row][used].numpy() - 1000
            targets = batch.targets[row][used].numpy() - 1000
            assert (targets == at + 1).all()
            assert (document[targets] == document[at]).all()
            scored += targets.tolist()
            if batch.segments is not None:
                segments = batch.segments[row][used].numpy()
                assert ((batch.segments[row] == 0) == ~used).all()
                for number in set(segments.tolist()):
                    assert len(set(document[at[segments == number]].tolist())) == 1
                    assert (np.diff(at[segments == number]) == 1).all()
    firsts = {0, *ends[:-1].tolist()}
    assert scored == [i for i in range(int(ends[-1])) if i not in firsts]


def test_in_order_fills_rows_with_short_documents() -> None:
    rows = sum(len(batch) for batch in stream([5] * 100, 64).in_order(8))
    assert rows == 7  # 4 targets each, 16 documents to a row


def test_short_splits_can_be_scored_but_not_trained_on() -> None:
    batches = stream([20], 64)
    assert batches.rows == 0
    [batch] = batches.in_order(4)
    assert (batch.targets != IGNORE).sum() == 19
    message = r"train has 20 tokens; a window of context 64 needs 65: lower model.context or give more text"
    with pytest.raises(DataError, match=message):
        batches.batch(0, 1)
    with pytest.raises(DataError, match=message):
        batches.where(0, 1)
    empty = stream([], 4)
    assert list(empty.in_order(2)) == []
    assert empty.rows == 0


def test_windows_are_named() -> None:
    batches = stream([40, 60], 10)
    for name, row in zip(batches.where(3, 8), batches.batch(3, 8).inputs, strict=True):
        at = int(row[0]) - 1000
        document = 1 + (at >= 40)
        place = f"play.txt:{1 if document == 1 else 11}"
        assert name == f"tokens {at}..{at + 10} of train (document {document}, which begins at {place})"


def test_large_ids_survive() -> None:
    tokens = np.array([70_000, 4_000_000_000, 5], dtype=np.uint32)
    split = Split("train", 1, {"tokens": tokens, "documents": np.array([3])}, {}, [])
    batch = TokenBatches(split, 2, 0).batch(0, 1)
    assert batch.inputs.tolist() == [[70_000, 4_000_000_000]]
    assert TokenBatches(split, 2, 0).where(0, 1) == ["tokens 0..2 of train (document 1)"]


def test_from_the_disk(tmp_path: Path) -> None:
    arrays = {
        "tokens": ArrayWriter(tmp_path / "t.bin", "<u2"),
        "documents": ArrayWriter(tmp_path / "d.bin", "<i8"),
    }
    arrays["tokens"].append(np.arange(100))
    arrays["documents"].append(np.array([100]))
    meta = {"rows": 1, "arrays": {name: writer.close() for name, writer in arrays.items()}}
    spec = {"kind": "tokens", "vocabulary": 100}
    card = make_card("tokens", spec, {"kind": "next_token"}, {"as": "tokens"}, {"train": meta}, [], [])
    batches = open_batches(Dataset(tmp_path, card, card["fingerprint"]), "train", seed=3, context=8)
    first = batches.batch(0, 5)
    assert (first.targets - first.inputs == 1).all()
    first.inputs[:] = 0  # a batch is a copy: what is on the disk stays
    assert (batches.batch(0, 5).inputs > 0).any()


def test_units_are_documents_or_stretches_of_a_text_with_few(tmp_path: Path) -> None:
    def split(ends: list[int]) -> Split:
        arrays = {"documents": np.array(ends), "tokens": np.zeros(ends[-1] if ends else 0, np.uint16)}
        return Split("test", len(ends), arrays, {}, [])

    many = list(range(7, 7 * 31, 7))
    assert unit_edges(split(many)).tolist() == [0, *many]
    edges = unit_edges(split([50_000, 50_010, 100_000]))
    assert {0, 50_000, 50_010, 100_000} <= set(edges.tolist())
    assert len(edges) - 1 in range(95, 106)
    assert (np.diff(edges) > 0).all()
    assert unit_edges(split([100])).tolist() == [0, 50, 100]
    assert unit_edges(split([5])).tolist() == [0, 5]
    assert unit_edges(split([])).tolist() == [0]


def test_scoring_batches_say_which_unit_each_segment_is_of() -> None:
    ends = np.cumsum(np.random.default_rng(0).integers(1, 40, 60))
    tokens = np.arange(ends[-1]) % 50
    data = Split("test", 60, {"documents": ends, "tokens": tokens.astype(np.uint16)}, {}, [])
    seen = np.zeros(60, np.int64)
    for batch in TokenBatches(data, 16, 0).in_order(3):
        assert batch.units is not None
        assert batch.segments is not None
        for row in range(len(batch)):
            for number, unit in enumerate(batch.units[row].tolist(), start=1):
                scored = int(((batch.segments[row] == number) & (batch.targets[row] != IGNORE)).sum())
                assert (scored > 0) == (unit >= 0)
                seen[unit] += scored
    assert seen.tolist() == (np.diff([0, *ends]) - 1).tolist()


# --- labelled texts ---


def texts(lengths: list[int], seed: int = 0) -> TextBatches:
    """Text i has the target i; its tokens are 1000 i and on."""
    tokens = np.concatenate([np.arange(length) + 1000 * row for row, length in enumerate(lengths)])
    arrays = {
        "tokens": tokens.astype(np.uint32),
        "documents": np.cumsum(lengths).astype(np.int64),
        "targets": np.arange(len(lengths)),
        "origin": np.stack([np.zeros(len(lengths), np.int64), np.arange(len(lengths)) + 2], axis=1),
    }
    return TextBatches(Split("train", len(lengths), arrays, {}, ["a.csv"]), seed)


def rows_of(batch: Batch) -> dict[int, list[int]]:
    """Target -> the tokens of its row without padding."""
    found = {}
    for at, target in enumerate(batch.targets.tolist()):
        real = slice(None) if batch.segments is None else batch.segments[at] == 1
        found[target] = batch.inputs[at][real].tolist()
    return found


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(0, 200), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_texts_keep_their_tokens_and_targets(lengths: list[int], start: int, count: int) -> None:
    batches = texts(lengths)
    batch = batches.batch(start, count)
    assert batch.inputs.shape == (count, max(len(row) for row in rows_of(batch).values()))
    for target, row in rows_of(batch).items():
        assert row == list(range(1000 * target, 1000 * target + lengths[target]))
    assert (batch.inputs[batch.segments == 0] == 0).all() if batch.segments is not None else True
    parts = [texts(lengths).batch(start + at, 1) for at in range(count)]
    assert [part.targets.item() for part in parts] == batch.targets.tolist()
    whole = [target for part in batches.in_order(7) for target in part.targets.tolist()]
    assert batches.scored is not None
    assert whole == batches.scored.tolist()
    assert sorted(whole) == list(range(len(lengths)))


def test_texts_of_like_length_come_together_in_another_order_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 4096).tolist()
    batches = texts(lengths)
    epochs = [batches.chosen(epoch * 4096, 4096) for epoch in range(2)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(4096))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert texts(lengths, seed=1).chosen(0, 4096).tolist() != epochs[0].tolist()
    sizes = [batches.batch(start, 32).inputs.numel() for start in range(0, 4096, 32)]
    assert sum(sizes) < 1.1 * sum(lengths)  # by chance alone it is 1.9
    assert np.std(sizes[:64]) > 1000  # short and long batches are mixed
    assert batches.where(0, 1) == [f"a.csv:{epochs[0][0] + 2} (row {epochs[0][0] + 1} of train)"]


# --- conversations ---


def chats(lengths: list[int], context: int, packing: bool = True, seed: int = 0) -> ChatBatches:
    """Token i of the stream is i + 1000; every third is learned, and the last of each conversation."""
    ends = np.cumsum(lengths).astype(np.int64)
    total = int(ends[-1])
    trained = np.arange(total) % 3 == 0
    trained[ends - 1] = True
    origin = np.stack([np.zeros(len(ends), np.int64), np.arange(len(ends)) + 1], axis=1)
    tokens = np.arange(1000, 1000 + total).astype(np.uint16)
    arrays = {"tokens": tokens, "documents": ends, "origin": origin, "trained": trained.astype(np.uint8)}
    return ChatBatches(Split("train", len(ends), arrays, {}, ["data/chats.json"]), context, seed, packing)


def targets_of(batches: ChatBatches, found: Batch) -> dict[int, int]:
    """Token -> the target that stands at it, of the tokens that are no padding."""
    segments = found.inputs > 0
    return dict(zip(found.inputs[segments].tolist(), found.targets[segments].tolist(), strict=True))


SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=25)


@given(SIZES, st.integers(29, 60), st.booleans())
@settings(deadline=None)
def test_every_conversation_stands_whole_in_one_row_of_an_epoch(
    sizes: list[int], context: int, packing: bool
) -> None:
    batches = chats(sizes, context, packing)
    ends = np.cumsum(sizes)
    for found in (batches.batch(3 * batches.rows, batches.rows), next(batches.in_order(1000))):
        assert found.inputs.shape[1] == batches.tokens_per_row <= context
        seen = targets_of(batches, found)
        inputs = [token for token in range(1000, 1000 + int(ends[-1])) if token - 999 not in ends]
        assert sorted(seen) == inputs  # all but the last token of each, once
        for token, target in seen.items():
            following = token - 999  # its place in the stream
            learned = following % 3 == 0 or following + 1 in ends
            assert target == (token + 1 if learned else IGNORE)
        assert (found.targets[found.inputs == 0] == IGNORE).all()
        if packing:
            assert found.segments is not None
            assert torch.equal(found.segments > 0, found.inputs > 0)
            for row, segments in zip(found.inputs.tolist(), found.segments.tolist(), strict=True):
                for number in range(1, max(segments) + 1):
                    part = [token for token, segment in zip(row, segments, strict=True) if segment == number]
                    assert part == list(range(part[0], part[0] + len(part)))
        else:
            assert found.segments is None
            assert len(found) == len(sizes)


def test_rows_of_conversations_are_permuted_and_pure() -> None:
    batches = chats([9] * 40, 20)
    assert batches.rows == 20
    whole = batches.batch(5, 50)
    parts = [batches.batch(at, 10) for at in (45, 5, 35, 15, 25)]
    assert torch.equal(torch.cat([parts[1].inputs, parts[3].inputs]), whole.inputs[:20])
    assert not torch.equal(batches.batch(0, 20).inputs, batches.batch(20, 20).inputs)
    assert batches.batch(0, 20).inputs.sort(0).values.equal(batches.batch(20, 20).inputs.sort(0).values)


def test_units_are_conversations_however_few_there_are() -> None:
    batches = chats([9, 5, 30], 41)
    found = list(batches.in_order(2))
    assert [part.units.tolist() for part in found if part.units is not None] == [[[0, 1, 2]]]
    assert unit_edges(batches._split).tolist() == [0, 9, 14, 44]
    alone = list(chats([9, 5, 30], 41, packing=False).in_order(2))
    assert [part.units.tolist() for part in alone if part.units is not None] == [[[0], [1]], [[2]]]


def test_rows_of_conversations_are_named() -> None:
    batches = chats([9, 9, 9], 40)
    assert batches.where(0, 1) == ["chats.json:1, chats.json:2, chats.json:3 (row 1 of train)"]
    assert batches.lengths(0, 1) == [24]


def test_a_conversation_beyond_the_context_is_an_error_that_names_it() -> None:
    with pytest.raises(
        ConfigError, match=r"data.encode.length: a conversation of train has 30 tokens .chats.json:2.*28"
    ):
        chats([9, 30], 28)
    chats([9, 29], 28)  # its last token is a target only


def test_tokens_are_copied_once_into_what_a_model_takes() -> None:
    """Beside inputs and targets there is room for the windows in the store's two bytes, and for no more."""
    batches = stream([40_000], context=1024)
    batches.batch(0, 2)  # the order of the epoch
    tracemalloc.start()
    try:
        batch = batches.batch(0, 32)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch.inputs.is_contiguous()
    assert batch.targets.is_contiguous()
    assert torch.equal(batch.inputs + 1, batch.targets)
    assert most < 32 * (2 * 8 * 1024 + 2 * 1025) + 20_000
