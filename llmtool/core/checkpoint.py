"""Checkpoint directories, wholly there or not at all: written aside, hashed, synced, renamed.

`manifest.json` in each has the size and hash of every other file. None is ever written into; the
newest one whose manifest holds wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from llmtool.core import files
from llmtool.core.errors import LlmtoolError

MANIFEST = "manifest.json"
FORMAT = 1
# where the checkpoint lies that a path means: there, in a stage of a run, or in a run, of which what it
# fine-tuned goes before what it trained
PLACES = ("", "best", "finetune/best", "train/best")
STEP = re.compile(r"step-(\d+)", re.ASCII)


class TornError(LlmtoolError):
    """A checkpoint is not as it was written; the message names the file and what is wrong with it."""


def step_name(step: int) -> str:
    """The directory name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None for any other name."""
    match = STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def save(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Make the checkpoint `parent/name` of the files that `write(directory)` puts into a temporary directory.

    Returns when it survives a power cut. On any error the temporary directory is removed, and what was in
    `parent` stays as it was. Raises LlmtoolError when the name is taken, or the disk is full or broken.
    """
    return begin(parent, name, write)()


def begin(parent: Path, name: str, write: Callable[[Path], None], hold: bool = False) -> Callable[[], Path]:
    """The first half of `save`: `write` is done, but nothing is durable yet. Returns the second half, which
    may run in any thread: it makes the checkpoint durable, gives it its name and returns that.

    hold: keep what is written in memory until then.
    """
    final, temporary = places(parent, name)
    held: files.Held = []
    with or_nothing(temporary), _disk_errors(final), files.synced_later(held if hold else None):
        files.fs.make_directory(temporary)
        write(temporary)

    def finished() -> Path:
        with or_nothing(temporary):
            files.write_held(held)
            finish(temporary, final, {})
        return final

    return finished


def places(parent: Path, name: str) -> tuple[Path, Path]:
    """Where the checkpoint will be, and where it is made."""
    if not name or "/" in name or name.startswith("."):
        raise LlmtoolError(f"{name!r} cannot name a checkpoint")
    final = parent / name
    if os.path.lexists(final):
        raise LlmtoolError(f"{final}: exists; a checkpoint is never written into")
    files.make_directories(parent)
    return final, files.temporary_beside(final)


@contextlib.contextmanager
def or_nothing(temporary: Path | None) -> Iterator[None]:
    """Whatever ends the block takes the directory with it; Ctrl-C in the middle too."""
    try:
        yield
    except BaseException:
        if temporary is not None:
            with contextlib.suppress(OSError, LlmtoolError):
                files.remove_tree(temporary)
        raise


def finish(temporary: Path, final: Path, known: dict[str, dict[str, Any]]) -> None:
    """The manifest, and the name. known: entries of files that others have hashed."""
    files.write_bytes(temporary / MANIFEST, _manifest_bytes(_describe(temporary, known)))
    files.sync_tree(temporary)
    with files.disk_errors(final):
        files.fs.rename(temporary, final)
    files.sync(final.parent)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """`files.disk_errors`, also where a library wraps the system's error in its own (safetensors)."""
    with files.disk_errors(path):
        try:
            yield
        except (OSError, LlmtoolError):
            raise
        except Exception as error:
            # how Rust's standard library prints errno
            if code := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
            raise


def verify(directory: Path, hash_file: files.HashFile | None = None) -> None:
    """Check every file against the manifest. Raises TornError at the first that is missing, extra or changed.

    An error of the disk itself (or a directory that is not there) is a plain LlmtoolError.
    """
    recorded = _read_manifest(directory)
    with files.disk_errors(directory):
        present = _walk(directory)
    for name in sorted(recorded.keys() | (present - {MANIFEST})):
        if name not in present:
            raise TornError(f"{directory / name}: missing")
        if name not in recorded:
            raise TornError(f"{directory / name}: not in {MANIFEST}")
        with files.disk_errors(directory / name):
            size = (directory / name).stat().st_size
        if size != recorded[name]["size"]:
            raise TornError(f"{directory / name}: {size:,} bytes, written were {recorded[name]['size']:,}")
    for name, expected in recorded.items():
        if (hash_file or files.hash_file)(directory / name) != expected["hash"]:
            raise TornError(f"{directory / name}: the content changed since it was written (hash differs)")


