"""Files that lie elsewhere: paths that are URLs (s3://, gs://, hf://, https://), read through fsspec.

They stand in the place of paths: what readers ask of one (name, suffix, size, bytes) these have too. Every
question has a deadline, what breaks off is taken up again where it was, and no message holds a credential:
those come from where each library looks for them (environment, ~/.aws, ~/.netrc), or stand in the URL.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import queue
import re
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from llmtool.core import files
from llmtool.core.errors import ConfigError, DataError
from llmtool.core.urls import shown, without_secrets
from llmtool.data.endings import plain

T = TypeVar("T")

DEADLINE = 60.0  # seconds for the answer to a question, and for each block
TRIES = 3  # to read on from where a connection broke off
PAUSE = 1.0  # seconds before the second try; each further one waits so much longer
BLOCK = 1 << 20  # bytes asked for at once
WEB = ("http", "https")
# What leads back to this machine, or into files of another kind: fsspec's local file systems and wrappers.
REFUSED = {
    "file", "local", "reference", "cached", "blockcache", "filecache", "simplecache", "dir", "data", "zip",
    "tar", "libarchive", "jupyter", "jlab", "dask", "git", "generic", "async_wrapper", "asynclocal",
}  # fmt: skip
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
            "hf": "huggingface_hub"}  # fmt: skip
# Who logs what comes back as an error too: each connection that broke off, and tracebacks.
TALKERS = ("asyncio", "gcsfs")
# What file systems call a file's version, surest first; where there is none, the time of its last change.
VERSIONS = ("ETag", "etag", "blob_id", "oid", "sha256", "md5Hash", "Content-MD5", "content_md5", "checksum",
            "generation", "VersionId", "crc32c")  # fmt: skip
TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "modified", "created")

_STARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::(?=.*://))")


def is_url(path: str) -> bool:
    """Whether a path is one of these, or looks as if it was meant so."""
    return _STARTS.match(path) is not None


def check(url: str) -> None:
    """ValueError, without what is secret in it, for a URL that is not read."""
    found = _STARTS.match(url)
    assert found is not None
    scheme, name = found[1].lower(), shown(url)
    if found[2] == "::" or re.search(r"::[A-Za-z][A-Za-z0-9+.-]*(://|::)", url):
        raise ValueError(f"{name}: URLs chained by :: are not read; name the file itself")
    if scheme in REFUSED:
        raise ValueError(f"{name}: {scheme}:// is not read; a file of this machine has a plain path")
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise ValueError(f"{name}: {scheme}:// is no file system that is known (s3, gs, az, hf, https, ...)")
    if scheme in WEB and "*" in url.partition("?")[0]:
        raise ValueError(f"{name}: a web server lists no files: name each of them")


@dataclass(frozen=True)
class Stat:
    """What a file system says of a file, as os.stat does; st_mtime_ns: a number that its version has."""

    st_size: int
    st_mtime_ns: int
    st_mode: int = stat.S_IFREG | 0o444


class Remote:
    """A file that lies elsewhere. Two are equal where their URLs are, without what is secret in these."""

    def __init__(self, url: str, info: Mapping[str, Any] | None = None) -> None:
        self._url, self._info, self._shown = url, info, shown(url)
        path = url.partition("://")[2].partition("?")[0] if self.scheme in WEB else url.partition("://")[2]
        self.name = PurePosixPath(path).name
        self.suffix = PurePosixPath(path).suffix

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Remote({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._shown == self._shown

    def __hash__(self) -> int:
        return hash(self._shown)

    @property
    def scheme(self) -> str:
        """`s3`, `https`, ..."""
        return self._url.partition("://")[0].lower()

    def resolve(self) -> Remote:
        """Itself: it has one name."""
        return self

    def stat(self) -> Stat:
        """Its size (0 where not known) and version. DataError where it is not there, or out of reach."""
        size, version = self._known()
        number = int(files.hash_bytes(json.dumps([size, version]).encode())[-15:], 16)
        return Stat(size or 0, number)

    def token(self) -> str:
        """What stands for the hash of its bytes: its size and version. DataError where neither is known."""
        size, version = self._known()
        if size is None and version is None:
            raise DataError(
                f"{self}: the server tells neither its size nor a version (ETag, Last-Modified): a change "
                "would go unseen; copy it here"
            )
        return f"remote:{files.hash_bytes(json.dumps([size, version]).encode())}"

    def note(self) -> list[str]:
        """What a person should know of how changes are seen."""
        weak = self._known()[1] is None
        return [
            f"{self}: its server tells no version, only its size: a change of equal length goes unseen"
        ] * weak

    def open(self, mode: str = "rb", seeks: bool = False) -> BinaryIO:
        """Its bytes, as they come. seeks: in any order. OSError, without secrets, where they break off."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(_Stream(self, seeks), BLOCK))

    def _known(self) -> tuple[int | None, str | None]:
        """(size, version), asked for once."""
        if self._info is None:
            system, path = _system(self._url)
            self._info = asked(self, lambda: system.info(path))
        info = self._info
        if info.get("type") == "directory":
            raise DataError(f"{self}: not a file")
        version = next((info[name] for name in (*VERSIONS, *TIMES) if info.get(name)), None)
        size = info.get("size")
        return None if size is None else int(size), None if version is None else str(version)

    def opened(self, at: int, seeks: bool) -> Any:
        """fsspec's file, which stands at byte `at`."""
        system, path = _system(self._url)
        if self.scheme in WEB and not seeks and not at:
            return system.open(path, "rb", block_size=0)  # one request for all of it
        file = system.open(path, "rb", block_size=4 * BLOCK, cache_type="readahead")
        file.seek(at)
        return file


