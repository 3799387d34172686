"""What a stage's work belongs to: how two keys differ, and hashes of files that were not touched since.

A key is {"config": plain data, "inputs": {name: hash}, "code": code_version()}.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtool.core import files
from llmtool.core.config import FORMS

CODE_CHANGED = "llmtool's code changed"
LONGEST = 60  # characters of a value in a message
RACY = 2.0  # seconds; a file changed within so short a time before it was hashed may keep its stamp


# --- how two keys differ ------------------------------------------------------------------------------------


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two keys, one line each for a person; empty when they are the same."""
    lines = list(_sections(old.get("config") or {}, new.get("config") or {}, ""))
    before, now = old.get("inputs") or {}, new.get("inputs") or {}
    for name in _union(before, now):
        if name not in before:
            lines.append(f"{name}: new")
        elif name not in now:
            lines.append(f"{name}: not read any more")
        elif before[name] != now[name]:
            lines.append(f"{name}: contents changed")
    lines += _sections(_others(old), _others(new), "")
    if old.get("code") != new.get("code"):
        versions = [str(key.get("code") or "unknown") for key in (old, new)]
        short = [version.partition("+")[0] for version in versions]
        was, is_ = versions if short[0] == short[1] else short
        lines.append(f"{CODE_CHANGED} ({was} -> {is_})")
    return lines


def _others(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in ("config", "inputs", "code")}


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        yield from _sections(before, now, f"{name}.")
    elif isinstance(before, list) and isinstance(now, list):
        yield from _lists(before, now, name)
    elif before != now or isinstance(before, bool) != isinstance(now, bool):  # True == 1, in Python alone
        yield _line(name, *_texts(before, now))


def _sections(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[str]:
    other_form = any(
        form in before and form in now and isinstance(now[form], str) and before[form] != now[form]
        for form in FORMS  # which has other keys beside, and these go unsaid
    )
    for name in _union(before, now):
        if name in before and name in now:
            yield from _differences(before[name], now[name], f"{prefix}{name}")
        elif not other_form:
            shown = [text(side[name]) if name in side else "(not set)" for side in (before, now)]
            yield _line(f"{prefix}{name}", *shown)


def _lists(before: list[Any], now: list[Any], name: str) -> Iterator[str]:
    if not any(isinstance(item, dict | list) for item in [*before, *now]):
        if [(type(item), item) for item in before] != [(type(item), item) for item in now]:
            yield _line(name, *_words(before, now))
        return
    spelt = [[json.dumps(item, sort_keys=True) for item in side] for side in (before, now)]
    for _, was, was_end, here, here_end in _changed(*spelt):
        for offset in range(max(was_end - was, here_end - here)):
            if was + offset >= was_end:
                yield _line(f"{name}.{here + offset}", "(not set)", text(now[here + offset]))
            elif here + offset >= here_end:
                yield _line(f"{name}.{was + offset}", text(before[was + offset]), "(not set)")
            else:
                yield from _differences(before[was + offset], now[here + offset], f"{name}.{here + offset}")


def _changed(before: list[str], now: list[str]) -> list[tuple[str, int, int, int, int]]:
    codes = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    return [code for code in codes if code[0] != "equal"]


def _words(before: list[Any], now: list[Any]) -> tuple[str, str]:
    """Two lists of plain values; of long ones, those that went and those that came."""
    whole = text(before), text(now)
    if max(map(len, whole)) <= LONGEST:
        return whole
    gone, new = [x for x in before if x not in now], [x for x in now if x not in before]
    if not gone and not new:
        return f"{len(before)} items", f"{len(now)} in another order or number"
    parts = [f"{len(before)} items"] + ([f"without {_cut(text(gone))}"] if gone else [])
    return parts[0], ", ".join([*parts[1:], *([f"with {_cut(text(new))}"] if new else [])])


def _texts(before: Any, now: Any) -> tuple[str, str]:
    """Two values as text; of long ones that begin alike, from where they part."""
    was, is_ = text(before), text(now)
    pairs = enumerate(zip(was, is_, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(was), len(is_)))
    if same > LONGEST // 2 and max(len(was), len(is_)) > LONGEST:
        start = same - LONGEST // 4
        return f"...{was[start:]}", f"...{is_[start:]}"
    return was, is_


def _line(name: str, was: str, is_: str) -> str:
    return f"{name}: {_cut(was)} -> {_cut(is_)}"


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3]}..."


def _union(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [*now, *(name for name in before if name not in now)]


def text(value: Any) -> str:
    """Plain data on one line, as YAML would write it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{text(key)}: {text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/.<>=(][^\n\r\t\"'\[\]{},#:]*(?<! )", value):
        return value if value not in ("true", "false", "null") else f'"{value}"'
    return json.dumps(value, ensure_ascii=False)


# --- hashes of files ----------------------------------------------------------------------------------------


class Hashes:
    """Content hashes of the files that a stage depends on. One that its last work hashed already is not read
    again while size, times and inode are the same, and it was at rest by then; as git's index does
    (https://git-scm.com/docs/racy-git).

    seen: what the stage's record is to remember, {path: [size, mtime, ctime, inode, hash]}.
    """

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        self.known = known if isinstance(known, Mapping) else {}
        self.seen: dict[str, list[Any]] = {}
        self._here: dict[str, list[Any]] = {}  # hashed by this process, at rest or not

    def hash(self, path: Path) -> str:
        """The hash that `files.hash_file` gives. LlmtoolError where there is no such file."""
        name = str(path)
        with files.disk_errors(path):
            stamp = _stamp(path)
        for known in (self._here, self.known):
            if isinstance(entry := known.get(name), list) and entry[:-1] == stamp:
                if known is self.known:
                    self.seen[name] = entry
                return str(entry[-1])
        began = time.time()
        found = files.hash_file(path)
        self._here[name] = [*stamp, found]
        with files.disk_errors(path):
            if _stamp(path) == stamp and max(stamp[1:3]) / 1e9 + RACY < began:
                self.seen[name] = self._here[name]
        return found

    def written(self, path: Path, content: str) -> None:
        """Remember a file that we wrote ourselves, and whose hash is `content`."""
        with files.disk_errors(path):
            self.seen[str(path)] = self._here[str(path)] = [*_stamp(path), content]


def _stamp(path: Path) -> list[int]:
    """Opened, since a network's file system asks its server then."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
