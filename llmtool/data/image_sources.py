"""Where pictures come from: folders of classes, MNIST's pairs of IDX files, CIFAR's binary files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xxhash
from pydantic import Field, PrivateAttr

from llmtool.core.errors import ConfigError, DataError
from llmtool.core.files import HashFile
from llmtool.data import readers
from llmtool.data.pictures import ENDINGS, BadPicture, Stored
from llmtool.data.sampling import PictureSample
from llmtool.data.sources import SPLITS, Chunk, Layout, Record, Source, SplitName, frame

# Begins the hash of a folder: of the names, sizes and times of its files, not their bytes.
LISTING = "listing:"
MOST_BYTES = 1 << 33  # of one unpacked IDX or CIFAR file
CIFAR_SIDE = 32


# --- folders ----------------------------------------------------------------------------------------------


class ImageFolderSource(Source):
    """A folder for each class, with its pictures (columns image, label), as ImageNet's are laid out.

    Hidden files are left out. What changed is told by the files' names, sizes and times, not by their bytes:
    1.3 million of them would take hours to read.
    """

    local = True
    format: Literal["image_folder"]
    path: str | dict[SplitName, str] = Field(  # type: ignore[assignment]
        description="folder that holds a folder of pictures for each class, or one such folder for each of "
        "train, validation, test; relative to the working directory"
    )
    _said: list[str] = PrivateAttr(default_factory=list)

    def _placed(self) -> list[tuple[Path, str | None]]:
        by_split: dict[Any, str] = self.path if isinstance(self.path, dict) else {None: self.path}
        placed = [(Path(by_split[split]), split) for split in (*SPLITS, None) if split in by_split]
        real = [folder.resolve() for folder, _ in placed]
        for at, (folder, _) in enumerate(placed):
            if real[at] in real[:at]:
                raise ConfigError(f"data.source.path: {folder} is named twice")
            _need_folder(folder)
        return placed

    def stamps(self) -> list[tuple[str, int, int]]:
        """Of the folders: a file that comes or goes changes the time of its own."""
        folders = [folder for root, _ in self._placed() for folder in (root, *map(Path, class_folders(root)))]
        return [(str(path), 0, path.stat().st_mtime_ns) for path in folders]

    def hashes(self, hash_file: HashFile) -> dict[str, str]:
        """The listing of each folder."""
        return {str(folder): listing_hash(folder) for folder, _ in self._placed()}

    def notes(self) -> list[str]:
        """What the last reading left out, and empty folders."""
        return list(self._said)

    def sample(self, characters: int) -> PictureSample:
        """About one picture for each 4,000 characters that a rehearsal reads of a table."""
        counts = {split: sum(len(pictures_in(folder)[0]) for folder in class_folders(root))
                  for root, split in self._placed()}  # fmt: skip
        return PictureSample(counts, max(1, characters // 4000))

    def read(self, rows: int = 8192) -> Iterator[Chunk]:
        """Pictures folder by folder, sorted by name. DataError names a folder of train without pictures."""
        self._said = []
        total = 0
        for index, (root, split) in enumerate(self._placed()):
            line, held = 0, list[list[str]]()
            lines: list[int] = []
            for folder in self._classes(root, split):
                names, left = pictures_in(folder)
                self._say(folder, names, left, split)
                label = os.path.basename(folder)
                for name in names:
                    line += 1
                    if self._sample is not None and not self._sample.takes(split, line):
                        continue
                    held.append([name, label])
                    lines.append(line)
                    if len(held) == rows:
                        yield _chunk(held, lines, total, index, split)
                        total, held, lines = total + rows, [], []
            if held:
                yield _chunk(held, lines, total, index, split)
                total += len(held)
        if not total:
            raise DataError(f"{self._placed()[0][0]}: no pictures")

    def _classes(self, root: Path, split: str | None) -> list[str]:
        folders = class_folders(root)
        beside = len(pictures_in(str(root), deep=False)[0])
        if not folders:
            hint = (
                f" but {beside:,} pictures: put those of each class into a folder of its name, or name them "
                "in a table (format: csv, a column of paths)" if beside else ""
            )  # fmt: skip
            raise DataError(f"{root}: holds no class folders{hint}")
        if beside:
            self._said.append(f"{root}: {beside:,} pictures beside the class folders were left out")
        return folders

    def _say(self, folder: str, names: list[str], left: Counter[str], split: str | None) -> None:
        """An empty class folder of train ends it; of another split it is said, as files left out are."""
        if not names:
            more = f" ({_listed(left)} are no JPEG, PNG or WebP)" if left else ""
            if split in ("train", None):
                raise empty_class(folder, more)
            self._said.append(f"{folder}: a class folder without pictures{more}")
        elif left:
            self._said.append(f"{folder}: {_listed(left)} left out, which are no JPEG, PNG or WebP by name")


def empty_class(folder: str, more: str = "") -> DataError:
    """The error for a class folder that teaches nothing."""
    return DataError(f"{folder}: this class folder has no picture in it{more}; fill it, or take it away")


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        there = folder.exists()
        raise DataError(
            f"{folder}: {'not a folder; this format reads class folders' if there else 'no such folder'}"
        )


def _chunk(held: list[list[str]], lines: list[int], total: int, index: int, split: str | None) -> Chunk:
    count = len(held)
    ordinals = np.arange(total, total + count, dtype=np.int64)
    given = None
    if split is not None:
        given = np.empty(count, object)
        given[:] = split
    characters = sum(len(name) + len(label) for name, label in held)
    return Chunk(
        frame(["image", "label"], held, ordinals), ordinals, np.full(count, index, np.int32),
        np.array(lines, np.int64), given, characters=characters,
    )  # fmt: skip


def _listed(left: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in left.most_common(4))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: {readers.reason_of(error)}") from None


def class_folders(root: Path) -> list[str]:
    """The class folders, sorted by name; links to folders are followed."""
    return sorted(entry.path for entry in _entries(str(root)) if entry.is_dir())


def pictures_in(folder: str, deep: bool = True) -> tuple[list[str], Counter[str]]:
    """Names of the files in a folder and those below that may be pictures, sorted, and how many others there
    are by ending. Nothing is asked of the files themselves: scandir knows what is a folder."""
    names, left = list[str](), Counter[str]()
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    waiting.append(entry.path)
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in ENDINGS or not ending:
                names.append(entry.path)
            else:
                left[ending] += 1
    names.sort()
    return names, left


def listing_hash(root: Path) -> str:
    """One hash of the names, sizes and times of change of all files below a folder but hidden ones."""
    _need_folder(root)
    found = xxhash.xxh3_128()
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        entries = sorted(_entries(folder), key=lambda entry: entry.name)
        lines = [os.path.relpath(folder, root)]
        for entry in entries:
            if entry.is_dir(follow_symlinks=folder == str(root)):
                waiting.append(entry.path)
                continue
            try:
                stat = entry.stat()
            except OSError:  # a link that leads nowhere
                lines.append(f"{entry.name}\0-")
                continue
            lines.append(f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}")
        found.update("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n\n")
    return f"{LISTING}xxh3:{found.hexdigest()}"


# --- files of many pictures -------------------------------------------------------------------------------


class PackedSource(Source):
    """Files that hold many pictures of one size each."""

    local = True

    def _beside(self, path: Path) -> list[Path]:
        """Other files that belong to one."""
        raise NotImplementedError

    def hashes(self, hash_file: HashFile) -> dict[str, str]:
        """Those beside the files of pictures too."""
        every = [one for path in self.files() for one in (path, *self._beside(path))]
        return {str(path): hash_file(path) for path in dict.fromkeys(every)}


class IdxSource(PackedSource):
    """MNIST's form (http://yann.lecun.com/exdb/mnist): files of pictures, and beside each its labels."""

    suffixes: ClassVar[tuple[str, ...]] = ("images-idx3-ubyte", "images.idx3-ubyte")

    format: Literal["idx"]

    def _beside(self, path: Path) -> list[Path]:
        return [_labels_of(path)]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record]:
        layout.columns = ["image", "label"]
        images, labels = idx(path, 3), idx(_labels_of(path), 1)
        if len(images) != len(labels):
            raise DataError(
                f"{path}: {len(images):,} pictures, and {len(labels):,} labels in {_labels_of(path)}"
            )
        size = math.prod(images.shape[1:])
        for row in range(len(images)):
            if layout.thin is None or layout.thin.keeps(size):
                yield row + 1, [Stored.at(path, row), str(labels[row])]


