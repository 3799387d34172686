"""What a person should see of prepared conversations before anything is trained: what of them is learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtool.core import files

if TYPE_CHECKING:
    from llmtool.data.chat import ChatEncoder

FILE = "mask.txt"
OPEN, CLOSE = "⟦", "⟧"
SHOWN = 400  # characters of a stretch; its middle is left out


def account(encoder: ChatEncoder, paths: Sequence[str], directory: Path) -> dict[str, Any]:
    """What the ledger says of conversations: `mask`, some of them in stretches [text, learned], and `long`.

    Writes them to mask.txt too, and has the encoder say what it found.
    """
    encoder.say()
    mask = [
        {"row": f"{paths[file]}:{line}", "pieces": [[shortened(text), learned] for text, learned in pieces]}
        for (file, line), pieces in encoder.counted.samples
    ]
    text = "\n\n".join(f"--- {one['row']}\n{marked(one['pieces'])}" for one in mask)
    head = f"What is learned stands between {OPEN} and {CLOSE}; the rest is only read.\n\n"
    files.write_text(directory / FILE, f"{head}{text}\n")
    return {"mask": mask, "long": dict(encoder.counted.lengths)}


def marked(pieces: Sequence[Any]) -> str:
    """Stretches of a conversation in one text, those that are learned between marks."""
    return "".join(f"{OPEN}{text}{CLOSE}" if learned else text for text, learned in pieces)


def shortened(text: str) -> str:
    """The beginning and end of a text that is long."""
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]} … {text[-half:]}"
