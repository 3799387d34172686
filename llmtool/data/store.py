"""A prepared dataset on disk: raw little-endian arrays, read through memory maps, described by one card.json.

card.json             what goes in and comes out, the fitted encoder, and size, type and hash of every array
train.inputs.bin      one file per split and array: the numbers and nothing else (C order)
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmtool.core import files
from llmtool.core.contracts import Features, Images, InputSpec, Tokens
from llmtool.core.errors import DataError
from llmtool.core.lineage import Chain, extend

FORMAT = 1
CARD = "card.json"
MAX_CARD_BYTES = 256_000_000
MOST_SOURCES = 20  # files that are links of their own; more of them are one
NAME_ENDS = "name_ends"  # array: where in the bytes of the array "names" the name of each row's picture ends
# Arrays of where a row came from, which changes nothing that is learned.
PLACES = ("origin", "names", NAME_ENDS)
TOKENS = ("tokens", "trained")  # arrays with an entry for each token
STREAMS = ("encoded", "names")  # arrays of bytes of rows, whose ends stand in another
MOST_SIDE = 65_536  # of a picture
_TYPES = ("<f4", "<f8", "<i8", "<u2", "<u4", "|u1")
_BUFFER = 1 << 20


class ArrayWriter:
    """Appends rows of one array to a file, hashing them on the way."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...] = ()) -> None:
        self.path, self.rows, self._row_shape = path, 0, row_shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype.str in _TYPES, f"{dtype} is no type of the store"
        self._hash = xxhash.xxh3_128()
        with files.disk_errors(path):
            self._file = path.open("wb", buffering=_BUFFER)

    def append(self, rows: np.ndarray) -> None:
        """Write (n, *row_shape) values; they must fit the array's type."""
        assert rows.shape[1:] == self._row_shape, f"rows of shape {rows.shape[1:]}, not {self._row_shape}"
        data = np.ascontiguousarray(rows, dtype=self.dtype)
        view = data.reshape(-1).view(np.uint8).data
        self._hash.update(view)
        with files.disk_errors(self.path, len(view)):
            self._file.write(view)
        self.rows += len(data)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # of an encoding that an error has ended, perhaps that of a full disk
            with contextlib.suppress(OSError):
                self._file.close()

    def close(self) -> dict[str, Any]:
        """The array's entry in the card."""
        with files.disk_errors(self.path):
            self._file.close()
        return {
            "file": self.path.name,
            "dtype": self.dtype.str,
            "shape": [self.rows, *self._row_shape],
            "hash": f"xxh3:{self._hash.hexdigest()}",
        }


@dataclass(frozen=True)
class Split:
    """One split: `rows`, its memory-mapped arrays, and its entry in the card."""

    name: str
    rows: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    sources: list[str]  # the source's files, which the array "origin" points into


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset, opened for reading."""

    directory: Path
    card: dict[str, Any]
    fingerprint: str
    limit: int | None = (
        None  # rows (of text without targets: tokens) at most of each split that is not train; set by `first`
    )

    @classmethod
    def open(cls, directory: Path | str) -> Dataset:
        """Read card.json, check the size of every array file. DataError names the file that is wrong."""
        directory = Path(directory)
        card = _read_card(directory / CARD)
        for name, meta in card["splits"].items():
            for array in meta["arrays"].values():
                _check_size(directory, name, array)
        found = fingerprint(card)
        if card.get("fingerprint", found) != found:
            raise DataError(f"{directory / CARD}: its fingerprint does not fit its content; prepare it again")
        return cls(directory, card, found)

    @property
    def inputs(self) -> InputSpec:
        """What a model takes in."""
        return input_spec(self.card["inputs"])

    @property
    def targets(self) -> dict[str, Any]:
        """What is learned, as the card says it."""
        return self.card["targets"]

    @property
    def lineage(self) -> Chain:
        """The source's files, the encoder, and this dataset."""
        return lineage(self.card, self.directory)

    @property
    def splits(self) -> list[str]:
        """The names of the splits, in the order of the card."""
        return list(self.card["splits"])

    def split(self, name: str) -> Split:
        """The split `name`, its arrays mapped into memory; DataError where there is none."""
        if name not in self.card["splits"]:
            raise DataError(f"{self.directory}: no split {name!r} (it has: {', '.join(self.splits)})")
        meta = self.card["splits"][name]
        arrays = mapped(self.directory, meta)
        rows = meta["rows"]
        if self.limit is not None and name != "train":
            arrays, rows = _first(arrays, self.limit, rows)
        return Split(name, rows, arrays, meta, list(self.card.get("sources", [])))

    def first(self, limit: int | None) -> Dataset:
        """The same dataset; of its splits, but for train, only `limit` rows (of text: tokens) are seen."""
        return replace(self, limit=limit)

    def verify(self, hash_file: files.HashFile | None = None) -> None:
        """Read every array and compare its hash; DataError names the file that differs."""
        for meta in self.card["splits"].values():
            for array in meta["arrays"].values():
                path = self.directory / array["file"]
                if (hash_file or files.hash_file)(path) != array["hash"]:
                    raise DataError(
                        f"{path}: the content has changed since it was prepared (its hash differs); "
                        "prepare it again"
                    )


