"""Pictures in a page: files that Pillow reads as they were meant."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from llmtool.evaluation import png


def test_pillow_reads_what_is_written() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    with image.open(io.BytesIO(png.png(pixels))) as found:
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), pixels)
    large = np.zeros((600, 300, 3), np.uint8)
    data = base64.b64decode(png.data_uri(large).removeprefix("data:image/png;base64,"))
    with image.open(io.BytesIO(data)) as found:
        assert found.size == (100, 200)


def test_red_speaks_for_and_blue_against() -> None:
    values = np.array([[1.0, -1.0, 0.0]])
    red, blue, none = png.heat(np.full((1, 1, 3), 90.0), values)[0]
    assert red.tolist() == [200, 30, 30]
    assert blue.tolist() == [30, 60, 200]
    assert len(set(none.tolist())) == 1
    assert png.heat(np.zeros((3, 2, 2)), np.zeros((2, 2))).tolist() == [[[128] * 3] * 2] * 2
    assert png.picture(np.full((1, 2, 2), 300.0)).tolist() == [[[255] * 3] * 2] * 2
