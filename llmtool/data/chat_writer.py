"""Writes the conversations of one split: ids, ends, what is learned, and where each came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.data.conversations import BadConversation
from llmtool.data.encoding import TOO_LONG, RowError
from llmtool.data.rendering import MaskError, Rendered
from llmtool.data.store import ArrayWriter

if TYPE_CHECKING:
    from llmtool.data.chat import ChatEncoder
    from llmtool.data.sources import Chunk

SHOWN = 3  # conversations of train that are shown with what is learned of them
MOST_REASONS = 20  # of templates that refuse rows, each in words of its own


@dataclass
class ChatWriter:
    """tokens (n,), documents (d,) int64 ends of conversations, trained (n,) uint8, origin (d, 2) int64."""

    encoder: ChatEncoder
    directory: Path
    split: str
    rows: int = 0
    trained: int = 0
    longest: int = 0
    _reasons: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        dtype = "<u2" if self.encoder.tokenizer.vocabulary < 1 << 16 else "<u4"
        name = f"{self.directory / self.split}"
        self._tokens = ArrayWriter(Path(f"{name}.tokens.bin"), dtype)
        self._documents = ArrayWriter(Path(f"{name}.documents.bin"), "<i8")
        self._trained = ArrayWriter(Path(f"{name}.trained.bin"), "|u1")
        self._origin = ArrayWriter(Path(f"{name}.origin.bin"), "<i8", (2,))
        self._first_long: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Render and write these rows; gives back those that hold no conversation, each with its reason.

        Raises RowError where it cannot be told what is learned of a row, or nothing is.
        """
        refused: dict[int, str] = {}
        places = zip(chunk.frame.index.tolist(), chunk.file.tolist(), chunk.line.tolist(), strict=True)
        for row, (ordinal, file, line) in zip(self.encoder._rows(chunk.frame), places, strict=True):
            try:
                parts = self.encoder.conversations(row)
            except BadConversation as error:
                refused[ordinal] = self._reason(str(error))
                continue
            except MaskError as error:
                raise RowError(file, line, str(error)) from None
            if not parts:
                refused[ordinal] = TOO_LONG
                self._first_long = self._first_long or (file, line)
                continue
            self.rows += 1
            for part in parts:
                self._write(part, (file, line))
            if self.split == "train" and len(self.encoder.samples) < SHOWN:
                self.encoder.samples.append(((file, line), self.encoder.fitted.pieces(parts[0])))
        return refused

    def close(self) -> dict[str, Any]:
        """Finish the files. RowError where conversations are too long and the configuration refuses that."""
        if self._first_long is not None and self.encoder.config.long == "refuse":
            counts, length = self.encoder.lengths, self.encoder.config.length
            raise RowError(
                *self._first_long,
                f"longer than data.encode.length: {length} tokens, as {counts['longer']:,} conversations are "
                f"(the longest has {counts['longest']:,}); a larger length takes them, long: cut or split "
                "shortens them",
            )
        arrays = {
            "tokens": self._tokens,
            "documents": self._documents,
            "trained": self._trained,
            "origin": self._origin,
        }
        return {
            "rows": self.rows,
            "tokens": self._tokens.rows,
            "documents": self._documents.rows,
            "trained": self.trained,
            "longest": self.longest,
            "arrays": {name: array.close() for name, array in arrays.items()},
        }

    def _write(self, part: Rendered, place: tuple[int, int]) -> None:
        self._tokens.append(part.ids)
        self._trained.append(part.trained.astype(np.uint8))
        self._documents.append(np.array([self._tokens.rows], np.int64))
        self._origin.append(np.array([place], np.int64))
        self.trained += int(part.trained[1:].sum())
        self.longest = max(self.longest, len(part.ids))

    def _reason(self, reason: str) -> str:
        """Templates may refuse each row in other words; of too many there is one reason for the rest."""
        if reason.startswith("the template refuses it") and reason not in self._reasons:
            if len(self._reasons) >= MOST_REASONS:
                return "the template refuses it"
            self._reasons.add(reason)
        return reason