def make_card(
    encoding: str,
    inputs: Mapping[str, Any],
    targets: Mapping[str, Any],
    encoder: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, Any]],
    notes: list[str],
    sources: list[str],
    hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of card.json. `sources`: the source's files, as messages shall name them. hashes: of every
    file that was read, where they are known."""
    card: dict[str, Any] = {
        "format": FORMAT,
        "encoding": encoding,
        "inputs": dict(inputs),
        "targets": dict(targets),
        "encoder": dict(encoder),
        "splits": {name: dict(meta) for name, meta in splits.items()},
        "notes": list(notes),
        "sources": list(sources),
        "files": dict(hashes or {}),
    }
    return {**card, "fingerprint": fingerprint(card)}


def input_spec(spec: Mapping[str, Any]) -> InputSpec:
    """The contract that a card's "inputs" stand for."""
    if spec["kind"] == "features":
        return Features(spec["width"], tuple(spec.get("columns", ())))
    if spec["kind"] == "images":
        return Images(spec["channels"], spec["height"], spec["width"])
    return Tokens(spec["vocabulary"], spec.get("length"), int(spec.get("features", 0)))


def fingerprint(card: Mapping[str, Any]) -> str:
    """One hash over what a model can learn from: specs, fitted encoder, and the hash of every array."""
    arrays = {
        f"{name}.{key}": [array["dtype"], array["shape"], array["hash"]]
        for name, meta in card["splits"].items()
        for key, array in meta["arrays"].items()
        if key not in PLACES
    }
    parts = {
        name: [[part, about["rows"]] for part, about in meta["parts"].items()]
        for name, meta in card["splits"].items()
        if "parts" in meta
    }  # of a mixture, whose training order knows them
    more = [parts] if parts else []
    return _hash([card["inputs"], card["targets"], without_places(card["encoder"]), arrays, *more])


def encoder_hash(card: Mapping[str, Any]) -> str:
    """One hash over the fitted encoder, that of its tokenizer.json included."""
    return _hash([card["encoding"], without_places(card["encoder"])])


def without_places(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's state without the place of its tokenizer's file: the same file elsewhere is the same."""
    tokenizer = encoder.get("tokenizer")
    if not isinstance(tokenizer, Mapping) or not isinstance(tokenizer.get("source"), Mapping):
        return dict(encoder)
    source = {key: value for key, value in tokenizer["source"].items() if key != "path"}
    return {**encoder, "tokenizer": {**tokenizer, "source": source}}


def lineage(card: Mapping[str, Any], directory: Path) -> Chain:
    """The chain of the dataset with this card in `directory`; it begins with the encoder where the card does
    not name the source's files (it was written by an older version)."""
    found = card.get("files")
    hashes = {str(path): str(hash_) for path, hash_ in (found if isinstance(found, dict) else {}).items()}
    sources = []
    for number, (path, hash_) in enumerate(hashes.items(), 1):
        what = "source" if path in card.get("sources", []) else "encoder's file"
        sources.append(extend(what if len(hashes) == 1 else f"{what} {number}", path, hash_))
    if len(sources) > MOST_SOURCES:
        name = f"{len(hashes):,} files: {next(iter(hashes))} ..."
        sources = [extend("sources", name, _hash(list(hashes.values())))]
    encoder = extend("encoder", str(directory / CARD), encoder_hash(card), *sources)
    return extend("dataset", str(directory), str(card["fingerprint"]), *sources, encoder)


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return files.hash_bytes(text.encode())


def origin(card: Mapping[str, Any]) -> str:
    """One hash over what no model learns from: where the rows came from, and how long their text was."""
    splits = {
        name: [meta.get("bytes"), meta["arrays"].get("origin", {}).get("hash")]
        + ([meta["arrays"]["names"]["hash"]] if NAME_ENDS in meta["arrays"] else [])
        for name, meta in card["splits"].items()
    }
    content = [splits, card.get("sources")]
    return files.hash_bytes(json.dumps(content, sort_keys=True, ensure_ascii=True).encode())


def _read_card(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes; this is no card of a prepared dataset")
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path.parent}: no prepared dataset here (no {CARD}); run `llmtool prepare` first"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({str(error)[:100]}); prepare it again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise DataError(f"{path}: format {found!r}, this version reads format {FORMAT}; prepare it again")
    problem = _problem(card)
    if problem:
        raise DataError(f"{path}: {problem}; prepare it again")
    return card


def _problem(card: dict[str, Any]) -> str:
    """What is wrong with the parts of a card that this file relies on, or nothing."""
    kinds = {"features": "width", "tokens": "vocabulary", "images": "channels"}
    inputs, splits = card.get("inputs"), card.get("splits")
    if not isinstance(inputs, dict) or not isinstance(inputs.get(kinds.get(inputs.get("kind", ""), "")), int):
        return (
            "inputs say neither features with a width, nor tokens with a vocabulary, nor images with channels"
        )
    if inputs["kind"] == "images" and (problem := _problem_of_images(inputs)):
        return problem
    if not isinstance(inputs.get("length"), int | None):
        return "inputs say a length that is no number"
    if not isinstance(card.get("targets"), dict) or not isinstance(card.get("encoder"), dict):
        return "targets or encoder are missing"
    if not isinstance(splits, dict) or not splits:
        return "it has no splits"
    for name, meta in splits.items():
        arrays = meta.get("arrays") if isinstance(meta, dict) else None
        if not isinstance(arrays, dict) or not isinstance(meta.get("rows"), int):
            return f"split {name} has no rows or arrays"
        parts = meta.get("parts", {})
        if not isinstance(parts, dict) or not all(_part_is_sound(part) for part in parts.values()):
            return f"the parts of {name} are not described correctly"
        for key, array in arrays.items():
            if not isinstance(array, dict) or not _array_is_sound(array):
                return f"array {key} of {name} is not described correctly"
    return ""


def _problem_of_images(inputs: dict[str, Any]) -> str:
    sides = [inputs.get(name) for name in ("channels", "height", "width")]
    if not all(type(side) is int and 0 < side <= MOST_SIDE for side in sides):
        return "inputs say images without channels, height and width"
    for key in ("mean", "std"):
        values = inputs.get(key)
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values or []) != sides[0] or not all(map(math.isfinite, values or [])):
            return f"inputs say images whose {key} is no number for each channel"
    return "" if min(inputs["std"]) > 0 else "inputs say images whose std is not above 0"