def _labels_of(path: Path) -> Path:
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    choices = [path.with_name(name), path.with_name(name.removesuffix(".gz")), path.with_name(f"{name}.gz")]
    found = next((choice for choice in choices if choice != path and choice.is_file()), None)
    if found is None:
        raise DataError(f"{path}: the file of its labels is not beside it ({name}, also without or with .gz)")
    return found


@lru_cache(maxsize=4)
def _idx(path: Path, stamp: tuple[int, int], dimensions: int) -> np.ndarray:
    data = _bytes(path)
    if data[:4] != bytes([0, 0, 8, dimensions]):
        what = {3: "pictures", 1: "labels"}[dimensions]
        raise DataError(
            f"{path}: not an IDX file of {what}: it begins with {data[:4].hex(' ')}, "
            f"not 00 00 08 0{dimensions}"
        )
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise DataError(f"{path}: {len(data)} bytes, and its header alone takes {header}")
    shape = tuple(np.frombuffer(data[4:header], ">u4").astype(np.int64).tolist())
    expected = header + math.prod(shape)
    if len(data) != expected or not all(shape):
        expects = f"its header says {' x '.join(map(str, shape))}, which take {expected:,}"
        raise DataError(f"{path}: {len(data):,} bytes, and {expects}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of bytes, .gz unpacked; DataError for other magic, sizes that do not fit."""
    return _idx(path, _stamp(path), dimensions)


class CifarSource(PackedSource):
    """The binary version of CIFAR-10 or CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html): columns
    image and label, of CIFAR-100 coarse_label too; named as the lists beside the files have it."""

    suffixes: ClassVar[tuple[str, ...]] = (".bin",)

    format: Literal["cifar"]
    classes: Literal["auto", "10", "100"] = Field(
        default="auto", description="which of the two; auto: the one that the files' length fits"
    )

    def _beside(self, path: Path) -> list[Path]:
        names = ("batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt")
        return [path.with_name(name) for name in names if path.with_name(name).is_file()]

    def _records(self, path: Path, layout: Layout) -> Iterator[Record]:
        labels = self._labels(path)
        columns = ["image", "label"] if labels == 1 else ["image", "label", "coarse_label"]
        if layout.first is not None and layout.columns != columns:
            raise DataError(f"{path}: of the other CIFAR than {layout.first}")
        layout.columns, layout.first = columns, path
        records = cifar(path, labels)
        lists = (["batches.meta.txt"], ["fine_label_names.txt", "coarse_label_names.txt"])[labels - 1]
        names = [_names(path.with_name(name)) for name in lists]
        numbers = records[:, :labels][:, ::-1].tolist()  # of CIFAR-100 the coarse one stands first
        for row, found in enumerate(numbers):
            if layout.thin is None or layout.thin.keeps(3 * CIFAR_SIDE**2):
                words = [known[number] if number < len(known) else str(number)
                         for known, number in zip(names, found, strict=True)]  # fmt: skip
                yield row + 1, [Stored.at(path, row, labels), *words]

    def _labels(self, path: Path) -> int:
        """How many bytes of labels stand before each picture."""
        pixels, size = 3 * CIFAR_SIDE**2, len(_packed(path, _stamp(path)))
        wanted = {"10": (1,), "100": (2,), "auto": (1, 2)}[self.classes]
        fits = [count for count in wanted if size and size % (pixels + count) == 0]
        if not fits:
            kinds = " or ".join(f"{pixels + count:,}" for count in wanted)
            raise DataError(f"{path}: {size:,} bytes are no whole number of CIFAR's records of {kinds}")
        return fits[0]


def _names(path: Path) -> list[str]:
    return path.read_text("utf-8", "replace").split() if path.is_file() else []


def cifar(path: Path, labels: int) -> np.ndarray:
    """(records, labels + 3072) uint8."""
    return _packed(path, _stamp(path)).reshape(-1, labels + 3 * CIFAR_SIDE**2)


@lru_cache(maxsize=2)
def _packed(path: Path, stamp: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(_bytes(path), np.uint8)


def _bytes(path: Path) -> bytes:
    """A file, unpacked."""
    parts, size = list[bytes](), 0
    for block in readers.blocks(path):
        size += len(block)
        if size > MOST_BYTES:
            raise DataError(f"{path}: more than {MOST_BYTES:,} bytes of pictures in one file")
        parts.append(block)
    return b"".join(parts)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {readers.reason_of(error)}") from None
    return found.st_size, found.st_mtime_ns


def stored_pixels(name: Stored) -> np.ndarray:
    """(c, h, w) uint8 of a picture in an IDX or CIFAR file. BadPicture where the file has changed."""
    packed = idx(name.path, 3) if name.labels is None else cifar(name.path, name.labels)
    if name.number >= len(packed):
        raise BadPicture("not in its file any more")
    if name.labels is None:
        return packed[name.number][None]
    return packed[name.number, name.labels :].reshape(3, CIFAR_SIDE, CIFAR_SIDE)
