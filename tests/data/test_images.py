"""The encoding of pictures: what is learned from train, both stores, and what becomes of bad files."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import DataConfig
from llmtool.data.batches import open_batches
from llmtool.data.images import ImagesEncode
from llmtool.data.layout import name_of
from llmtool.data.store import Dataset
from llmtool.stages.prepare import PrepareResult, prepare
from tests.data.test_image_sources import idx
from tests.photos import bomb, file_of, folder, noise
from tests.training.test_loop import Notes
from tests.training.test_loop import make as toy_loop
from tests.training.toys import ToyMLP

KEYS: dict[str, Any] = {"split": {"by": "stratified", "train": 0.5, "validation": 0.25, "test": 0.25}}


class Mixes:
    """An augmentation as far as the loop asks for rows."""

    mixes = True


def made(
    tmp_path: Path, place: Path, /, name: str = "out", source: Any = None, more: Any = None, **encode: Any
) -> tuple[Dataset, PrepareResult]:
    config = DataConfig.model_validate({
        "source": source or {"format": "image_folder", "path": str(place)},
        "encode": {"as": "images", **encode}, **KEYS, **(more or {}),
    })  # fmt: skip
    (tmp_path / name).mkdir()
    result = prepare(config, 0, tmp_path / name)
    return Dataset.open(tmp_path / name), result


def pixels(dataset: Dataset, split: str) -> np.ndarray:
    return np.concatenate([part.inputs.numpy() for part in open_batches(dataset, split, 0).in_order(7)])


def test_what_is_learned_is_of_the_train_rows(tmp_path: Path) -> None:
    dataset, result = made(tmp_path, folder(tmp_path / "p"))
    train = np.asarray(dataset.split("train").arrays["images"], np.float64)
    assert train.shape == (18, 3, 8, 8)
    inputs = dataset.card["inputs"]
    assert [inputs[key] for key in ("kind", "channels", "height", "width")] == ["images", 3, 8, 8]
    np.testing.assert_allclose(inputs["mean"], train.mean(axis=(0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(inputs["std"], train.std(axis=(0, 2, 3)), atol=1e-4)
    assert dataset.targets["names"] == ["cat", "dog", "hen"]
    assert dataset.targets["counts"] == [6, 6, 6]
    assert result.ledger["kept"] == {"train": 18, "validation": 9, "test": 9}
    batch = open_batches(dataset, "train", 0).batch(0, 18).to(torch.device("cpu"))
    assert abs(float(batch.inputs.mean())) < 1e-4
    assert abs(float(batch.inputs.std(correction=0)) - 1) < 1e-3


def test_pixels_and_names_are_those_of_the_files(tmp_path: Path) -> None:
    dataset, _ = made(tmp_path, folder(tmp_path / "p"))
    batches = open_batches(dataset, "test", 0)
    found = next(batches.in_order(9))
    names = dataset.targets["names"]
    places = [place.split(" (")[0] for place in batches.where(0, 9)]
    for row, place in zip(batches.chosen(0, 9), places, strict=True):
        expected = np.asarray(Image.open(place)).transpose(2, 0, 1)
        assert (found.inputs[int(row)].numpy() == expected).all()
        assert names[int(found.targets[int(row)])] == Path(place).parent.name


def test_both_stores_give_the_same_batches(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    for number in range(6):  # of other sizes and forms
        (root / "cat" / f"x{number}.jpg").write_bytes(file_of(noise(number, 30 + number, 21), "JPEG"))
    arrays, _ = made(tmp_path, root, "a", size=12)
    encoded, _ = made(tmp_path, root, "b", size=12, store="encoded")
    assert arrays.card["inputs"] == encoded.card["inputs"]
    assert "encoded" in encoded.split("train").arrays
    assert "images" not in encoded.split("train").arrays
    one, other = (open_batches(dataset, "train", 3) for dataset in (arrays, encoded))
    for start, count in ((0, 4), (4, 4), (8, 4), (30, 9), (2, 1), (8, 4)):
        mine, its = one.batch(start, count), other.batch(start, count)
        assert torch.equal(mine.inputs, its.inputs)
        assert torch.equal(mine.targets, its.targets)
        assert one.where(start, count) == other.where(start, count)
    assert (pixels(arrays, "test") == pixels(encoded, "test")).all()
    assert (pixels(arrays.first(3), "test") == pixels(encoded.first(3), "test")).all()
    encoded.verify()


@pytest.mark.parametrize(("rank", "of", "mixes"), [(0, 1, False), (0, 2, False), (3, 4, False), (0, 1, True)])
def test_what_is_decoded_ahead_is_asked_for(
    rank: int, of: int, mixes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any rank, and where rows meet others from the end of their batch."""
    dataset, _ = made(tmp_path, folder(tmp_path / "p"), store="encoded")
    images: Any = open_batches(dataset, "train", 0)
    decoded: list[int] = []
    one = images._files._one
    images._files._one = lambda row: (decoded.append(row), one(row))[1]
    loop = toy_loop(ToyMLP(), images, Notes(), batch=16, micro_batch=2)
    loop.together.index, loop.together.of = rank, of
    loop.augment = Mixes() if mixes else None  # type: ignore[assignment]
    asked = list(islice(loop._requests(loop.together.rows(16).start), 30))
    expected = open_batches(dataset, "train", 0)
    for start, count in asked:
        assert torch.equal(loop.feed.take(start, count).inputs, expected.batch(start, count).inputs)
    images._files._pool.shutdown(wait=True)
    assert len(decoded) == sum(count for _, count in (*asked, (0, 2), (0, 2))), "two requests ahead"


