"""Results of work kept on disk until all of it is done, so that a killed command goes on from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.core import files
from llmtool.core.engine import Engine, Packed, Pending, Work

SUFFIX = ".part"


class Kept(Engine):
    """An engine that remembers: each result gets a file, and what has one is not done again.

    place: where they lie, below `root`, which holds nothing else; `key` names all that results depend on.
    """

    def __init__(self, engine: Engine, root: Path, key: str) -> None:
        super().__init__()
        self._engine, self._root, self.ahead, self.apart = engine, root, engine.ahead, engine.apart
        self._packings: list[_Packing] = []  # one for each work: engines know works by identity
        self.place = root / key
        if root.is_dir():
            for other in root.iterdir():
                if other.name != key:
                    files.remove_tree(other)
        files.make_directories(self.place)
        files.sweep(self.place)
        self._there = {_name(path): path for path in self.place.iterdir() if path.suffix == SUFFIX}

    def submit(self, work: Work, thing: Any, name: str = "") -> Pending:
        """Begin this work, unless its result is there. What has no name is not kept."""
        if not name:
            return self._engine.submit(work, thing)
        if name in self._there:
            return _Loading(self, name, lambda: self._begun(work, thing, name))
        return _Saving(self, name, self._begun(work, thing, name))

    def _begun(self, work: Work, thing: Any, name: str) -> Pending:
        if not self.apart:
            return self._engine.submit(work, thing, name)
        packing = next((one for one in self._packings if one.work is work), None)
        if packing is None:
            self._packings.append(packing := _Packing(work))
        return self._engine.submit(packing, thing, name)

    def load(self, name: str) -> Packed | None:
        """The result that is kept under this name; None where there is none, or it is not whole."""
        data = self.raw(name)
        return None if data is None else unpacked(data)

    def raw(self, name: str) -> bytes | None:
        """The same as it lies there, for `unpacked`."""
        path = self._there.get(name)
        if path is None:
            return None
        with files.disk_errors(path):
            data = path.read_bytes()
        if files.hash_bytes(data) != f"xxh3:{path.stem.rpartition('.')[2]}":
            files.remove_tree(self._there.pop(name))
            return None
        return data

    def save(self, name: str, data: bytes) -> None:
        """Keep a result."""
        path = self.place / f"{name}.{files.hash_bytes(data).removeprefix('xxh3:')}{SUFFIX}"
        with files.synced_later():  # what a power cut tears does not fit its name, and is done again
            files.write_bytes(path, data)
        self._there[name] = path

    def remove(self) -> None:
        """All is done: none of it is needed any more."""
        files.remove_tree(self._root)

    def close(self) -> None:
        """Let go of the engine below; what is kept stays."""
        self._engine.close()
        super().close()


@dataclass
class _Saving:
    kept: Kept
    name: str
    pending: Pending

    def result(self) -> Packed:
        found = self.pending.result()
        if self.kept.apart:
            data = found[1][SUFFIX].tobytes()
            self.kept.save(self.name, data)
            return unpacked(data)
        self.kept.save(self.name, _packed(found))
        return found


@dataclass(frozen=True)
class _Packing:
    """The work, its result as the bytes that are kept: made where the work is done."""

    work: Work

    def __call__(self, thing: Any) -> Packed:
        return {}, {SUFFIX: np.frombuffer(_packed(self.work(thing)), np.uint8)}


@dataclass
class _Loading:
    kept: Kept
    name: str
    again: Callable[[], Pending]

    def result(self) -> Packed:
        found = self.kept.load(self.name)
        return _Saving(self.kept, self.name, self.again()).result() if found is None else found


def _name(path: Path) -> str:
    return path.stem.rpartition(".")[0]


def _packed(result: Packed) -> bytes:
    """A line of JSON that says where the document and each array lie behind it, then their bytes."""
    document, arrays = result
    parts = [json.dumps(document).encode()]
    parts += [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
    about = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({"document": len(parts[0]), "arrays": about}).encode()
    return b"".join([head, b"\n", *parts])


def unpacked(data: bytes) -> Packed:
    """The result that these bytes hold."""
    document, arrays = _parts(data)
    return json.loads(document), arrays


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    """Its arrays alone, without reading the document."""
    return _parts(data)[1]


def _parts(data: bytes) -> tuple[bytes, dict[str, np.ndarray]]:
    head, _, _ = data.partition(b"\n")
    about = json.loads(head)
    start = len(head) + 1
    at = start + about["document"]
    document, arrays = data[start:at], {}
    for name, dtype, shape in about["arrays"]:
        kind, count = np.dtype(dtype), int(np.prod(shape))
        arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return document, arrays
