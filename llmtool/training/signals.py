"""What asks a training to stop: SIGTERM, Ctrl-C and the end of a session's time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llmtool.core.errors import Cancelled, Interrupted


def asked_to_stop(received: list[int], over: bool) -> Interrupted | Cancelled | None:
    """The error by which a training ends after its checkpoint. over: whether the session's time is."""
    if signal.SIGINT in received:
        return Cancelled("cancelled; the same command goes on from the checkpoint")
    if signal.SIGTERM in received:
        return Interrupted("interrupted by SIGTERM; the same command goes on from the checkpoint")
    if over:
        return Interrupted("time limit reached; run again to go on")
    return None


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT only leave their number in the list; a second Ctrl-C aborts at once."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    before: dict[signal.Signals, Any] = {}
    try:
        for which in (signal.SIGTERM, signal.SIGINT):
            before[which] = signal.signal(which, remember)
    except ValueError:  # not the main thread: signals are not ours to catch
        pass
    try:
        yield received
    finally:
        for which, handler in before.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)
