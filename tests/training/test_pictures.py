"""Changes of pictures beside Pillow and numpy; a factor of 1 leaves a picture as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from llmtool.training import pictures as ops

ROWS, HEIGHT, WIDTH = 5, 9, 12


def some(channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 256, (ROWS, channels, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    whole[1] //= 3  # a dark one
    whole[2] = 7  # a flat one
    return whole


def through_pillow(pictures: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    made = [Image.fromarray(np.asarray(each.permute(1, 2, 0))) for each in pictures]
    return torch.stack([torch.from_numpy(np.array(change(one))).permute(2, 0, 1) for one in made])


@pytest.mark.parametrize("channels", [1, 3])
def test_moved_is_numpys_reflection(channels: int) -> None:
    pictures = some(channels)
    down, right = torch.tensor([0, 3, -2, 8, -8]), torch.tensor([0, -4, 11, -11, 1])
    mirrored = torch.tensor([False, True, False, True, True])
    found = ops.moved(pictures, down, right, mirrored)
    assert found.dtype == torch.uint8
    for row in range(ROWS):
        wide = np.pad(pictures[row].numpy(), ((0, 0), (HEIGHT - 1,) * 2, (WIDTH - 1,) * 2), mode="reflect")
        top, left = HEIGHT - 1 - int(down[row]), WIDTH - 1 - int(right[row])
        wanted = wide[:, top : top + HEIGHT, left : left + WIDTH]
        wanted = wanted[:, :, ::-1] if mirrored[row] else wanted
        assert np.array_equal(found[row].numpy(), wanted), row


def test_mapped_moves_mirrors_and_turns_as_whole_pixels_do() -> None:
    pictures = some()
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(ROWS, 2, 3)
    torch.testing.assert_close(ops.mapped(pictures, identity), pictures.float(), atol=2e-3, rtol=0)
    mirror = identity * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(ops.mapped(pictures, mirror), pictures.flip(3).float(), atol=2e-3, rtol=0)
    move = identity + torch.tensor([[0.0, 0, 2], [0, 0, -1]])  # read two pixels further right, one higher up
    found = ops.mapped(pictures, move)
    torch.testing.assert_close(found[:, :, 1:, :-2], pictures[:, :, :-1, 2:].float(), atol=2e-3, rtol=0)
    square = pictures[:, :, :, :HEIGHT]
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).expand(ROWS, 2, 3)
    turned = square.rot90(1, dims=(2, 3)).float()
    torch.testing.assert_close(ops.mapped(square, quarter), turned, atol=2e-3, rtol=0)


ENHANCED = [
    (ops.brightness, ImageEnhance.Brightness),
    (ops.contrast, ImageEnhance.Contrast),
    (ops.saturation, ImageEnhance.Color),
    (ops.sharpness, ImageEnhance.Sharpness),
]


@pytest.mark.parametrize(("change", "enhance"), ENHANCED)
@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
def test_factors_as_pillow_has_them(change: Any, enhance: Any, factor: float) -> None:
    pictures = some()
    wanted = through_pillow(pictures, lambda picture: enhance(picture).enhance(factor))
    found = change(pictures.float(), torch.full((ROWS,), factor))
    assert (found - wanted.float()).abs().max() <= 2  # it rounds its greys and means
    if factor == 1:
        torch.testing.assert_close(found, pictures.float(), atol=1e-4, rtol=0)


def test_values_as_pillow_moves_them() -> None:
    pictures = some()
    assert torch.equal(ops.equalized(pictures.float()), through_pillow(pictures, ImageOps.equalize).float())
    stretched = through_pillow(pictures, ImageOps.autocontrast).float()
    assert (ops.autocontrast(pictures.float()) - stretched).abs().max() <= 1
    for bits in (8, 4, 1):
        wanted = through_pillow(
            pictures, lambda picture, bits=bits: ImageOps.posterize(picture, bits)
        ).float()
        assert torch.equal(ops.posterized(pictures.float(), torch.full((ROWS,), bits)), wanted)
    for threshold in (0, 100, 256):
        wanted = through_pillow(
            pictures, lambda picture, at=threshold: ImageOps.solarize(picture, at)
        ).float()
        assert torch.equal(ops.solarized(pictures.float(), torch.full((ROWS,), float(threshold))), wanted)


def test_inside() -> None:
    found = ops.inside(torch.tensor([[1.0, 3, 0, 2], [0, 0, 0, 9], [0, HEIGHT, 0, WIDTH]]), HEIGHT, WIDTH)
    wanted = torch.zeros(3, 1, HEIGHT, WIDTH, dtype=torch.bool)
    wanted[0, 0, 1:3, 0:2] = True
    wanted[2] = True
    assert torch.equal(found, wanted)


def test_a_picture_of_one_pixel() -> None:
    one = torch.full((2, 3, 1, 1), 9, dtype=torch.uint8)
    zero, turned = torch.zeros(2, dtype=torch.int64), torch.tensor([True, False])
    assert torch.equal(ops.moved(one, zero, zero, turned), one)
    assert torch.equal(ops.sharpness(one.float(), torch.ones(2)), one.float())
