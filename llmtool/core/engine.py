"""Where work is done that can be done anywhere: here, in processes beside this one, on other machines.

Work is a pure function of one thing, given as an object that can be sent. What it gives back is `Packed`, and
whoever asked takes the results in the order of the things: so the same comes out wherever it was done.
"""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from llmtool.core.errors import LlmtoolError

Thing = TypeVar("Thing")
Packed = tuple[dict[str, Any], dict[str, np.ndarray]]  # what JSON can hold, and arrays
Work = Callable[[Any], Packed]

THREADS = "TOKENIZERS_PARALLELISM"  # read by the tokenizers' library at each of its calls


class Pending(Protocol):
    """A result that may not be there yet."""

    def result(self) -> Packed:
        """Wait for it. Raises what the work raised."""


class Engine:
    """Does work in this process. ahead: how many things are given out before a result is waited for. apart:
    whether other processes do it."""

    ahead = 1
    apart = False

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def submit(self, work: Work, thing: Any, name: str = "") -> Pending:
        """Begin this work. name: of the thing among all, for messages and for what is kept."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        return self._thread.submit(work, thing)

    def map(
        self, work: Work, things: Iterable[Thing], name: Callable[[int], str] = str
    ) -> Iterator[tuple[Thing, Packed]]:
        """Each thing with its result, in their order; `things` is read no more than `ahead` of it."""
        waiting: deque[tuple[Thing, Pending]] = deque()
        for number, thing in enumerate(things):
            waiting.append((thing, self.submit(work, thing, name(number))))
            if len(waiting) > self.ahead:
                first, pending = waiting.popleft()
                yield first, pending.result()
        while waiting:
            first, pending = waiting.popleft()
            yield first, pending.result()

    def close(self) -> None:
        """Let go of all that works."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Failed:
    """What work raised, on its way back."""

    error: BaseException


def attempt(work: Work, thing: Any) -> Packed | Failed:
    """The result, or what was raised, in a form that can be sent."""
    try:
        return work(thing)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (LlmtoolError, MemoryError) as error:
        return Failed(error)
    except BaseException as error:  # a fault of ours; the tokenizers' library panics with a BaseException
        wrong = RuntimeError(f"{type(error).__name__}: {error}")
        wrong.add_note(traceback.format_exc())
        return Failed(wrong)


@contextmanager
def one_thread() -> Iterator[None]:
    """Libraries that would use every processor use one."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before