def test_a_damaged_store_of_files_names_the_picture(tmp_path: Path) -> None:
    dataset, _ = made(tmp_path, folder(tmp_path / "p"), store="encoded")
    path = tmp_path / "out" / "test.encoded.bin"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(
        DataError, match=r"cat/\d+.png in the store: not a JPEG, PNG or WebP picture; prepare"
    ):
        pixels(dataset, "test")


def test_auto_takes_the_size_that_all_have_and_else_says_what_it_takes(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", size=10)
    dataset, result = made(tmp_path, root, "a")
    assert (dataset.inputs.height, dataset.inputs.width) == (10, 10)
    assert not result.notes
    for place in (root / "cat").iterdir():
        place.write_bytes(file_of(noise(0, 40, 20)))
    dataset, result = made(tmp_path, root, "b")
    assert (dataset.inputs.height, dataset.inputs.width) == (10, 10)
    assert "pictures differ in size (from 10 x 10 to 40 x 20 pixels" in result.notes[0]
    next((root / "cat").iterdir()).write_bytes(file_of(noise(0, 900, 1)))
    _, result = made(tmp_path, root, "strip")
    assert "pictures differ in size (from 10 x 10 to 900 x 1 pixels" in result.notes[0]
    dataset, _ = made(tmp_path, root, "c", size=[6, 5], channels=1)
    assert (dataset.inputs.channels, dataset.inputs.height, dataset.inputs.width) == (1, 6, 5)


def test_grey_pictures_have_one_channel_and_lost_colours_are_said(tmp_path: Path) -> None:
    root = tmp_path / "p"
    for name, value in (("black", 20), ("white", 220)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            values = np.clip(noise(number)[:, :, 0].astype(int) + value - 128, 0, 255).astype(np.uint8)
            (root / name / f"{number}.png").write_bytes(file_of(values))
    dataset, result = made(tmp_path, root)
    assert dataset.inputs.channels == 1
    assert not [note for note in result.notes if "colours" in note]


def test_targets_may_be_numbers_of_a_table(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 12)
    lines = [f"{name}/{number}.png,{at + number / 7}" for at, name in enumerate(("cat", "dog"))
             for number in range(12)]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["file,age", *lines]))
    source = {"format": "csv", "path": str(tmp_path / "t.csv")}
    dataset, _ = made(tmp_path, root, source=source, image="file", target="age", root=str(root),
                      more={"split": {"by": "random", "train": 0.5, "test": 0.5}})  # fmt: skip
    assert dataset.targets["kind"] == "values"
    batch = next(open_batches(dataset, "test", 0).in_order(3))
    assert batch.targets.shape == (3, 1)
    assert open_batches(dataset, "test", 0).where(0, 1)[0].startswith(("cat/", "dog/"))


