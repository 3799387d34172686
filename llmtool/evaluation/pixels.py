"""Rows of a dataset as a matrix for classical models: a table's, the columns beside texts, or a few averaged
pixels of pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from llmtool.core.contracts import Images
from llmtool.data.batches import open_batches
from llmtool.data.decoding import features_of
from llmtool.data.image_batches import ImageBatches
from llmtool.data.store import Dataset

SIDE = 16  # pixels of a side at most
AT_ONCE = 1 << 26  # bytes of pictures


def side_of(inputs: Images) -> tuple[int, int]:
    """Height and width to which pictures are averaged."""
    return min(SIDE, inputs.height), min(SIDE, inputs.width)


def width_of(dataset: Dataset) -> int:
    """Columns of the matrix."""
    if not isinstance(dataset.inputs, Images):
        return len(dataset.card["inputs"]["names"])
    height, width = side_of(dataset.inputs)
    return dataset.inputs.channels * height * width


def matrix(dataset: Dataset, split: str, rows: np.ndarray | None = None) -> np.ndarray:
    """(n, f) float32 of these rows of a split, all when None; pixels from 0 to 1."""
    found, inputs = dataset.split(split), dataset.inputs
    if not isinstance(inputs, Images):
        whole = features_of(found)
        return whole if rows is None else whole[rows]
    batches = open_batches(dataset, split, 0)
    assert isinstance(batches, ImageBatches)
    rows = np.arange(found.rows) if rows is None else rows
    most = max(1, AT_ONCE // (inputs.channels * inputs.height * inputs.width))
    result = np.empty((len(rows), width_of(dataset)), np.float32)
    for start in range(0, len(rows), most):
        part = torch.from_numpy(batches.pictures(rows[start : start + most])).float()  # (n, c, h, w)
        small = F.adaptive_avg_pool2d(part, side_of(inputs)) / 255
        result[start : start + most] = small.flatten(1).numpy()
    return result
