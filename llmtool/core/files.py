"""The one seam for all that must survive a crash: atomic files, directory moves, hashes, disk errors.

Every durable write of the project goes through `fs`, an object of nine primitive operations, so that the
tests can crash, fill or tear the disk at each of them (after SQLite's method,
https://www.sqlite.org/testing.html#crash_testing). Bulk data (memory-mapped arrays, what `stream` writes bit
by bit) go into ordinary files where nobody looks yet; `fs` makes these durable and gives them their names.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from llmtool.core.errors import LlmtoolError

TEMPORARY = ".tmp-"  # what starts so is unfinished; whoever holds the run's lock may remove it
HASH_BLOCK = 1 << 20  # bytes


class Fs:
    """The primitive operations. Nothing is durable before `sync` of the file and of its directory."""

    def write(self, path: Path, data: bytes) -> None:
        """Create `path`, which must not exist, with these bytes."""
        self._write(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, data)

    def append(self, path: Path, data: bytes) -> None:
        """Add bytes at the end of `path`; all of them or, on an error, none."""
        self._write(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, data)

    def sync(self, path: Path) -> None:
        """Make the bytes of a file, or the names in a directory, survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_directory(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        os.rmdir(path)

    def symlink(self, target: str, link: Path) -> None:
        os.symlink(target, link)

    def set_time(self, path: Path, nanoseconds: int) -> None:
        """Set the time of last change."""
        os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)

    @staticmethod
    def _write(path: Path, flags: int, data: bytes) -> None:
        # O_NOFOLLOW: nobody can lead a write out of the run directory by placing a link there first
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


fs = Fs()


# --- errors -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError inside the block into a LlmtoolError that says what is wrong with `path`.

    needed: bytes that were about to be written, named in the message when the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise LlmtoolError(f"{path}: {_reason(error, path, needed)}") from error


def _reason(error: OSError, path: Path, needed: int | None) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left on the device" if error.errno == errno.ENOSPC else "disk quota exceeded"
        figures = [] if needed is None else [f"{needed:,} bytes needed"]
        with contextlib.suppress(OSError):
            figures.append(f"{free_bytes(path):,} bytes free")
        return f"{what} ({', '.join(figures)})" if figures else what
    if error.errno == errno.EIO:
        return "input/output error: the disk, or the connection to it, failed"
    if error.errno == errno.ELOOP:
        return "is a symbolic link, or leads through a loop of them; a plain file or directory is needed"
    return (error.strerror or str(error) or type(error).__name__).lower()


def free_bytes(path: Path) -> int:
    """Bytes free for us on the device that holds `path`, which need not exist yet."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


# --- single files -------------------------------------------------------------------------------------------


Held = list[tuple[Path, bytes]]  # files to be written, oldest first
_synced_later: ContextVar[bool] = ContextVar("synced_later", default=False)
_held: ContextVar[Held | None] = ContextVar("held", default=None)


@contextlib.contextmanager
def synced_later(held: Held | None = None) -> Iterator[None]:
    """Within it, and in this thread, whole files are written without waiting for the disk: for a directory
    that nobody looks into before `sync_tree` has made it durable.

    held: takes them in; they are written when `write_held` is called with it.
    """
    tokens = _synced_later.set(True), _held.set(held)
    try:
        yield
    finally:
        _synced_later.reset(tokens[0])
        _held.reset(tokens[1])


def write_held(held: Held) -> None:
    """Write what is held, and let go of it."""
    with synced_later():
        while held:
            write_bytes(*held.pop(0))


def write_bytes(path: Path, data: bytes) -> None:
    """Put a whole file at `path`: after a crash it is the old file or the new one, never a part."""
    if (held := _held.get()) is not None:
        held.append((path, data))
        return
    temporary = temporary_beside(path)
    with disk_errors(path, len(data)):
        try:
            fs.write(temporary, data)
            _name(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                fs.unlink(temporary)
            raise


@contextlib.contextmanager
def stream(path: Path) -> Iterator[BinaryIO]:
    """A file that is written bit by bit and gets its name once it is whole and durable; whatever ends the
    block before leaves nothing of it."""
    if (held := _held.get()) is not None:
        yield (buffer := io.BytesIO())
        held.append((path, buffer.getvalue()))
        return
    temporary = temporary_beside(path)
    with disk_errors(path):
        try:
            with open(temporary, "xb") as file:
                yield file
            _name(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                fs.unlink(temporary)
            raise


def _name(temporary: Path, path: Path) -> None:
    """Give a whole file its name, durably."""
    durable = not _synced_later.get()
    if durable:
        fs.sync(temporary)
    fs.rename(temporary, path)
    if durable:
        fs.sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Put UTF-8 text at `path`, as `write_bytes` does; half characters (lone surrogates) become `\\udcXX`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Put one JSON document at `path`, keys in their order; numbers that are not finite become null."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes that `write_json` writes."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # \udcXX inside a JSON string is a valid escape


def read_json(path: Path) -> Any:
    """The JSON document at `path`. Raises LlmtoolError, naming the file, when there is none."""
    with disk_errors(path):
        data = _regular(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise LlmtoolError(f"{path}: not a JSON document ({error})") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def append_line(path: Path, value: Any) -> None:
    """Add one line to a log: a string as it is, anything else as compact JSON.

    Nobody waits for the disk: after a power cut lines may be lost from the end, or the last be torn.
    """
    line = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    with disk_errors(path, len(data)):
        fs.append(path, data)


def read_lines(path: Path) -> list[str]:
    """The lines of a log. They end at line feeds alone: JSON may hold U+2028 and its like as they are.

    Bytes of a torn line that are no UTF-8 become U+FFFD. LlmtoolError where it cannot be read.
    """
    with disk_errors(path), open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return [line.removesuffix("\n") for line in file]


def sync(path: Path) -> None:
    """Make an ordinary file (or the names in a directory) durable now."""
    with disk_errors(path):
        fs.sync(path)


def plain(value: Any) -> Any:
    """`value` in JSON's types: paths as text, numpy and torch scalars as numbers, NaN and infinity None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


