"""Rows made ahead by a thread: the same training, errors at their step, and no thread that is left."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from llmtool.core.contracts import Batch
from llmtool.training import feed as feed_module
from llmtool.training.feed import AHEAD, Feed
from llmtool.training.loop import Loop, State
from tests.training.test_loop import Notes, make, weights
from tests.training.toys import ToyMLP, table

CPU = torch.device("cpu")


def loop_of(beside: bool, notes: Notes, data: Any = None, **plan: Any) -> Loop:
    torch.manual_seed(0)
    loop = make(ToyMLP(), data or table(), notes, **plan)
    loop.feed.beside = beside
    return loop


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "feed"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where threads were begun."""
    found: list[int] = []
    init = feed_module._Worker.__init__

    def noted(self: Any, feed: Feed, start: int) -> None:
        found.append(start)
        init(self, feed, start)

    monkeypatch.setattr(feed_module._Worker, "__init__", noted)
    return found


@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize("step", [0, 3])
def test_the_same_training(micro: int, step: int, started: list[int]) -> None:
    """Bit by bit, from the start and from the middle; one thread for all of it."""
    ways = []
    for beside in (False, True):
        notes = Notes()
        loop = loop_of(beside, notes, micro_batch=micro)
        loop.run(State(step=step))
        ways.append(
            (weights(loop.model), [{k: v for k, v in row.items() if k != "time"} for row in notes.rows])
        )
    assert ways[0][1] == ways[1][1]
    assert all(torch.equal(tensor, ways[1][0][name]) for name, tensor in ways[0][0].items())
    assert started == [step * 8]
    assert not threads()


class Mixing:
    """Pictures that meet others, as far as the loop asks for rows."""

    mixes = True

    def change(self, step: int, first: int) -> None:
        return None

    def mixed(self, batch: Batch, others: Batch, step: int, first: int) -> Batch:
        assert len(batch) == len(others)
        return Batch(batch.inputs + others.inputs, batch.targets)


@pytest.mark.parametrize("micro", [8, 4, 2])
def test_rows_that_meet_others_come_in_order(micro: int, started: list[int]) -> None:
    ways = []
    for beside in (False, True):
        loop = loop_of(beside, Notes(), micro_batch=micro)
        loop.augment = Mixing()  # type: ignore[assignment]
        loop.run(State())
        ways.append(weights(loop.model))
    assert all(torch.equal(tensor, ways[1][name]) for name, tensor in ways[0].items())
    assert started == [0]


def test_an_error_comes_out_at_its_step() -> None:
    """However early the thread met it: the steps before are made, and what they say is written."""
    data, notes = table(), Notes()
    make_rows = data.batch

    def failing(start: int, count: int) -> Batch:
        if start >= 8 * 4:
            raise OSError("the disk is gone")
        return make_rows(start, count)

    data.batch = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk is gone"):
        loop_of(True, notes, data).run(State())
    assert [row["step"] for row in notes.rows] == [1, 2, 3, 4]
    assert not threads()


def test_a_bad_row_is_named_while_no_thread_reads() -> None:
    data, notes = table(), Notes()
    data.inputs[data._index(8 * 2 + 5, 1)[0]] = float("nan")
    where = data.where

    def alone(start: int, count: int) -> list[str]:
        assert not threads()
        return where(start, count)

    data.where = alone  # type: ignore[method-assign]
    loop = loop_of(True, notes, data, skip=True, micro_batch=1, steps=5)
    loop.run(State())
    assert [row.get("skipped", 0) for row in notes.rows] == [0, 0, 1, 1, 1]
    assert not threads()


def test_no_more_is_made_than_lies_ready() -> None:
    made: list[int] = []

    def rows(start: int, count: int) -> Batch:
        made.append(start)
        return table().batch(start, count)

    loop = loop_of(True, Notes())
    feed = Feed(rows, loop._requests, CPU, beside=True)
    with feed.running():
        assert torch.equal(feed.take(0, 8).inputs, table().batch(0, 8).inputs)
        time.sleep(0.2)  # long enough for a thread that does not stop to go on
        assert made == [8 * index for index in range(AHEAD + 2)]  # one is taken, one waits for room
        assert torch.equal(feed.take(800, 3).inputs, table().batch(800, 3).inputs)  # out of order
        assert not threads()
    assert torch.equal(feed.take(8, 8).inputs, table().batch(8, 8).inputs)
    assert not threads()
    assert feed.waited > 0


def test_on_a_cpu_no_thread_takes_the_cores(started: list[int]) -> None:
    make(ToyMLP(), table(), Notes()).run(State())
    assert started == []


@pytest.mark.cuda
def test_on_cuda_rows_are_copied_beside(started: list[int]) -> None:
    device = torch.device("cuda")
    feed = Feed(table().batch, loop_of(False, Notes())._requests, device, beside=True)
    with feed.running():
        for index in range(20):
            rows = feed.take(index * 8, 8)
            assert torch.equal(rows.inputs.cpu(), table().batch(index * 8, 8).inputs)
    assert started == [0]
    assert not threads()