def newest_valid(parent: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint of the highest step that passes `verify`; None when there is none.

    Only for the holder of the run's lock: temporary directories of interrupted saves are removed, and torn
    checkpoints on the way are moved aside to `<name>.torn`, each with one call of `warn`.
    """
    if not parent.is_dir():
        return None
    files.sweep(parent)
    for checkpoint in steps(parent)[::-1]:
        try:
            verify(checkpoint)
            return checkpoint
        except TornError as error:
            warn(f"{error}; this checkpoint is torn and {_move_aside(checkpoint)}; the one before is used")
        except LlmtoolError as error:
            warn(f"{error}; this checkpoint cannot be read, the one before is used")
    return None


def steps(parent: Path) -> list[Path]:
    """The checkpoint directories in `parent` by step, unverified."""
    if not parent.is_dir():
        return []
    with files.disk_errors(parent):
        found = [path for path in parent.iterdir() if STEP.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=lambda path: (step_of(path) or 0, path.name))


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, atomically; only an older link is replaced."""
    if os.path.lexists(link) and not link.is_symlink():
        raise LlmtoolError(f"{link}: exists and is not a symbolic link")
    temporary = files.temporary_beside(link)
    with files.disk_errors(link):
        try:
            files.fs.symlink(os.path.relpath(target.absolute(), link.parent.absolute()), temporary)
            files.fs.rename(temporary, link)
        except OSError:
            with contextlib.suppress(OSError):
                files.fs.unlink(temporary)
            raise
        files.fs.sync(link.parent)


def prune(parent: Path, keep: set[str]) -> list[Path]:
    """Remove the checkpoints of `parent` that are not named in `keep`, and nothing else; returns them."""
    removed = [path for path in steps(parent) if path.name not in keep]
    for path in removed:
        files.remove_tree(path)
    return removed


# --- the manifest -------------------------------------------------------------------------------------------


def _describe(directory: Path, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    with files.disk_errors(directory):
        names = sorted(_walk(directory))
    if MANIFEST in names:
        raise LlmtoolError(f"{directory / MANIFEST}: this name is kept for the manifest")
    if unseen := sorted(known.keys() - set(names)):
        raise LlmtoolError(
            f"{directory / unseen[0]}: another rank has written it and it is not here: the directory of the "
            "run must be one that all ranks share"
        )
    found = known | entries(directory, [directory / name for name in names if name not in known])
    return {name: found[name] for name in names}


def entries(directory: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """What the manifest says of these files."""
    with files.disk_errors(directory):
        sizes = {path: path.stat().st_size for path in paths}
    return {
        path.relative_to(directory).as_posix(): {"size": size, "hash": files.hash_file(path)}
        for path, size in sizes.items()
    }


def _manifest_bytes(entries: dict[str, dict[str, Any]]) -> bytes:
    return files.json_bytes({"format": FORMAT, "files": entries})


def hashes(directory: Path) -> dict[str, str]:
    """File -> hash of its content, as the manifest records it. Raises TornError where there is none."""
    return {name: entry["hash"] for name, entry in _read_manifest(directory).items()}


def _read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / MANIFEST
    with files.disk_errors(directory):
        if path.is_symlink() or not path.is_file():
            problem = (
                "missing; the checkpoint was not finished" if directory.is_dir() else "no such checkpoint"
            )
            raise TornError(f"{path}: {problem}")
        data = path.read_bytes()
    try:
        document = json.loads(data)
        entries = document["files"]
        if document["format"] != FORMAT:
            raise TornError(f"{path}: format {document['format']!r}; this llmtool reads format {FORMAT}")
        for entry in entries.values():
            if type(entry["size"]) is not int or not isinstance(entry["hash"], str):
                raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TornError(f"{path}: not a manifest") from None
    for name in entries:
        pure = PurePosixPath(name)
        if (
            pure.is_absolute()
            or ".." in pure.parts
            or str(pure) != name
            or "\0" in name
            or name in (".", MANIFEST)
        ):
            raise TornError(f"{path}: {name!r} is not the name of a file inside the checkpoint")
    # any other spelling is not ours: even a lost newline at the end counts
    if _manifest_bytes(entries) != data:
        raise TornError(f"{path}: not as it was written")
    return entries


def _walk(directory: Path) -> set[str]:
    """Names of the files under `directory`, with `/`, relative to it; links and devices are refused."""
    found: set[str] = set()
    folders = [directory]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    raise TornError(f"{path}: a symbolic link; a checkpoint holds only plain files")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.add(path.relative_to(directory).as_posix())
                else:
                    raise TornError(f"{path}: not a regular file")
    return found


def _move_aside(checkpoint: Path) -> str:
    aside = checkpoint.with_name(f"{checkpoint.name}.torn")
    number = 2
    while os.path.lexists(aside):
        aside = checkpoint.with_name(f"{checkpoint.name}.torn-{number}")
        number += 1
    try:
        files.fs.rename(checkpoint, aside)
        files.fs.sync(checkpoint.parent)
    except OSError as error:
        return f"could not be moved aside ({error.strerror})"
    return f"was moved to {aside.name}"
