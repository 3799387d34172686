"""Checkpoint directories that all ranks write together: wholly there or not at all, whichever rank fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmtool.core import checkpoint, files, ranks


def save(parent: Path, name: str, write: Callable[[Path], list[Path]]) -> Path:
    """checkpoint.save by all ranks, on a file system that they share: each writes files of its own.

    write: returns the files that this rank has written, which it hashes too; whatever fails in it must fail
    at all ranks (ranks.agreeing). The first makes the directory, the manifest, and gives it its name. Raises
    at all of them what that raises, naming the rank.
    """
    first = ranks.here().first

    def begin() -> tuple[Path, Path]:
        places = checkpoint.places(parent, name)
        with files.disk_errors(places[1]):
            files.fs.make_directory(places[1])
        return places

    final, temporary = ranks.by_first(begin)
    with checkpoint.or_nothing(temporary if first else None):
        written = write(temporary)
        own = ranks.agreeing(lambda: checkpoint.entries(temporary, written))
        others = {name: entry for each in ranks.gathered(own) for name, entry in each.items()}
        ranks.agreeing(lambda: checkpoint.finish(temporary, final, others) if first else None)
    return final
