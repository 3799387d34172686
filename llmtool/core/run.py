"""One stage of a run directory: its lock, whether its work still stands, and `result.json` at the end.

    <root>/.lock                  held (flock) by the one process that writes here
    <root>/<stage>/.record.json   what the files belong to: key, status, result; written when work begins;
                                  beside them the stamps of the inputs (core/freshness.py)
    <root>/<stage>/result.json    what the last command said, on failure too; for people, Make and CI
    <root>/.previous/<stage>      the finished work that the present one replaced (one generation)
    <root>/.previous/<stage>.unfinished     the same for work that was never finished

Freshness is judged by the record, so that a mistyped option, or a Make that deletes the target of a failed
rule, costs no finished work.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from llmtool.core import files
from llmtool.core.environment import environment
from llmtool.core.errors import Cancelled, ConfigError, Interrupted, LlmtoolError, Terminated
from llmtool.core.freshness import Hashes, compare

FORMAT = 1
RECORD = ".record.json"
RESULT = "result.json"
LOCK = ".lock"
PREVIOUS = ".previous"
UNFINISHED = "the last"  # how it is said that work was begun and not finished
VIEW = ".html"  # drawn from results, and drawn again by `llmtool report`

State = Literal["new", "fresh", "changed", "unfinished"]


class Run:
    """A stage while a command works on it. Use as a context manager:

        with Run.open(root="runs/iris", stage="prepare", key=key) as run:
            if run.fresh:
                return run.result
            if run.state == "changed":
                run.start_over()
            ...
            run.finish(metrics={...})

    directory: where the stage's files go. It exists unless `fresh`; while `state` is "changed" it still holds
    the old work.
    state: "new": no work here yet; "fresh": done, and nothing it depends on changed: nothing is written at
        all; "unfinished": the same work was begun and may be resumed; "changed": call `start_over` before
        writing.
    changes: why it is not fresh, one line each: `train.optimizer.lr: 0.001 -> 0.0003`.
    result: the document of `result.json` (when fresh, the one that stands there).
    """

    def __init__(
        self,
        root: Path,
        stage: str,
        key: dict[str, Any],
        force: bool = False,
        resumable: bool = False,
        hashes: Hashes | None = None,
    ) -> None:
        self.root, self.stage, self.key = root, stage, files.plain(key)
        self.directory = root / stage
        self.state: State = "new"
        self.changes: list[str] = []
        self.result: dict[str, Any] = {}
        self._force, self._resumable = force, resumable
        self._hashes = hashes or hashes_of(root, stage)
        self._lock: int | None = None
        self._begun = False
        self._follows = False
        self._finished: dict[str, Any] | None = None
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    @classmethod
    def open(
        cls,
        root: str | Path,
        stage: str,
        key: dict[str, Any],
        force: bool = False,
        resumable: bool = False,
        hashes: Hashes | None = None,
    ) -> Run:
        """Judge the stage against `key` and, unless it is fresh, take the run's lock.

        key: {"config": nested plain data, "inputs": {name: hash}, "code": code_version()}.
        force: treat finished work as changed.
        resumable: whether this stage can go on from what an earlier process left unfinished.
        hashes: `hashes_of` this stage, where the inputs were hashed by them.
        Raises ConfigError when `root` cannot hold a run, LlmtoolError when another process works on it.
        """
        run = cls(_checked(root), stage, key, force, resumable, hashes)
        _check_stage(run.directory)
        record = run._judge()
        if run.fresh:
            run._restore(record)
            return run
        _make_root(run.root)
        run._lock = _acquire(run.root)
        try:
            record = run._judge()  # another process may have finished it just now
            if not force and run.state in ("new", "changed") and record.get("status") != "done":
                record = run._bring_back() or record
            if run.fresh:
                run._restore(record)
                run._release()
            elif run.state != "changed":
                run._begin()
        except BaseException:
            run._release()
            raise
        return run

    @classmethod
    def judge(cls, root: str | Path, stage: str, key: dict[str, Any], hashes: Hashes | None = None) -> Run:
        """Look at the stage only: `state` and `changes` are set, nothing is locked or written."""
        run = cls(_checked(root), stage, key, hashes=hashes)
        run._judge()
        return run

    @classmethod
    def follow(cls, root: str | Path, stage: str, key: dict[str, Any], state: State) -> Run:
        """The stage as a process sees it that works on it beside the one that has opened it, and found
        `state`: nothing is locked or written."""
        run = cls(_checked(root), stage, key)
        run.state, run._follows = state, True
        return run

    @property
    def fresh(self) -> bool:
        return self.state == "fresh"

    def start_over(self) -> None:
        """Move what is in `directory` aside to `<root>/.previous` and begin with an empty one."""
        assert self._lock is not None, "only a run that holds the lock may write"
        self._clear()
        self._begin()

    def keep(self) -> None:
        """Go on with what is in `directory` with this key instead (`--resume`)."""
        assert self._lock is not None, "only a run that holds the lock may write"
        self._begin()

    def finish(self, metrics: dict[str, Any] | None = None, **fields: Any) -> None:
        """Say what `result.json` will hold. May be called more than once; later fields win.

        The status stays open until the block ends: an exception after `finish` (a `require:` unmet) keeps the
        figures.
        """
        if self._follows:
            return
        assert self._begun, "finish() without work: call start_over() first when state is 'changed'"
        kept = self._finished or {"metrics": {}}
        self._finished = {**kept, **fields, "metrics": {**kept["metrics"], **(metrics or {})}}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        try:
            if error is None:
                assert self._finished is not None, "the block ended without finish()"
                self._write()
            else:
                with contextlib.suppress(LlmtoolError, TypeError):  # the disk may be what failed
                    self._write(error)
        finally:
            self._release()

    # --- inside ---------------------------------------------------------------------------------------------

    def _judge(self) -> dict[str, Any]:
        record = _read_record(self.directory)
        if record is None:
            self.state, self.changes = "new", []
            return {}
        status = record.get("status")
        self.changes = compare(record["key"], self.key) if record["key"] else [f"{RECORD} cannot be read"]
        if self.changes:
            self.state = "changed"
        elif status != "done":
            self.state = "unfinished" if self._resumable else "changed"
            self.changes = [f"{UNFINISHED} {self.stage} did not finish ({_spoken(status)})"]
        elif wrong := self._wrong(self.directory, record):
            self.state = "unfinished" if self._resumable else "changed"
            self.changes = wrong
        else:
            self.state = "fresh"
        if self._force and self.state != "new":
            self.state, self.changes = "changed", [*self.changes, "--force"]
        return record

    def _clear(self) -> None:
        """Leave no directory: work goes to `.previous`, a mere record of a failure goes away."""
        if any(path.name not in (RECORD, RESULT) for path in _entries(self.directory)):
            done = (_read_record(self.directory) or {}).get("status") == "done"
            aside = self.root / PREVIOUS / (self.stage if done else f"{self.stage}.unfinished")
            files.make_directories(aside.parent)
            files.replace_directory(self.directory, aside)
        else:
            files.remove_tree(self.directory)

    def _bring_back(self) -> dict[str, Any] | None:
        """Take finished work back that a failed attempt with another key had replaced."""
        kept = self.root / PREVIOUS / self.stage
        record = _read_record(kept)
        if record is None or record.get("status") != "done" or compare(record["key"], self.key):
            return None
        attempt = _read_record(self.directory)
        if self._wrong(kept, record) or (attempt and not compare(attempt["key"], self.key)):
            return None  # the attempt was at this very key: a forced rerun, not a mistake
        self._clear()
        files.replace_directory(kept, self.directory)
        return self._judge()

    def _restore(self, record: dict[str, Any]) -> None:
        """Put `result.json` back, with its old time, where a failed command or Make took it away."""
        self.result = record["result"]
        path = self.directory / RESULT
        data = files.json_bytes(self.result)
        with files.disk_errors(path):
            if path.is_file() and path.read_bytes() == data:
                return
            changed = (self.directory / RECORD).stat().st_mtime_ns
            files.write_bytes(path, data)
            files.fs.set_time(path, changed)

    def _begin(self) -> None:
        files.make_directories(self.directory)
        files.sweep(self.directory)
        self._begun = True
        files.write_json(self.directory / RECORD, {"format": FORMAT, "status": "running", "key": self.key})

    def _write(self, error: BaseException | None = None) -> None:
        self.result = document(self.stage, error, self._started, time.monotonic() - self._clock, self.key)
        self.result |= self._finished or {}
        if self._begun:
            record = {"format": FORMAT, "status": self.result["status"], "key": self.key}
            if error is None:
                files.sync_tree(self.directory)  # what the record calls done is on the disk
                record["outputs"] = {path.name: self._noted(path) for path in _entries(self.directory)}
                record["result"] = self.result = files.plain(self.result)
                record["seen"] = self._hashes.seen
            files.write_json(self.directory / RECORD, record)
        files.write_json(self.directory / RESULT, self.result)

    def _noted(self, path: Path) -> str | None:
        """The hash of a file that we wrote; None of a directory (a checkpoint has a manifest), a link or what
        may be written again."""
        if path.name in (RECORD, RESULT) or path.suffix == VIEW or path.is_symlink() or not path.is_file():
            return None
        content = self._hashes.hash(path)
        self._hashes.written(path, content)
        return content

    def _wrong(self, directory: Path, record: dict[str, Any]) -> list[str]:
        """Which of the outputs are not there any more, or not as they were written."""
        said = []
        outputs = record.get("outputs") or {}
        for name in [name for name in outputs if name not in (RESULT, RECORD)]:
            path, content = directory / str(name), outputs[name] if isinstance(outputs, dict) else None
            if not path.exists():
                said.append(f"{path}: missing")
            elif content is not None:
                with contextlib.suppress(LlmtoolError):
                    if self._hashes.hash(path) == content:
                        continue
                said.append(f"{path}: contents changed")
        return said

    def _release(self) -> None:
        if self._lock is not None:
            _let_go(self._lock)
            self._lock = None


def hashes_of(root: str | Path, stage: str) -> Hashes:
    """Hashes that know the files which the stage's last work hashed."""
    return Hashes((_read_record(_checked(root) / stage) or {}).get("seen"))


