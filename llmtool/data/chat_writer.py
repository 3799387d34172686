"""Renders conversations, and writes those of one split: ids, ends, what is learned, where each came from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.data.conversations import BadConversation
from llmtool.data.encoding import TOO_LONG, Encoded, RowError
from llmtool.data.rendering import MaskError, Rendered
from llmtool.data.store import ArrayWriter

if TYPE_CHECKING:
    from llmtool.data.chat import ChatEncoder
    from llmtool.data.sources import Chunk

SHOWN = 3  # conversations of train that are shown with what is learned of them
MOST_REASONS = 20  # of templates that refuse rows, each in words of its own


@dataclass
class Counted:
    """What is said of conversations beside their ids. lengths: what became of those that were too long;
    samples: some of them, (file, line) and their stretches."""

    rows: int = 0
    rewritten: int = 0
    lengths: Counter[str] = field(default_factory=Counter)
    first_long: tuple[int, int] | None = None
    samples: list[tuple[tuple[int, int], list[tuple[str, bool]]]] = field(default_factory=list)

    def merge(self, other: Counted, shown: bool) -> None:
        """Take in what was counted of rows behind these. shown: whether they are to be seen as samples."""
        self.rows += other.rows
        self.rewritten += other.rewritten
        longest = max(self.lengths["longest"], other.lengths["longest"])
        self.lengths.update(other.lengths)
        if longest:
            self.lengths["longest"] = longest
        else:
            del self.lengths["longest"]
        self.first_long = self.first_long or other.first_long
        if shown:
            self.samples += other.samples[: SHOWN - len(self.samples)]


def encoded(encoder: ChatEncoder, chunk: Chunk) -> Encoded:
    """tokens and trained, of all conversations and parts of such, one after the other; `sizes`, how many
    tokens each has; their origin.

    Raises RowError where it cannot be told what is learned of a row, or nothing is.
    """
    counted, refused = Counted(), dict[int, str]()
    rendered: list[Rendered] = []
    origin: list[tuple[int, int]] = []
    places = zip(chunk.frame.index.tolist(), chunk.file.tolist(), chunk.line.tolist(), strict=True)
    for row, (ordinal, file, line) in zip(encoder.rows(chunk.frame), places, strict=True):
        try:
            parts = encoder.conversations(row, counted)
        except BadConversation as error:
            refused[ordinal] = str(error)
            continue
        except MaskError as error:
            raise RowError(file, line, str(error)) from None
        if not parts:
            refused[ordinal] = TOO_LONG
            counted.first_long = counted.first_long or (file, line)
            continue
        counted.rows += 1
        rendered += parts
        origin += [(file, line)] * len(parts)
        if len(counted.samples) < SHOWN:
            counted.samples.append(((file, line), encoder.fitted.pieces(parts[0])))
    arrays: dict[str, np.ndarray] = {
        "tokens": np.concatenate([np.empty(0, np.int64), *(part.ids for part in rendered)]).astype(np.uint32),
        "trained": np.concatenate([np.empty(0, bool), *(part.trained for part in rendered)]).astype(np.uint8),
        "sizes": np.array([len(part.ids) for part in rendered], np.int64),
        "origin": np.array(origin, np.int64).reshape(-1, 2),
    }
    return Encoded(arrays, refused, counted)


@dataclass
class ChatWriter:
    """tokens (n,), documents (d,) int64 ends of conversations, trained (n,) uint8, origin (d, 2) int64."""

    encoder: ChatEncoder
    directory: Path
    split: str
    counted: Counted = field(default_factory=Counted)
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

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Render and write these rows; gives back those that hold no conversation, each with its reason.

        Raises RowError where it cannot be told what is learned of a row, or nothing is.
        """
        return self.write(self.encoder.encoded(chunk))

    def write(self, encoded: Encoded) -> dict[int, str]:
        """The same of rows that are rendered."""
        sizes, trained = encoded.arrays["sizes"], encoded.arrays["trained"]
        ends = np.cumsum(sizes)
        self._documents.append(ends + self._tokens.rows)
        self._tokens.append(encoded.arrays["tokens"])
        self._trained.append(trained)
        self._origin.append(encoded.arrays["origin"])
        self.trained += int(trained.sum()) - int(
            trained[ends - sizes].sum()
        )  # nothing predicts a first token
        self.longest = max(self.longest, int(sizes.max(initial=0)))
        self.counted.merge(encoded.about, shown=False)
        self.encoder.counted.merge(encoded.about, shown=self.split == "train")
        return {ordinal: self._reason(reason) for ordinal, reason in encoded.refused.items()}

    def close(self) -> dict[str, Any]:
        """Finish the files. RowError where conversations are too long and the configuration refuses that."""
        if self.counted.first_long is not None and self.encoder.config.long == "refuse":
            counts, length = self.encoder.counted.lengths, self.encoder.config.length
            raise RowError(
                *self.counted.first_long,
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
            "rows": self.counted.rows,
            "tokens": self._tokens.rows,
            "documents": self._documents.rows,
            "trained": self.trained,
            "longest": self.longest,
            "arrays": {name: array.close() for name, array in arrays.items()},
        }

    def _reason(self, reason: str) -> str:
        """Templates may refuse each row in other words; of too many there is one reason for the rest."""
        if reason.startswith("the template refuses it") and reason not in self._reasons:
            if len(self._reasons) >= MOST_REASONS:
                return "the template refuses it"
            self._reasons.add(reason)
        return reason