def _part_is_sound(part: Any) -> bool:
    return isinstance(part, dict) and type(part.get("rows")) is int and part["rows"] >= 0


def _array_is_sound(array: dict[str, Any]) -> bool:
    file, shape = array.get("file"), array.get("shape")
    return (
        isinstance(file, str)
        and Path(file).name == file  # never a path that leads out of the directory
        and array.get("dtype") in _TYPES
        and isinstance(array.get("hash"), str)
        and isinstance(shape, list)
        and len(shape) > 0
        and all(isinstance(size, int) and 0 <= size < 1 << 48 for size in shape)
    )


def _first(arrays: dict[str, np.ndarray], limit: int, rows: int) -> tuple[dict[str, np.ndarray], int]:
    """The beginning of a split's arrays: `limit` rows, or `limit` tokens with their documents; of
    conversations those that lie in it whole, one at least."""
    if NAME_ENDS in arrays:
        parts = {key: array if key in STREAMS else array[:limit] for key, array in arrays.items()}
        return parts, min(limit, rows)
    if "documents" not in arrays or "targets" in arrays:
        parts = {key: array[:limit] for key, array in arrays.items() if key != "tokens"}
        if "tokens" in arrays:  # of labelled texts, one a row
            parts["tokens"] = arrays["tokens"][
                : int(parts["documents"][-1]) if len(parts["documents"]) else 0
            ]
        return parts, min(limit, rows)
    count = min(int(np.searchsorted(arrays["documents"], limit)) + 1, len(arrays["documents"]))
    if "trained" in arrays and count:
        count = max(1, int(np.searchsorted(arrays["documents"], limit, side="right")))
        limit = int(arrays["documents"][count - 1])
    parts = {key: array[: limit if key in TOKENS else count] for key, array in arrays.items()}
    return parts | {"documents": np.minimum(parts["documents"], limit)}, rows


def mapped(directory: Path, meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a split's entry in the card, mapped into memory."""
    return {key: _map(directory, array) for key, array in meta["arrays"].items()}


def _check_size(directory: Path, split: str, array: dict[str, Any]) -> None:
    path = directory / array["file"]
    expected = math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror} (it belongs to {split}); prepare it again") from None
    if size != expected:
        how = "truncated" if size < expected else "too long"
        raise DataError(f"{path}: {how}, {size:,} bytes where {expected:,} belong; prepare it again")


def _map(directory: Path, array: dict[str, Any]) -> np.ndarray:
    shape = tuple(array["shape"])
    if math.prod(shape) == 0:
        return np.empty(shape, dtype=array["dtype"])  # an empty file cannot be mapped
    return np.memmap(directory / array["file"], dtype=array["dtype"], mode="r", shape=shape)