def failed_result(
    root: str | Path, stage: str, error: BaseException, /, *, beside: bool = False, **fields: Any
) -> None:
    """Write `result.json` for a command that failed before its Run was open (a bad config, no data). Best
    effort, never raises.

    fields: what it says besides, or instead. beside: another thread of this process may hold the lock.
    Finished work stays good: the next command with the old config is a no-op again. Nothing is written into a
    run that another process works on, nor into a directory that is not ours.
    """
    with contextlib.suppress(LlmtoolError, OSError, TypeError, ValueError):
        directory = _checked(root) / stage
        _check_stage(directory)
        files.make_directories(directory.parent)
        lock = None if beside and _held_here(directory.parent) else _acquire(directory.parent)
        try:
            files.make_directories(directory)
            said = document(stage, error, datetime.now(UTC), 0.0, None)
            files.write_json(directory / RESULT, said | fields)
        finally:
            if lock is not None:
                _let_go(lock)


def document(
    stage: str, error: BaseException | None, started: datetime, seconds: float, key: dict[str, Any] | None
) -> dict[str, Any]:
    """What every result.json says; key: that of the work, None where it did not come to that."""
    status, code = outcome(error)
    wordless = status if isinstance(error, KeyboardInterrupt) else type(error).__name__
    return {
        "format": FORMAT,
        "command": stage,
        "status": status,
        "exit_code": code,
        "error": None if error is None else str(error) or wordless,
        "config": None,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "metrics": {},
        "fingerprints": dict((key or {}).get("inputs") or {}),
        "lineage": None,
        "key": key,
        "versions": environment(),
    }