def test_a_picture_may_have_any_number_of_labels(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 6, ("cat", "dog"))
    lines = [f"{name}/{number}.png\t{labels}" for name, labels in (("cat", "fur;claws"), ("dog", "fur"))
             for number in range(6)]  # fmt: skip
    (tmp_path / "t.tsv").write_text("\n".join(["image\tlabel", *lines, "cat/0.png\t"]))
    dataset, _ = made(tmp_path, root, source={"format": "tsv", "path": str(tmp_path / "t.tsv")},
                      root=str(root), target_kind="labels", label_separator=";",
                      more={"split": {"by": "order", "train": 1.0}})  # fmt: skip
    assert dataset.targets["names"] == ["claws", "fur"]
    found = next(open_batches(dataset, "train", 0).in_order(13)).targets.tolist()
    assert found == [[1, 1]] * 6 + [[0, 1]] * 6 + [[0, 0]]


def test_idx_files_give_the_same_in_both_stores(tmp_path: Path) -> None:
    path = idx(tmp_path, 12)
    source = {"format": "idx", "path": str(path)}
    more = {"split": {"by": "order", "train": 0.5, "test": 0.5}}
    arrays, _ = made(tmp_path, path, "a", source=source, more=more)
    encoded, _ = made(tmp_path, path, "b", source=source, more=more, store="encoded")
    assert (arrays.inputs.channels, arrays.inputs.height, arrays.inputs.width) == (1, 2, 3)
    assert pixels(arrays, "test")[0].tolist() == [[[36, 37, 38], [39, 40, 41]]]
    assert (pixels(arrays, "test") == pixels(encoded, "test")).all()
    assert next(iter(encoded.split("test").arrays)) == "encoded"
    names = [name_of(arrays.split("test"), row) for row in range(6)]
    assert names == [f"{path}:{number}" for number in range(7, 13)]


# --- bad files ---

BAD = {
    "cut.jpg": (file_of(noise(2, 64, 64), "JPEG")[:-900], "a truncated or damaged JPEG"),
    "large.png": (bomb(), "more than 50,000,000 pixels (data.encode.max_pixels)"),
    "gif.png": (b"GIF89a" + b"\0" * 40, "not a JPEG, PNG or WebP picture but a GIF"),
    "svg.png": (b"<svg/>", "not a JPEG, PNG or WebP picture but an SVG"),
    "words.png": (b"words", "not a JPEG, PNG or WebP picture but text"),
    "empty.webp": (b"", "an empty file"),
}


@pytest.mark.parametrize("store", ["arrays", "encoded"])
def test_bad_files_are_quarantined_by_name_and_reason(tmp_path: Path, store: str) -> None:
    root = folder(tmp_path / "p")
    for name, (data, _) in BAD.items():
        (root / "dog" / name).write_bytes(data)
    dataset, result = made(tmp_path, root, store=store, more={"max_bad": 0.5})
    assert result.ledger["quarantined"] == dict.fromkeys([reason for _, reason in BAD.values()], 1)
    written = (tmp_path / "out" / "quarantine.jsonl").read_text()
    assert all(f"{root}/dog/{name}" in written for name in BAD)
    assert sum(dataset.targets["counts"]) == dataset.split("train").rows
    assert sum(dataset.split(name).rows for name in dataset.splits) == 36


def test_too_many_bad_files_are_refused_with_their_names(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    (root / "dog" / "words.png").write_bytes(b"words")
    with pytest.raises(
        DataError, match=rf"1 of 37 rows are bad .*{root}/dog/words.png: not a JPEG.*but text"
    ):
        made(tmp_path, root)


def test_a_class_that_loses_every_picture_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    for place in (root / "dog").iterdir():
        place.write_bytes(b"words")
    with pytest.raises(DataError, match=r"no picture of class 'dog' can be read in train: 6 not a JPEG"):
        made(tmp_path, root, size=8, channels=3, more={"max_bad": 1.0})


def test_when_no_picture_can_be_read_the_first_reason_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "p")
    for place in root.glob("*/*"):
        place.write_bytes(b"words")
    with pytest.raises(DataError, match=r"none of the 18 pictures looked at can be read: .*cat/.*but text"):
        made(tmp_path, root)


