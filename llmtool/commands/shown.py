"""What a person sees of work that is under way: how far a reading is, and how a training goes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from llmtool.core import console


class Pace:
    """Tells a display how far prepare is, at most once a second."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self.display, self.last = display, time.monotonic()

    def __call__(self, step: str, rows: int) -> None:
        if time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            self.display.update(rows, step=step)


class TrainingDisplay:
    """Shows a person how training goes: the rows of metrics.jsonl, at most a few a second.

    metric: the figure that selects; of each validation it stands first. kill_at: of a rehearsal, the step
    after which the process dies as from a power cut.
    """

    def __init__(self, display: console.ProgressDisplay, metric: str, kill_at: int | None = None) -> None:
        self.display, self.metric, self.kill_at, self.last = display, metric, kill_at, 0.0
        self.left: float | None = None  # seconds to go, by the last row that says so

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl; validations are always shown."""
        if row["step"] == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if "refused" in row:  # told in words
            return
        clock = row.get("time", {})
        self.left = clock.get("left", self.left) or None  # at the end none is told
        if "validation" in row:
            found = row["validation"]
            names = [name for name in dict.fromkeys([self.metric, *found]) if name in found][:3]
            figures = {f"validation {names[0]}": found[names[0]]} if names else {}
            figures |= {name: found[name] for name in names[1:]}
            self.display.update(row["step"], self.left, **figures, best="*" if row["best"] else None)
        elif time.monotonic() - self.last > (0.2 if self.display.live else 5):
            self.last = time.monotonic()
            rate = clock.get("tokens_per_second") or clock.get("rows_per_second")
            self.display.update(
                row["step"], self.left, loss=row["loss"], lr=row["lr"], rate=rate,
                peak=clock.get("peak_share"),
            )  # fmt: skip

    def note(self, text: str) -> None:
        """A sentence a person should read."""
        console.note(text)