def outcome(error: BaseException | None) -> tuple[str, int]:
    """Status and exit code of a command that ended with `error` (None: without one)."""
    if error is None:
        return "done", 0
    if isinstance(error, LlmtoolError):
        return error.status, error.exit_code
    if isinstance(error, Terminated):
        return Interrupted.status, Interrupted.exit_code
    if isinstance(error, KeyboardInterrupt):
        return Cancelled.status, Cancelled.exit_code
    return LlmtoolError.status, LlmtoolError.exit_code


def refuse_place(root: str | Path, stages: list[str]) -> None:
    """Raise what opening these stages would, without writing into the run: a place that cannot hold it, may
    not be written, or that another process works on."""
    path = _checked(root)
    for name in stages:
        _check_stage(path / name)
    place = path
    while not os.path.lexists(place):
        place = place.parent
    for spot in [place, *(path / name for name in stages if (path / name).is_dir())]:
        if not os.access(spot, os.W_OK | os.X_OK):
            raise ConfigError(f"run: {spot}: nothing may be written here")
    if (path / LOCK).is_file() and (path / LOCK).stat().st_size:  # while nobody holds it, it is empty
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(path, descriptor) from None
        finally:
            os.close(descriptor)


# --- places and the lock ------------------------------------------------------------------------------------


