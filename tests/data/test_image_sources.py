"""Class folders, IDX and CIFAR files: every row once, by name; what is broken is refused by its place."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from llmtool.core.errors import ConfigError, DataError
from llmtool.core.files import hash_file
from llmtool.data.image_sources import (
    CifarSource,
    IdxSource,
    ImageFolderSource,
    listing_hash,
    stored_pixels,
)
from llmtool.data.sampling import sampled
from tests.photos import folder


def rows(source: ImageFolderSource | IdxSource | CifarSource, size: int = 8192) -> list[list[str]]:
    return [list(row) for chunk in source.read(size) for row in chunk.frame.itertuples(index=False)]


def folders(path: object) -> ImageFolderSource:
    return ImageFolderSource(format="image_folder", path=path)


# --- folders ---


def test_rows_are_sorted_by_class_and_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 3, ("dog", "cat"))
    found = rows(folders(str(root)))
    assert [label for _, label in found] == ["cat"] * 3 + ["dog"] * 3
    assert [os.path.relpath(path, root) for path, _ in found[:3]] == ["cat/0.png", "cat/1.png", "cat/2.png"]
    assert rows(folders(str(root)), size=2) == found
    chunks = list(folders(str(root)).read(4))
    assert [len(chunk) for chunk in chunks] == [4, 2]
    assert [index for chunk in chunks for index in chunk.frame.index] == list(range(6))


def test_folders_of_splits_say_the_split(tmp_path: Path) -> None:
    source = folders(
        {"train": str(folder(tmp_path / "a", 3)), "test": str(folder(tmp_path / "b", 2, first=9))}
    )
    chunks = list(source.read())
    assert [chunk.split[0] for chunk in chunks] == ["train", "test"]
    assert [len(chunk) for chunk in chunks] == [9, 6]
    assert [set(chunk.file.tolist()) for chunk in chunks] == [{0}, {1}]
    assert chunks[1].frame.index[0] == 9


def test_hidden_files_other_endings_and_strays_are_left_out_and_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 2, ("cat", "dog"))
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "3.JPEG").write_bytes(b"x")
    (root / "cat" / "n02_no_ending").write_bytes(b"x")
    (root / "readme.txt").write_text("x")
    (root / "lonely.png").write_bytes(b"x")
    source = folders(str(root))
    found = [os.path.relpath(path, root) for path, label in rows(source) if label == "cat"]
    assert found == ["cat/0.png", "cat/1.png", "cat/deep/3.JPEG", "cat/n02_no_ending"]
    assert source.notes() == [
        f"{root}: 1 pictures beside the class folders were left out",
        f"{root}/cat: 1 .db left out, which are no JPEG, PNG or WebP by name",
    ]


def test_an_empty_class_folder_is_refused_in_train_and_said_elsewhere(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "a", 2), folder(tmp_path / "b", 2)
    (test / "owl").mkdir()
    source = folders({"train": str(train), "test": str(test)})
    assert len(rows(source)) == 12
    assert source.notes() == [f"{test}/owl: a class folder without pictures"]
    (train / "owl").mkdir()
    (train / "owl" / "a.gif").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"a/owl: this class folder has no picture in it \(1 .gif are no JPEG"
    ):
        rows(source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "p: no such folder"),
        (lambda root: root.write_text("x"), "p: not a folder"),
        (lambda root: root.mkdir(), "p: holds no class folders"),
        (
            lambda root: (root.mkdir(), (root / "a.png").write_bytes(b"x")),
            "but 1 pictures: put those of each",
        ),
    ],
)
def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "p")
    with pytest.raises(DataError, match=message):
        rows(folders(str(tmp_path / "p")))


def test_a_folder_is_named_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 1)
    with pytest.raises(ConfigError, match="is named twice"):
        rows(folders({"train": str(root), "test": f"{root}/../p"}))


def test_the_listing_sees_names_sizes_and_times(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 2)
    before = listing_hash(root)
    assert before.startswith("listing:xxh3:")
    assert listing_hash(root) == before
    source, stamps = folders(str(root)), folders(str(root)).stamps()
    assert source.hashes(hash_file) == {str(root): before}
    (root / "cat" / ".hidden").write_text("x")
    assert listing_hash(root) == before
    picture = root / "cat" / "0.png"
    status = picture.stat()
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = listing_hash(root)
    picture.rename(root / "cat" / "9.png")
    renamed = listing_hash(root)
    (root / "cat" / "9.png").write_bytes(b"longer" + picture.name.encode())
    assert len({before, touched, renamed, listing_hash(root)}) == 4
    assert source.stamps() != stamps


def test_a_rehearsal_reads_pictures_of_every_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 20)
    source = sampled(folders(str(root)), 4000 * 12)
    found = rows(source)
    assert len(found) == 12
    assert {label for _, label in found} == {"cat", "dog", "hen"}
    assert (source._sample.share(), source._sample.whole) == (0.2, False)
    assert sampled(folders(str(root)), 10**9)._sample.whole


# --- IDX ---


def idx(directory: Path, count: int = 5, pack: bool = False, stem: str = "train") -> Path:
    images = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
    labels = np.arange(count, dtype=np.uint8) % 2
    path = directory / f"{stem}-images-idx3-ubyte"
    parts = {
        path: struct.pack(">IIII", 0x803, count, 2, 3) + images.tobytes(),
        directory / f"{stem}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
    }
    for place, data in parts.items():
        place = place.with_name(f"{place.name}.gz") if pack else place
        place.write_bytes(gzip.compress(data) if pack else data)
    return path.with_name(f"{path.name}.gz") if pack else path


@pytest.mark.parametrize("pack", [False, True])
def test_idx_pairs(tmp_path: Path, pack: bool) -> None:
    path = idx(tmp_path, pack=pack)
    source = IdxSource(format="idx", path=str(path))
    found = rows(source)
    assert [label for _, label in found] == ["0", "1", "0", "1", "0"]
    assert str(found[3][0]) == f"{path}:4"
    assert stored_pixels(found[3][0]).tolist() == [[[18, 19, 20], [21, 22, 23]]]
    assert set(source.hashes(hash_file)) == {str(path), str(path).replace("images-idx3", "labels-idx1")}
    assert rows(IdxSource(format="idx", path=str(tmp_path))) == found  # the folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:]), "begins with 00 00 0d 03"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "45 bytes, and its header says 5 x 2 x 3"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "47 bytes, and its header says"),
        (lambda path: path.write_bytes(path.read_bytes()[:9]), "9 bytes, and its header alone takes 16"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.with_name("train-labels-idx1-ubyte").unlink(), "labels is not beside it"),
        (lambda path: idx(path.parent, 4, stem="x") and (path.parent / "x-labels-idx1-ubyte").rename(
            path.parent / "train-labels-idx1-ubyte"), "5 pictures, and 4 labels in"),
    ],
)  # fmt: skip
def test_a_broken_idx_file_is_named(tmp_path: Path, change, message: str) -> None:
    path = idx(tmp_path)
    change(path)
    with pytest.raises(DataError, match=message):
        rows(IdxSource(format="idx", path=str(path)))


# --- CIFAR ---


def cifar(directory: Path, labels: int, count: int = 4) -> Path:
    records = np.zeros((count, labels + 3072), np.uint8)
    records[:, :labels] = np.arange(count * labels).reshape(count, labels)
    records[:, labels:] = np.arange(count)[:, None]
    path = directory / "data_batch_1.bin"
    path.write_bytes(records.tobytes())
    return path


def test_cifar_10_takes_names_from_beside(tmp_path: Path) -> None:
    path = cifar(tmp_path, 1)
    assert [label for _, label in rows(CifarSource(format="cifar", path=str(path)))] == ["0", "1", "2", "3"]
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n\n")
    source = CifarSource(format="cifar", path=str(path))
    found = rows(source)
    assert [label for _, label in found] == ["airplane", "automobile", "bird", "3"]
    assert stored_pixels(found[2][0]).shape == (3, 32, 32)
    assert (stored_pixels(found[2][0]) == 2).all()
    assert str(tmp_path / "batches.meta.txt") in source.hashes(hash_file)


def test_cifar_100_has_coarse_labels_too(tmp_path: Path) -> None:
    path = cifar(tmp_path, 2)
    source = CifarSource(format="cifar", path=str(path))
    (chunk,) = source.read()
    assert list(chunk.frame.columns) == ["image", "label", "coarse_label"]
    assert chunk.frame["label"].tolist() == ["1", "3", "5", "7"]
    assert chunk.frame["coarse_label"].tolist() == ["0", "2", "4", "6"]
    assert (stored_pixels(chunk.frame["image"][3]) == 3).all()
    with pytest.raises(DataError, match="12,296 bytes are no whole number of CIFAR's records of 3,073"):
        rows(CifarSource(format="cifar", path=str(path), classes="10"))


def test_a_cut_cifar_file_is_refused(tmp_path: Path) -> None:
    path = cifar(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="are no whole number of CIFAR's records of 3,073 or 3,074"):
        rows(CifarSource(format="cifar", path=str(path)))
