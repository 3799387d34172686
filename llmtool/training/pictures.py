"""Changes of pictures, many at once on any device: geometry, colours, RandAugment's operations, rectangles.

Pictures are (B, c, h, w) of 0 to 255. What a change needs to know of each row comes as (B,) tensors on the
pictures' device; nothing here is random and nothing waits for a device. What comes in at the edges of a moved
picture is its own mirror image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # of red, green and blue in the brightness that eyes see (ITU-R BT.601)


def moved(pictures: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Pictures moved by whole pixels, then the `mirrored` ones (bool) turned left to right; any dtype.

    down, right: (B,) int64, each less than the picture's height and width.
    """
    rows, channels, height, width = pictures.shape
    across = torch.arange(width, device=pictures.device)
    across = torch.where(mirrored[:, None], width - 1 - across, across) - right[:, None]  # (B, w)
    upright = torch.arange(height, device=pictures.device) - down[:, None]  # (B, h)
    row = torch.arange(rows, device=pictures.device)[:, None, None, None]
    channel = torch.arange(channels, device=pictures.device)[None, :, None, None]
    at = _reflected(upright, height)[:, None, :, None], _reflected(across, width)[:, None, None, :]
    return pictures[row, channel, *at]


def _reflected(place: Tensor, size: int) -> Tensor:
    """Places outside 0..size-1, but for the edge pixel itself, as seen in a mirror at the edge."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place).clamp(min=0)  # a side of one pixel


def mapped(pictures: Tensor, matrices: Tensor) -> Tensor:
    """Pictures seen through an affine map, bilinear: (B, c, h, w) -> the same, float32.

    matrices: (B, 2, 3), which take a place of the result to the place it is read from: right and down from
    the middle, in pixels.
    """
    height, width = pictures.shape[2:]
    theta = matrices.clone()  # grid_sample counts both sides from -1 to 1
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    theta[:, 0, 2] *= 2 / width
    theta[:, 1, 2] *= 2 / height
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures.float(), grid, padding_mode="reflection", align_corners=False)


def grey(pictures: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, 1, h, w): brightness; pictures of other than three channels have their mean."""
    if pictures.shape[1] != 3:
        return pictures.mean(dim=1, keepdim=True)
    red, green, blue = pictures.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(1)


def towards(pictures: Tensor, other: Tensor | float, factors: Tensor) -> Tensor:
    """`other` where the factor is 0, the picture where it is 1, further away from `other` above that."""
    return (other + (pictures - other) * factors[:, None, None, None]).clamp(0, 255)


def brightness(pictures: Tensor, factors: Tensor) -> Tensor:
    """Times the factor."""
    return towards(pictures, 0.0, factors)


def contrast(pictures: Tensor, factors: Tensor) -> Tensor:
    """Towards, or away from, the mean brightness of the picture."""
    return towards(pictures, grey(pictures).mean(dim=(1, 2, 3), keepdim=True), factors)


def saturation(pictures: Tensor, factors: Tensor) -> Tensor:
    """Towards, or away from, the picture without colours."""
    return towards(pictures, grey(pictures), factors)


def sharpness(pictures: Tensor, factors: Tensor) -> Tensor:
    """Towards, or away from, the softened picture; its border stays as it is."""
    channels = pictures.shape[1]
    if min(pictures.shape[2:]) < 3:
        return pictures
    kernel = torch.ones(channels, 1, 3, 3, device=pictures.device)  # Pillow's SMOOTH
    kernel[:, :, 1, 1] = 5.0
    soft = pictures.clone()
    soft[:, :, 1:-1, 1:-1] = F.conv2d(pictures, kernel / 13, groups=channels)
    return towards(pictures, soft, factors)


def autocontrast(pictures: Tensor) -> Tensor:
    """Each channel stretched, so that its darkest pixel is 0 and its brightest 255."""
    low, high = pictures.amin(dim=(2, 3), keepdim=True), pictures.amax(dim=(2, 3), keepdim=True)
    flat = high <= low
    stretched = (pictures - low) * (255 / torch.where(flat, 1.0, high - low))
    return torch.where(flat, pictures, stretched)


def equalized(pictures: Tensor) -> Tensor:
    """Each channel's values moved so that all are about as frequent; as Pillow's ImageOps.equalize."""
    rows, channels = pictures.shape[:2]
    values = pictures.round().clamp(0, 255).long().flatten(2)  # (B, c, h * w)
    counts = torch.zeros(rows, channels, 256, dtype=torch.int64, device=pictures.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(dim=2, keepdim=True))  # of the brightest value
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(dim=2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, values), values).view_as(pictures).to(pictures.dtype)


def posterized(pictures: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits` (B,) of each value are kept."""
    step = torch.exp2(8 - bits.float())[:, None, None, None]
    return (pictures.round() / step).floor() * step


def solarized(pictures: Tensor, threshold: Tensor) -> Tensor:
    """Values from the threshold (B,) on are turned into their negative."""
    return torch.where(pictures >= threshold[:, None, None, None], 255 - pictures, pictures)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """(B, 4) top, bottom, left and right, the second and fourth excluded -> (B, 1, h, w) bool: the pixels in
    them."""
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(dim=1))  # (B, 1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    upright, across = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (B, h), (B, w)
    return (upright[:, :, None] & across[:, None, :]).unsqueeze(1)