def notes(paths: Iterable[Path]) -> list[str]:
    """What a person should know of how changes of these files are seen."""
    remotes: list[Any] = [path for path in paths if isinstance(path, Remote)]
    return [note for path in remotes for note in path.note()]


class _Stream(io.RawIOBase):
    """The bytes of a remote file from one place on, each read with its deadline."""

    def __init__(self, remote: Remote, seeks: bool) -> None:
        self._remote, self._seeks, self._at = remote, seeks, 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self._remote.stat().st_size
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset != self._at:
            self._let_go()
            self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _read(self, count: int) -> bytes:
        for number in range(1, TRIES + 1):
            try:
                # what hangs is left behind with its file: nothing of it comes back here
                self._file, data = within(DEADLINE, partial(self._of_file, self._file, count))
                if not data and self._at < (size := self._remote.stat().st_size):
                    raise EOFError(f"it ends after {self._at:,} of {size:,} bytes")
                return data
            except (ConfigError, DataError):
                raise
            except Exception as error:
                self._let_go()
                if number == TRIES or _is_final(error):
                    raise OSError(errno.EIO, reason(error)) from None
                time.sleep(PAUSE * number)
        raise AssertionError

    def _of_file(self, file: Any, count: int) -> tuple[Any, bytes]:
        file = self._remote.opened(self._at, self._seeks) if file is None else file
        return file, file.read(count)

    def _let_go(self) -> None:
        """Close fsspec's file; not waited for, since it may be what hangs."""
        if self._file is not None:
            threading.Thread(target=_closed, args=(self._file,), daemon=True).start()
            self._file = None


def _closed(file: Any) -> None:
    with contextlib.suppress(Exception):  # a connection that broke, of which nothing is needed any more
        file.close()


