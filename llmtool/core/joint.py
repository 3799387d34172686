"""Checkpoint directories that all ranks write together: wholly there or not at all, whichever rank fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtool.core import checkpoint, files, ranks
from llmtool.core.errors import LlmtoolError


def begin(
    parent: Path, name: str, write: Callable[[Path], list[Path]], hold: bool = False
) -> Callable[[], Path]:
    """checkpoint.begin by all ranks, on a file system that they share: each writes files of its own.

    write: returns the files that this rank has written, which it hashes too; whatever fails in it must fail
    at all ranks (ranks.agreeing). The first makes the directory, the manifest, and gives it its name. Raises
    at all of them what that raises, naming the rank; so does the second half, which all must call.
    """
    first = ranks.here().first

    def begun() -> tuple[Path, Path]:
        places = checkpoint.places(parent, name)
        with files.disk_errors(places[1]):
            files.fs.make_directory(places[1])
        return places

    final, temporary = ranks.by_first(begun)
    held: files.Held = []
    later = files.synced_later(held if hold else None)
    with checkpoint.or_nothing(temporary if first else None), later:
        written = write(temporary)

    def finished() -> Path:
        with checkpoint.or_nothing(temporary if first else None):
            own = ranks.agreeing(lambda: _described(temporary, written, held))
            others = {name: entry for each in ranks.gathered(own) for name, entry in each.items()}
            ranks.agreeing(lambda: checkpoint.finish(temporary, final, others) if first else None)
        return final

    return finished


def refuse_others(found: Path) -> None:
    """LlmtoolError at all ranks unless all see one checkpoint there: machines may have disks of their own."""
    manifest = found / checkpoint.MANIFEST
    with files.disk_errors(manifest):
        mine = files.hash_bytes(manifest.read_bytes()) if manifest.is_file() else None
    if (other := ranks.first_other(mine)) is not None:
        has = "does not have" if other.has is None else "has another version of"
        raise LlmtoolError(
            f"{other.where} {has} rank 0's {found}: "
            "let all machines share the run's directory, or copy the checkpoint to each"
        )


def _described(temporary: Path, written: list[Path], held: files.Held) -> dict[str, dict[str, Any]]:
    """What the manifest says of this rank's files, which are durable then."""
    files.write_held(held)
    for path in written:
        files.sync(path)
    return checkpoint.entries(temporary, written)
