"""What an encoding is: it learns from the train rows, then turns rows of every split into arrays on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmtool.core.errors import DataError
from llmtool.data.cleaning import Masks

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

TOO_LONG = "longer than data.encode.length"  # the reason of a writer for a row that is dropped, not bad


class RowError(DataError):
    """Data that is refused for one row; file: its number in the source, which the stage turns into a name."""

    def __init__(self, file: int, line: int, message: str) -> None:
        super().__init__(message)
        self.file, self.line = file, line

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.file, self.line, *self.args)


Chunks = Callable[[], Iterator["Chunk"]]  # each call reads the rows again from the start


class SplitWriter(Protocol):
    """Writes the rows of one split; rows come in the order of the source."""

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Encode and write these rows; gives back the ordinals it refused, each with its reason."""

    def close(self) -> dict[str, Any]:
        """Finish the files; gives back the split's entry in the card: rows, arrays, what else was counted."""


@dataclass
class Refusals:
    """What an encoding says of raw rows before any split: those that no split can use, by reason.

    dropped: they are counted (no target). bad: they are written down as faulty too; details: of such rows, by
    ordinal, what their reasons leave out. alike: the frame with equal rows written alike, so that copies are
    known as such; None: as it is.
    """

    dropped: Masks = field(default_factory=dict)
    bad: Masks = field(default_factory=dict)
    details: Mapping[int, str] = field(default_factory=dict)
    alike: pd.DataFrame | None = None


class Encoder(Protocol):
    """The order of calls: columns, refuse and stratum on raw rows; fit; writer for each split; state."""

    notes: list[str]  # what a person should know: columns left out and why, what was sampled

    def columns(self, available: list[str]) -> list[str]:
        """The columns it reads, the target's too: the content of a row. ConfigError when one is missing."""

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows that no split can use, for example those without a target."""

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """The target of each row, for stratified splits; ConfigError where the encoding has no target."""

    def fit(self, chunks: Chunks) -> None:
        """Learn from the train rows, in memory that does not grow with them."""

    def writer(self, directory: Path, split: str) -> SplitWriter:
        """Writes `split` below `directory`, where card.json will lie too."""

    @property
    def inputs(self) -> dict[str, Any]:
        """After fit: {"kind": "features", "width": F} or {"kind": "tokens", "vocabulary": V}."""

    @property
    def targets(self) -> dict[str, Any]:
        """After fit: kind "classes" (names, counts), "values" (names, mean, scale) or "next_token"."""

    def state(self) -> dict[str, Any]:
        """All that was learned, as JSON; the class's `from_state(state, directory)` restores it exactly."""
