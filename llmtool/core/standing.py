"""Where threads stand, whether a process has ended, and which machine's processes these are."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import traceback
from functools import cache
from pathlib import Path
from types import FrameType

_WAITS = tuple(
    os.path.join(*parts)
    for parts in (("torch", "distributed", ""), ("core", "ranks.py"), ("training", "together.py"))
)


def standing(thread: int | None) -> tuple[bool, str | None]:
    """Whether a thread waits for other ranks, and the line of our code in which it stands."""
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    waits = False
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in _WAITS):
            waits = True
        elif waits or f"{os.sep}llmtool{os.sep}" in name:
            return waits, _line(frame)
        frame = frame.f_back
    return waits, None


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"in {path.parent.name}/{path.name}:{frame.f_lineno} ({frame.f_code.co_name})"


def dump(log: Path | None, where: str) -> None:
    """Write the stacks of all threads of this process to its log (stderr where there is none)."""
    with contextlib.suppress(OSError, ValueError):  # its disk may be what is full
        if log is None:
            faulthandler.dump_traceback(sys.stderr)
            return
        with log.open("a", encoding="utf-8") as file:
            print(f"--- stacks of all threads: {where} ---", file=file, flush=True)
            faulthandler.dump_traceback(file)


def trace(log: Path | None, error: BaseException) -> None:
    """Write an exception's traceback to this rank's log."""
    with contextlib.suppress(OSError, ValueError):
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)


@cache
def machine() -> str:
    """What only processes have in common whose numbers mean the same: hosts may share a name, as images that
    are not told another do, and so may containers of one host."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # neither is there on a Mac
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(parts)


def ended(pid: int) -> bool:
    """Whether this machine has no such process, or one that has ended and of which nobody has asked how."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