def _checked(root: str | Path) -> Path:
    text = os.fspath(root)
    if not text.strip() or "\0" in text:
        raise ConfigError(f"run: {text!r} is not the name of a directory")
    path = Path(text)
    try:
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"run: {text} is a symbolic link that leads nowhere")
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # names that are too long, a file on the way, a directory we may not enter
        place = path
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise ConfigError(f"run: {place} is not a directory")
    except OSError as error:
        raise ConfigError(f"run: {text}: {(error.strerror or str(error)).lower()}") from None
    return path


def _make_root(root: Path) -> None:
    """Create the run's directory. A place where none can be is the config's fault, a full disk is not."""
    try:
        files.make_directories(root)
    except LlmtoolError as error:
        reason = getattr(error.__cause__, "errno", None)
        if reason in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(f"run: {error}") from None
        raise


def _check_stage(directory: Path) -> None:
    try:
        if directory.is_symlink() or (os.path.lexists(directory) and not directory.is_dir()):
            raise ConfigError(f"run: {directory} is in the way; it must be a directory, or not exist yet")
        ours = any(os.path.lexists(directory / name) for name in (RECORD, RESULT))
        if not ours and _entries(directory):
            raise ConfigError(f"run: {directory} holds files that are not llmtool's; choose another `run:`")
    except OSError as error:
        raise ConfigError(f"run: {directory}: {(error.strerror or str(error)).lower()}") from None


def _entries(directory: Path) -> list[Path]:
    """What is in a stage's directory, but for temporary files."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith(files.TEMPORARY))


def _read_record(directory: Path) -> dict[str, Any] | None:
    """The stage's record; {"key": {}} when it cannot be read, None when no work was begun here."""
    if not os.path.lexists(directory / RECORD):
        return None
    try:
        record = files.read_json(directory / RECORD)
    except LlmtoolError:
        record = None
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or not isinstance(record.get("key"), dict)
    ):
        return {"key": {}}
    if record.get("status") == "done" and not isinstance(record.get("result"), dict):
        return {"key": {}}
    return record


def _spoken(status: Any) -> str:
    return "killed, or the machine went down" if status == "running" else str(status).replace("_", " ")


def _acquire(root: Path) -> int:
    """The descriptor that holds the run's lock; the kernel lets go of it however the process ends."""
    path = root / LOCK
    with files.disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _held(root, descriptor)
            os.close(descriptor)
            raise held from None
        except OSError:
            os.close(descriptor)
            raise
        # not the options: they may be private
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])[:200]
        holder_line = f"process {os.getpid()} on {socket.gethostname()} ({command!a})\n"
        with contextlib.suppress(OSError):  # a full disk: the lock holds, nameless
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder_line.encode(), 0)
        return descriptor


def _held(root: Path, descriptor: int) -> LlmtoolError:
    holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
    who = holder or "another llmtool process"
    return LlmtoolError(f"{root}: {who} is working on this run; wait for it or choose another `run:`")


def _held_here(root: Path) -> bool:
    """Whether this very process works on the run."""
    with contextlib.suppress(OSError):
        return (root / LOCK).read_text().startswith(f"process {os.getpid()} on {socket.gethostname()} (")
    return False


def _let_go(lock: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
    os.close(lock)
