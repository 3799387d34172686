"""A disk that loses power, fills up or breaks at the n-th operation, laid under core/files.py."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

from llmtool.core.files import Fs


class Crash(BaseException):
    """The power is gone; not an Exception, as no handler runs after a power cut."""


class CrashFs(Fs):
    """Works on the real files under `root` and remembers what a power cut would leave of them.

    at: the operation (from 1) that fails; it happens in part or not at all, and with error=None none works
    after it.
    error: None for a power cut, or an errno (ENOSPC, EIO) with which that one operation fails.
    repeat: with an errno, whether every later writing operation fails too (a disk that stays full).
    """

    def __init__(self, root: Path, at: int = 0, error: int | None = None, repeat: bool = False) -> None:
        self.root, self.at, self.error, self.repeat = root, at, error, repeat
        self.count = 0
        self.contents: dict[int, bytes] = {}  # inode -> bytes at its last sync
        self.names: dict[
            int, dict[str, int | str]
        ] = {}  # directory inode -> {name: inode, or the target of a link}
        self.folders: set[int] = set()  # every inode that is, or was, a directory
        self.numbers: dict[int, int] = {}  # inode -> its number by first sight: what a draw goes by
        self.graveyard = Path(tempfile.mkdtemp(prefix=root.name, dir=root.parent))
        self.adopt(root)

    def adopt(self, directory: Path) -> None:
        """Take what is on the disk now as durable."""
        for folder, inner, names in os.walk(directory):
            inner.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if not path.is_symlink():
                    self._remember(path)
            self._remember(Path(folder))

    def _remember(self, path: Path) -> None:
        self._number(path.stat().st_ino)
        if not path.is_dir():
            self.contents[path.stat().st_ino] = path.read_bytes()
            return
        entries: dict[str, int | str] = {}
        for entry in sorted(os.scandir(path), key=lambda one: one.name):
            entries[entry.name] = os.readlink(entry.path) if entry.is_symlink() else entry.stat().st_ino
            if not entry.is_symlink():
                self._number(entry.stat().st_ino)
            if entry.is_dir(follow_symlinks=False):
                self.folders.add(entry.stat().st_ino)
        self.names[path.stat().st_ino] = entries
        self.folders.add(path.stat().st_ino)

    def _number(self, inode: int) -> int:
        """The same in every run of a test, as the file system's own numbers are not."""
        return self.numbers.setdefault(inode, len(self.numbers))

    # --- the operations, each counted -----------------------------------------------------------------------

    def tick(self, writes: bool = True) -> None:
        """One more operation; also called by tests for writes that do not go through Fs."""
        self.count += 1
        due = self.at and self.count == self.at
        if self.error is None and self.at and self.count >= self.at:
            raise Crash
        if self.error is not None and (due or (self.repeat and writes and self.at and self.count > self.at)):
            raise OSError(self.error, os.strerror(self.error))

    def write(self, path: Path, data: bytes) -> None:
        try:
            self.tick()
        except BaseException:
            if self.count == self.at:
                path.write_bytes(data[: len(data) // 2])  # a half-written file stays
            raise
        super().write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        self.tick()
        super().append(path, data)

    def sync(self, path: Path) -> None:
        self.tick()
        self._remember(path)

    def make_directory(self, path: Path) -> None:
        self.tick()
        super().make_directory(path)

    def _bury(self, path: Path) -> None:
        """Keep the inode of what loses its name: an unsynced name may still lead to it."""
        grave = self.graveyard / str(len(os.listdir(self.graveyard)))
        if path.is_dir() and not path.is_symlink():
            os.rename(path, grave)
        elif os.path.lexists(path):
            os.link(path, grave, follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        self.tick(writes=False)
        if not target.is_dir():
            self._bury(target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.tick(writes=False)
        self._bury(path)
        super().unlink(path)

    def remove_directory(self, path: Path) -> None:
        self.tick(writes=False)
        if not any(path.iterdir()):
            self._bury(path)
        else:
            super().remove_directory(path)

    def symlink(self, target: str, link: Path) -> None:
        self.tick()
        super().symlink(target, link)

    def set_time(self, path: Path, nanoseconds: int) -> None:
        self.tick()
        super().set_time(path, nanoseconds)

    # --- after the power cut --------------------------------------------------------------------------------

    def reboot(self, mode: str, seed: int = 0) -> None:
        """Rewrite `root` as the disk would be after the cut.

        mode: "keep": everything reached the disk; "drop": only what was synced; "torn": of each unsynced name
        and file a random part did (old bytes, a prefix of the new, or zeros in their length).
        """
        if mode == "keep":
            return
        now_names: dict[int, dict[str, int | str]] = {}
        now_contents: dict[int, bytes] = {}
        model = CrashFs.__new__(CrashFs)  # a second memory, of what is there now
        model.contents, model.names, model.folders = now_contents, now_names, self.folders
        model.numbers = self.numbers
        model.adopt(self.root)
        rebuilt = self.root.with_name(self.root.name + ".rebuilt")
        self._rebuild(rebuilt, self.root.stat().st_ino, now_names, now_contents, mode, seed)
        shutil.rmtree(self.root)
        rebuilt.rename(self.root)

    def _rebuild(
        self,
        place: Path,
        inode: int,
        now_names: dict[int, dict[str, int | str]],
        now_contents: dict[int, bytes],
        mode: str,
        seed: int,
    ) -> None:
        place.mkdir()
        old, new = self.names.get(inode, {}), now_names.get(inode, {})
        entries = dict(old)
        if mode == "torn":
            for name in sorted(old.keys() | new.keys()):
                moved = new.get(name, old.get(name))  # a rename is one event, in both its directories
                event = self._number(moved) if isinstance(moved, int) else moved
                if old.get(name) != new.get(name) and random.Random(f"{seed} {event}").random() < 0.5:
                    entries.pop(name, None)
                    if name in new:
                        entries[name] = new[name]
        for name, entry in entries.items():
            path = place / name
            if isinstance(entry, str):
                path.symlink_to(entry)
            elif entry in self.folders:
                self._rebuild(path, entry, now_names, now_contents, mode, seed)
            else:
                path.write_bytes(self._tear(entry, now_contents, mode, seed))

    def _tear(self, inode: int, now_contents: dict[int, bytes], mode: str, seed: int) -> bytes:
        durable = self.contents.get(inode, b"")
        latest = now_contents.get(inode, durable)
        if mode == "drop" or latest == durable:
            return durable
        draw = random.Random(f"{seed} {self._number(inode)} content")
        return draw.choice([durable, latest[: draw.randrange(len(latest) + 1)], bytes(len(latest)), latest])


def fill_disk(root: Path, at: int) -> CrashFs:
    """A disk that is full from the `at`-th operation on."""
    return CrashFs(root, at, errno.ENOSPC, repeat=True)