HashFile = Callable[[Path], str]  # `hash_file`, or one that knows some hashes


def hash_file(path: Path) -> str:
    """The content of a regular file: "xxh3:" + 32 hex digits (https://github.com/Cyan4973/xxHash)."""
    digest = xxhash.xxh3_128()
    with disk_errors(path), open(_regular(path), "rb", buffering=0) as file:
        block = bytearray(HASH_BLOCK)
        view = memoryview(block)
        while count := file.readinto(block):
            digest.update(view[:count])
    return f"xxh3:{digest.hexdigest()}"


def hash_bytes(data: bytes) -> str:
    """The same for bytes in memory."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def _regular(path: Path) -> Path:
    # reading a pipe or a device could wait for ever
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise LlmtoolError(f"{path}: not a regular file")
    return path


# --- directories --------------------------------------------------------------------------------------------


def temporary_beside(path: Path) -> Path:
    """A new name in the directory of `path` for what is to be renamed to `path`."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


def make_directories(path: Path) -> None:
    """Create `path` and the directories above it where they are missing, durably."""
    missing = []
    place = path
    with disk_errors(path):
        while not os.path.lexists(place):
            missing.append(place)
            place = place.parent
        if not place.is_dir():
            raise LlmtoolError(f"{place}: not a directory")
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process has just made it
                fs.make_directory(directory)
            fs.sync(directory.parent)


def sync_tree(directory: Path) -> None:
    """Make every file and every name under `directory` durable; links are not followed."""
    with disk_errors(directory):
        for folder, _, names in os.walk(directory, topdown=False, onerror=_raise):
            for name in sorted(names):
                if not os.path.islink(file := Path(folder, name)):
                    fs.sync(file)
            fs.sync(Path(folder))


def replace_directory(temporary: Path, final: Path) -> None:
    """Move the directory `temporary` to `final` (same device) and remove what stood there.

    `final` is synced before it gets its name. After a crash it is the old one, the new one or, between two
    renames, absent with the old one beside it under a temporary name.
    """
    sync_tree(temporary)
    with disk_errors(final):
        old = temporary_beside(final) if os.path.lexists(final) else None
        if old is not None:
            fs.rename(final, old)
        try:
            fs.rename(temporary, final)
        except OSError:
            if old is not None:
                with contextlib.suppress(OSError):
                    fs.rename(old, final)
            raise
        fs.sync(final.parent)
        if temporary.parent != final.parent:
            fs.sync(temporary.parent)
        if old is not None:
            _delete(old)


def remove_tree(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a directory with all in it; absent is fine.

    It loses its name first, so that a crash leaves temporary rubbish and never half of `path`.
    """
    if not os.path.lexists(path):
        return
    doomed = path if path.name.startswith(TEMPORARY) else temporary_beside(path)
    with disk_errors(path):
        if doomed != path:
            fs.rename(path, doomed)
            fs.sync(path.parent)
        _delete(doomed)


def sweep(directory: Path) -> list[Path]:
    """Remove the temporary files and directories that a crash left directly in `directory`; returns them.

    Only for the holder of the run's lock: another writer's unfinished work looks the same.
    """
    with disk_errors(directory):
        stale = sorted(path for path in directory.iterdir() if path.name.startswith(TEMPORARY))
    for path in stale:
        remove_tree(path)
    return stale


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        fs.unlink(path)
        return
    for folder, folders, names in os.walk(path, topdown=False, onerror=_raise):
        for name in names:
            fs.unlink(Path(folder, name))
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink():
                fs.unlink(inner)
            else:
                fs.remove_directory(inner)
    fs.remove_directory(path)


def _raise(error: OSError) -> None:
    raise error
