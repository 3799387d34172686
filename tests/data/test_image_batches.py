"""Batches of pictures: the same order as of a table, bytes from the store, each row by its file's name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmtool.core.contracts import Batch
from llmtool.core.errors import DataError
from llmtool.data.batches import FeatureBatches, open_batches
from llmtool.data.image_batches import ImageBatches
from llmtool.data.layout import place_of
from llmtool.data.store import ArrayWriter, Dataset, Split, make_card

INPUTS = {"kind": "images", "channels": 3, "height": 2, "width": 4, "mean": [1.0, 2.0, 3.0], "std": [4.0] * 3}
SHAPE = (3, 2, 4)


def arrays(rows: int) -> dict[str, np.ndarray]:
    """Every pixel of row i is i; its target is i too."""
    images = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, *SHAPE))
    names = [f"cat/{row}.jpg".encode() for row in range(rows)]
    return {
        "images": np.ascontiguousarray(images),
        "targets": np.arange(rows),
        "origin": np.stack([np.zeros(rows, np.int64), np.arange(rows) + 1], axis=1),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names]).astype(np.int64),
    }


def batches(rows: int, seed: int = 0) -> ImageBatches:
    return ImageBatches(Split("train", rows, arrays(rows), {}, ["photos"]), {"inputs": INPUTS}, seed)


def test_the_order_is_that_of_a_table() -> None:
    table = FeatureBatches(
        Split("train", 10, {"inputs": np.zeros((10, 1), np.float32), "targets": np.arange(10)}, {}, []), 0
    )
    for start, count in ((0, 3), (8, 4), (95, 30), (3, 1)):
        found = batches(10).batch(start, count)
        assert torch.equal(found.targets, table.batch(start, count).targets)
        assert torch.equal(found.inputs[:, 0, 0, 0].long(), found.targets)
        assert found.inputs.shape == (count, *SHAPE)
        assert found.inputs.dtype == torch.uint8


def test_the_batch_carries_what_standardises_it() -> None:
    moved = batches(5).batch(0, 5).to(torch.device("cpu"))
    expected = (moved.targets[:, None] - torch.tensor([1.0, 2.0, 3.0])) / 4
    torch.testing.assert_close(moved.inputs[:, :, 1, 3], expected)


def test_every_row_once_in_order() -> None:
    parts = list(batches(7).in_order(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.cat([part.targets for part in parts]).tolist() == list(range(7))
    assert all(isinstance(part, Batch) and part.scale is not None for part in parts)


def test_rows_go_by_the_names_of_their_files() -> None:
    made = batches(5)
    rows = made.chosen(0, 2)
    assert made.where(0, 2) == [f"cat/{row}.jpg (row {row + 1} of train)" for row in rows]
    with pytest.raises(DataError, match="train has no rows"):
        batches(0).batch(0, 1)


def test_a_dataset_of_pictures_gives_them(tmp_path: Path) -> None:
    written = {}
    for name, array in arrays(6).items():
        writer = ArrayWriter(tmp_path / f"test.{name}.bin", array.dtype.str, array.shape[1:])
        writer.append(array)
        written[name] = writer.close()
    card = make_card("images", INPUTS, {"kind": "classes", "names": list("abcdef")}, {"as": "images"},
                     {"test": {"rows": 6, "arrays": written}}, [], ["photos"])  # fmt: skip
    dataset = Dataset(tmp_path, card, card["fingerprint"])
    made = open_batches(dataset, "test", 0)
    assert isinstance(made, ImageBatches)
    assert next(made.in_order(6)).inputs[:, 2, 1, 3].tolist() == list(range(6))
    fewer = dataset.first(3).split("test")
    assert fewer.rows == 3
    assert [place_of(fewer, row) for row in range(3)] == ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg"]
