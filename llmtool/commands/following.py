"""How a command runs on several ranks: the first holds the run and speaks, the others follow it silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from llmtool.core import console, ranks
from llmtool.core.devices import resolve_device
from llmtool.core.run import Run, State
from llmtool.experiment import Loaded


@contextmanager
def joined(loaded: Loaded) -> Iterator[None]:
    """Within it the ranks that a launcher has started are together; one process stays alone."""
    if ranks.told() is None:
        yield
        return
    before = ranks.here()
    here = ranks.join(resolve_device(loaded.experiment.device).type)
    try:
        with ExitStack() as block:
            if not here.first:
                block.enter_context(console.silent())
            yield
    finally:
        if before is ranks.ALONE:
            ranks.leave()


def opened(open_run: Callable[[], Run], follow: Callable[[State], Run]) -> Run:
    """The run as the first rank has opened it; the others follow the state that it found."""
    found: list[Run] = []

    def first() -> State:
        found.append(open_run())
        return found[0].state

    state = ranks.by_first(first)
    return found[0] if found else follow(state)
