"""stdout as daemons, shells and CI jobs leave it: closed, its reader gone, or on a disk that is full.

A stdout that takes no more ends no work: what else would go there is dropped, and the command says so at its
end (`lost`). Imports nothing heavy: the command line needs it before it runs anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

_lost: str | None = None


class ReaderGoneError(Exception):
    """Whoever read our stdout has gone, and there is nothing else to do."""


def open_closed() -> None:
    """Let the null device stand for a standard stream that is closed (`>&-`, a daemon), which Python has None
    for: a file of ours would get its number, and what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (to the end of the process)
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)


def unwritable(error: Exception) -> str:
    """The sentence for an error of writing to stdout."""
    return f"standard output cannot be written: {getattr(error, 'strerror', None) or error}"


def put(text: str) -> None:
    """Write to stdout, all that it holds back too; what goes wrong stands in `lost`."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # a reader that went away (`| head`) has had enough
        mute(sys.stdout)
    except (OSError, ValueError) as error:
        lose(unwritable(error))


def lose(sentence: str) -> None:
    """Note that stdout takes no more, here or in a process that was started here; the first reason counts."""
    global _lost
    _lost = _lost or sentence
    mute(sys.stdout)


def lost() -> str | None:
    """Why not all of stdout could be written, in a sentence; None where it could."""
    put("")
    return _lost


def mute(stream: TextIO) -> None:
    """Send what still goes to a stream to the null device: what it holds back would fail again when Python
    flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