def expand(url: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a URL names: itself, the matching files below a folder, or those of a glob; sorted, with
    what the file system says of them now. Hidden ones are left out.

    DataError where there is none, or the file system cannot be reached.
    """
    given = Remote(url)
    if given.scheme in WEB:
        return [cast(Path, given)]
    url = url.rstrip("/")
    system, path = _system(url)
    system.invalidate_cache()
    if any(sign in path for sign in "*?["):
        listed = asked(given, lambda: system.glob(path, detail=True))
        missing, named = f"{given}: no file matches", True
    else:
        info = asked(given, lambda: system.info(path))
        if info["type"] != "directory":
            return [cast(Path, Remote(url, info))]
        listed = asked(given, lambda: system.find(path, detail=True))
        ends = " or ".join(suffixes)
        missing, named = f"{given}: this folder has no file that ends in {ends} (or .gz, .zst)", False
    begins = url[: -len(path)] if path and url.endswith(path) else f"{given.scheme}://"
    found = []
    for name, info in sorted(listed.items()):
        below = name[len(path) :].split("/") if not named else [name.rpartition("/")[2]]
        hidden = any(part.startswith(".") for part in below)
        if info["type"] == "file" and (named or plain(name).endswith(suffixes)) and not hidden:
            found.append(cast(Path, Remote(begins + name, info)))
    if not found:
        raise DataError(missing)
    return found


def asked(remote: Remote, question: Callable[[], T]) -> T:
    """The answer of a file system; DataError, which begins with the file's name, where it gives none."""
    try:
        return within(DEADLINE, question)
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{remote}: {reason(error)}") from None


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives, done by a thread that is left behind where it takes longer: TimeoutError."""
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # whatever it is, it is the caller's
            done.put((None, error))

    threading.Thread(target=run, name="remote", daemon=True).start()
    try:
        found, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(T, found)


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a line without secrets."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    status = _status(chain)
    if status == 404 or (isinstance(error, FileNotFoundError) and len(chain) == 1):
        return "no such file"
    if status in (401, 403) or isinstance(error, PermissionError):
        return (
            "access is refused; which credentials are used, its own library says (environment, ~/.netrc, ...)"
        )
    if status is not None:
        named = getattr(chain[-1], "message", "")
        return f"the server answers {status}" + (f" ({named})" if named else "")
    if isinstance(chain[-1], ssl.SSLCertVerificationError):
        why = getattr(chain[-1], "verify_message", "")
        return f"its certificate is not trusted ({why}); SSL_CERT_FILE names a file of those that are"
    told = chain[1] if isinstance(error, FileNotFoundError) else error
    if type(told).__name__ == "TooManyRedirects":
        return "redirects without an end"
    if type(told).__name__ == "ClientPayloadError":
        return "the connection breaks off again and again"
    if isinstance(told, TimeoutError) and not str(told):
        return f"no answer within {DEADLINE:g} s"
    said = " ".join(without_secrets(str(told)).split()) or type(told).__name__
    if "Redirect" in type(told).__name__:
        said = f"redirects to {said}, which is not followed"
    return said[:200]


def _status(errors: list[BaseException]) -> int | None:
    """What a web server answered: aiohttp's errors have its status, the hub's the whole answer."""
    for error in errors:
        for status in (getattr(error, "status", 0), getattr(getattr(error, "response", 0), "status_code", 0)):
            if isinstance(status, int) and status:
                return status
    return None


def _is_final(error: BaseException) -> bool:
    """Whether another try would end so too."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    status = _status(causes)
    refused = isinstance(error, FileNotFoundError | PermissionError) and len(causes) == 1
    return refused or (status is not None and 400 <= status < 500 and status not in (408, 429))


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. ConfigError where a package is missing."""
    import fsspec

    given = url.partition("://")[0]
    scheme = given.lower()
    url = scheme + url[len(given) :]  # fsspec knows a scheme in small letters alone
    options: dict[str, Any] = {}
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if scheme in WEB:
            import aiohttp

            waits = aiohttp.ClientTimeout(total=None, sock_connect=DEADLINE, sock_read=DEADLINE)
            options = {"client_kwargs": {"timeout": waits, "trust_env": True}}
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except ImportError:
        package = PACKAGES.get(scheme)
        needs = f"`pip install {package}`" if package else "`pip install 'llmtool[remote]'`"
        raise ConfigError(f"data.source.path: {needs} reads {scheme}:// ({shown(url)})") from None
    except Exception as error:
        raise DataError(f"{shown(url)}: {reason(error)}") from None
    return found