def test_a_label_that_only_the_test_has_is_dropped_and_counted(tmp_path: Path) -> None:
    paths = {"train": str(folder(tmp_path / "a", 4, ("cat", "dog"))),
             "test": str(folder(tmp_path / "b", 3, first=50))}  # fmt: skip
    _, result = made(tmp_path, tmp_path, source={"format": "image_folder", "path": paths},
                     more={"split": {"by": "files"}})  # fmt: skip
    assert result.ledger["dropped"] == {"target class not in train": 3}
    assert result.ledger["kept"]["test"] == 6


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every train row is of one class, 'cat'"):
        made(tmp_path, folder(tmp_path / "p", 8, ("cat",)))


def test_a_missing_file_of_a_table_is_bad(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", 6)
    lines = [f"{name}/{number}.png\t{name}" for name in ("cat", "dog") for number in range(6)]
    (tmp_path / "t.tsv").write_text("\n".join(["image\tlabel", *lines, "cat/none.png\tcat", "\tcat"]))
    _, result = made(tmp_path, root, source={"format": "tsv", "path": str(tmp_path / "t.tsv")},
                     root=str(root), more={"max_bad": 0.5})  # fmt: skip
    assert result.ledger["quarantined"] == {"no such file": 1, "image is missing": 1}


# --- the same pictures ---


def test_pictures_of_train_in_the_test_are_told_and_refused_where_asked(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, first=50)
    shutil.copy(train / "cat" / "1.png", test / "cat" / "again.png")
    shutil.copy(train / "cat" / "2.png", train / "dog" / "not.png")
    source = {"format": "image_folder", "path": {"train": str(train), "test": str(test)}}
    more = {"split": {"by": "files"}}
    _, result = made(tmp_path, train, "x", source=source, more=more)
    (note,) = [note for note in result.notes if "pixel for pixel" in note]
    assert "1 of 13 pictures of test is the same, pixel for pixel, as one of train" in note
    assert f"{test}/cat/again.png and {train}/cat/1.png" in note
    assert any("stands there again with another target" in note for note in result.notes)
    with pytest.raises(DataError, match=r"data.leakage: 1 of 13 pictures of test"):
        made(tmp_path, train, "y", source=source, more=more | {"leakage": "refuse"})


# --- the section ---


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"like": "a", "size": 8}, "like says size already"),
        ({"like_model": "a", "fit": "pad", "channels": 1}, "like_model says channels, fit already"),
        ({"like": "a", "like_model": "b"}, "cannot both stand"),
        ({"image": "label"}, "stands in both image and target"),
        ({"target": ["a", "a"]}, "stands twice"),
        ({"target": ["a", "b"], "target_kind": "classes"}, "needs a single one"),
        ({"size": 0}, "size"),
        ({"size": [8, 8, 8]}, "size"),
        ({"channels": 2}, "channels"),
        ({"max_pixels": 10**9}, "max_pixels"),
    ],
)
def test_sections_that_cannot_be_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImagesEncode.model_validate({"as": "images", **keys})


def test_pictures_need_the_encoding_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"image_folder gives pictures: encode: \{as: images\}"):
        DataConfig.model_validate({"source": {"format": "image_folder", "path": "p"},
                                   "encode": {"as": "features", "target": "label"}})  # fmt: skip


def test_like_takes_size_and_standardisation_with_other_classes(tmp_path: Path) -> None:
    before, _ = made(tmp_path, folder(tmp_path / "p"), "before", size=6, fit="squash")
    after, _ = made(
        tmp_path, folder(tmp_path / "q", 8, ("hen", "cat")), "after", like=str(tmp_path / "before")
    )
    assert after.card["inputs"] == before.card["inputs"]
    assert after.card["encoder"]["recipe"] == before.card["encoder"]["recipe"]
    assert after.targets["names"] == ["cat", "hen"]
    with pytest.raises(ConfigError, match=r"data\.encode\.like: "):
        ImagesEncode.model_validate({"as": "images", "like": str(tmp_path)}).build()
