"""Rows made ready beside the computing: the next micro-batches are read and copied while a device works."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from llmtool.core.contracts import Batch

AHEAD = 2  # micro-batches that lie ready
PATIENCE = 0.1  # seconds after which a thread with nothing to do looks whether it has to end

Rows = tuple[int, int]  # where they start in the training order, how many


@dataclass(frozen=True)
class _Made:
    """Rows on the device, or what went wrong with them. copied: the event after which they are there."""

    rows: Rows
    batch: Batch | None
    error: BaseException | None = None
    copied: torch.cuda.Event | None = None


class Feed:
    """The rows that a loop asks for, on its device.

    make: rows of the training order on the host, a pure function, so that who calls it and when decides
    nothing. order: the requests that follow one another from a row on, itself the first.
    beside: whether a thread makes them before they are asked for. It does so within `running` alone, for as
    long as requests come in this order; any other is made on the spot, by the caller. What the thread meets
    is raised where the rows are asked for. On a CPU it would take the cores from the computing.
    expect: told before rows are made which are next, these first.
    """

    def __init__(
        self,
        make: Callable[[int, int], Batch],
        order: Callable[[int], Iterator[Rows]],
        device: torch.device,
        beside: bool,
        expect: Callable[[Sequence[Rows]], None] | None = None,
    ) -> None:
        self.make, self.order, self.device, self.beside, self.expect = make, order, device, beside, expect
        self._later: Iterator[Rows] = iter(())  # requests after those that are coming
        self._coming: deque[Rows] = deque()
        self.waited = 0.0  # seconds that the caller had to wait for rows, in all
        self._running = False
        self._worker: _Worker | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it rows may be made ahead; at its end no thread is left."""
        self._running = True
        try:
            yield
        finally:
            self._running = False
            self.stop()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within it no thread reads rows, and the caller may ask whoever makes them for anything."""
        before, self._running = self._running, False
        self.stop()
        try:
            yield
        finally:
            self._running = before

    def take(self, start: int, count: int) -> Batch:
        """Rows start to start + count on the device, pictures as bytes."""
        began = time.perf_counter()
        try:
            return self._take((start, count))
        finally:
            self.waited += time.perf_counter() - began

    def stop(self) -> None:
        """End the thread; the next request in order begins another."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _take(self, rows: Rows) -> Batch:
        if not (self.beside and self._running):
            return self._moved(*rows)
        if self._worker is None and next(self.order(rows[0])) == rows:
            self._worker = _Worker(self, rows[0])
        made = None if self._worker is None else self._worker.next(rows)
        if made is None:  # not what was expected
            self.stop()
            return self._moved(*rows)
        if made.error is not None:
            self.stop()
            raise made.error
        assert made.batch is not None
        if made.copied is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(made.copied)
            for tensor in made.batch.tensors():  # taken on the copying stream, used on this one
                tensor.record_stream(now)
        return made.batch

    def _moved(self, start: int, count: int) -> Batch:
        if self.expect is not None:
            self.expect(self._next((start, count)))
        batch = self.make(start, count)
        return (batch.pinned() if self.device.type == "cuda" else batch).on(self.device)

    def _next(self, rows: Rows) -> list[Rows]:
        """These and those that will follow."""
        if not self._coming or self._coming.popleft() != rows:  # the start, or asked for out of order
            self._later = self.order(rows[0])
            self._coming = deque(islice(self._later, AHEAD + 1))
            if self._coming.popleft() != rows:
                self._coming.clear()
                return [rows]
        self._coming += islice(self._later, AHEAD - len(self._coming))
        return [rows, *self._coming]


class _Worker:
    """The thread: makes rows from `start` on, a few ahead of whoever takes them."""

    def __init__(self, feed: Feed, start: int) -> None:
        self.feed, self.requests = feed, feed.order(start)
        self.ready: queue.Queue[_Made] = queue.Queue(AHEAD)
        self.over = threading.Event()
        self.expected = feed.order(start)
        # made here, where an error is the caller's: a thread that ends by one leaves it waiting for ever
        self.stream = torch.cuda.Stream(feed.device) if feed.device.type == "cuda" else None
        self.thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.thread.start()

    def next(self, rows: Rows) -> _Made | None:
        """What was made of these rows; None where they are not next."""
        if next(self.expected) != rows:
            return None
        made = self.ready.get()
        return made if made.rows == rows else None

    def end(self) -> None:
        """Let go of what is ready, and wait for the thread."""
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        for rows in self.requests:
            try:
                made = self._make(rows)
            except BaseException as error:  # whatever it is, it is the caller's, when it asks for these rows
                made = _Made(rows, None, error)
            if not self._put(made) or made.error is not None:
                return

    def _make(self, rows: Rows) -> _Made:
        if self.stream is None:
            return _Made(rows, self.feed._moved(*rows))
        with torch.cuda.stream(self.stream):
            batch = self.feed._moved(*rows)
            return _Made(rows, batch, copied=self.stream.record_event())

    def _put(self, made: _Made) -> bool:
        """Whether it was taken over; False where the thread is to end."""
        while not self.over.is_set():
            try:
                self.ready.put(made, timeout=PATIENCE)
                return True
            except queue.Full:
                continue
        return False
