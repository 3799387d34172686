"""Augmentation: pictures changed at random before a training step sees them, in batches on the device.

The chances of a step are drawn for its whole batch on the host, from (seed, "augment", step): they depend
neither on how the batch is split nor on what came before, and a resumed run meets them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from llmtool.core import seeds
from llmtool.core.config import Section
from llmtool.core.contracts import Batch, Images
from llmtool.training import pictures as ops

Share = Annotated[float, Field(gt=0, le=1)]
Numbers = NDArray[np.float64]

STRONGEST = 30  # magnitude of RandAugment's strongest operations
ASPECT = 4 / 3  # of a resized crop: at most so much wider or narrower than the picture
ERASED, ERASED_ASPECT = (0.02, 1 / 3), 3.3  # share of a picture that is erased; its shape


class RandAugmentConfig(Section):
    """So many operations of one strength, drawn for each picture (https://arxiv.org/abs/1909.13719)."""

    operations: int = Field(
        default=2, gt=0, le=16, description="operations on each picture, one after another"
    )
    magnitude: float = Field(default=9.0, ge=0, le=STRONGEST, description="how strong each of them is, of 30")


class AugmentConfig(Section):
    """What is done at random to training pictures; validation and test pictures are left as they are."""

    crop: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="moved by up to so many pixels each way; its mirror image comes in at the edges",
    )
    resized_crop: list[Share] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="a random part of each picture, with this least and largest share of its area, is seen "
        "in the picture's size: [0.35, 1.0]",
    )
    rotate: float = Field(default=0.0, ge=0, le=180, description="turned by up to so many degrees either way")
    flip: bool = Field(default=False, description="every other picture is mirrored left to right")
    colour: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="brightness, contrast and saturation are multiplied by up to 1 plus or minus this",
    )
    randaugment: RandAugmentConfig | None = Field(
        default=None, description="RandAugment: operations drawn from fourteen"
    )
    erase: float = Field(
        default=0.0, ge=0, le=1, description="share of the pictures in which a rectangle is erased"
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="each picture is mixed with another, in shares from a Beta distribution with this as "
        "both its parameters",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="a rectangle of another picture replaces a share drawn as for mixup; with both, each "
        "picture gets one of the two",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.resized_crop and self.resized_crop[0] > self.resized_crop[1]:
            raise ValueError(f"resized_crop: the least share comes first (got {self.resized_crop})")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self != AugmentConfig()

    @property
    def mixes(self) -> bool:
        """Whether a picture may become two, with two targets."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Chances:
    """What chance says of a step: (n,) or (n, k) for its n rows.

    shift: down and right, in pixels. boxes: top, bottom, left and right of what is erased, and of what is cut
    out for another picture. chosen, strength: (n, operations) number of RandAugment's operation, its signed
    strength in -1..1. share: of a picture that stays itself. mixed: whether it is mixed, not cut.
    """

    shift: Numbers
    mirrored: NDArray[np.bool_]
    matrices: Numbers  # (n, 2, 3)
    colour: Numbers  # (n, 3)
    chosen: NDArray[np.int64]
    strength: Numbers
    erased: Numbers
    cut: Numbers
    share: Numbers
    mixed: NDArray[np.bool_]


class Augment:
    """The changes of a run of `batch` rows a step."""

    def __init__(self, config: AugmentConfig, inputs: Images, seed: int, batch: int) -> None:
        self.config, self.inputs, self.seed, self.batch = config, inputs, seed, batch
        self._drawn: tuple[int, Chances] | None = None  # of the last step asked for

    @property
    def mixes(self) -> bool:
        """Whether `mixed` has work to do."""
        return self.config.mixes

    def change(self, step: int, first: int) -> Callable[[Batch], Batch]:
        """What happens to rows `first` and following of a step, while their pictures are bytes."""
        return partial(self._changed, step, first)

    def mixed(self, batch: Batch, others: Batch, step: int, first: int) -> Batch:
        """Rows `first` and following of a step with others mixed in, and with both targets.

        Both are changed and standardised already. Row i of the step meets row batch - 1 - i: others holds
        these, the last of them first met. https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899
        """
        chances = self._of(step)
        part, device = slice(first, first + len(batch)), batch.inputs.device
        other, cut = others.inputs.flip(0), ops.inside(_on(chances.cut[part], device), *self._size)
        share = _on(chances.share[part], device)
        whole = _on(chances.mixed[part], device)[:, None, None, None]
        weights = torch.where(whole, share[:, None, None, None], (~cut).float())  # (B, 1, 1 or h, 1 or w)
        inputs = torch.lerp(other, batch.inputs, weights)
        return replace(batch, inputs=inputs, mixed=(others.targets.flip(0), share))

    @property
    def _size(self) -> tuple[int, int]:
        return self.inputs.height, self.inputs.width

    def _of(self, step: int) -> Chances:
        if self._drawn is None or self._drawn[0] != step:
            self._drawn = step, draw(self.config, self.inputs, self.seed, step, self.batch)
        return self._drawn[1]

    def _changed(self, step: int, first: int, batch: Batch) -> Batch:
        config, chances, x = self.config, self._of(step), batch.inputs
        part, device = slice(first, first + len(batch)), x.device
        if config.rotate or config.resized_crop:
            x = ops.mapped(x, _on(chances.matrices[part], device))
        elif config.crop or config.flip:
            down, right = _on(chances.shift[part].astype(np.int64), device).unbind(dim=1)
            x = ops.moved(x, down, right, _on(chances.mirrored[part], device))
        if config.randaugment:
            x = x.float()
            for layer in range(config.randaugment.operations):
                x = self._operated(x, chances.chosen[part, layer], chances.strength[part, layer])
        if config.colour:
            factors = _on(chances.colour[part], device)
            x = ops.contrast(ops.brightness(x.float(), factors[:, 0]), factors[:, 1])
            x = ops.saturation(x, factors[:, 2]) if x.shape[1] == 3 else x
        if config.erase:
            assert batch.scale is not None
            gone = ops.inside(_on(chances.erased[part], device), *self._size)
            x = torch.where(gone, batch.scale[0].view(-1, 1, 1), x.float())
        return replace(batch, inputs=x)

    def _operated(self, x: Tensor, chosen: NDArray[np.int64], strength: Numbers) -> Tensor:
        """One of RandAugment's operations for each row; which rows share one is known on the host."""
        x = x.clone()
        height, width = self._size
        for number, operation in enumerate(OPERATIONS):
            rows = np.flatnonzero(chosen == number)
            if len(rows):
                at = _on(rows, x.device)
                x[at] = operation(x[at], strength[rows], height, width)
        return x


def draw(config: AugmentConfig, inputs: Images, seed: int, step: int, rows: int) -> Chances:
    """The chances of a step, a function of seed and step; those of randaugment, mixup and cutmix are drawn
    only where these are on."""
    chance = seeds.generator(seed, "augment", step)
    height, width = inputs.height, inputs.width
    operations = config.randaugment.operations if config.randaugment else 0
    even = chance.random((rows, 19))
    signed = 2 * even - 1
    reach = np.minimum(config.crop, np.array([height, width]) - 1)  # (2,) one mirror image reaches no further
    shift = np.floor(even[:, :2] * (2 * reach + 1)) - reach
    mirrored = (even[:, 2] < 0.5) & config.flip
    kinds = chance.random((rows, 2 * operations))
    mixed = (even[:, 16] < 0.5) if config.mixup and config.cutmix else np.full(rows, bool(config.mixup))
    share = np.ones(rows)
    for here, both in ((mixed, config.mixup), (~mixed, config.cutmix)):
        if both:
            share = np.where(here, chance.beta(both, both, rows), share)
    cut = _boxes(1 - share, np.ones(rows), even[:, 14:16], height, width, whole=False)
    area = (cut[:, 1] - cut[:, 0]) * (cut[:, 3] - cut[:, 2]) / (height * width)
    spread = ERASED[0] + even[:, 9] * (ERASED[1] - ERASED[0])
    shape = ERASED_ASPECT ** signed[:, 10]
    erased = _boxes(spread, shape, even[:, 11:13], height, width, whole=True)
    strength = (config.randaugment.magnitude if config.randaugment else 0) / STRONGEST
    return Chances(
        shift=shift,
        mirrored=mirrored,
        matrices=_matrices(config, even, shift, mirrored, height, width),
        colour=1 + config.colour * signed[:, 3:6],
        chosen=(kinds[:, :operations] * len(OPERATIONS)).astype(np.int64),
        strength=strength * np.where(kinds[:, operations:] < 0.5, -1.0, 1.0),
        erased=np.where((even[:, 13] < config.erase)[:, None], erased, 0),
        cut=cut,
        share=np.where(mixed, share, 1 - area),  # of a box that reaches over the edge less is cut
        mixed=mixed,
    )


def _boxes(area: Numbers, aspect: Numbers, place: Numbers, height: int, width: int, whole: bool) -> Numbers:
    """(n, 4) top, bottom, left, right of rectangles with this share of the area and this height to width.

    place: (n, 2) in 0..1. whole: all of a rectangle is inside; else its middle is.
    """
    tall = np.minimum(np.round(height * np.sqrt(area * aspect)), height)
    wide = np.minimum(np.round(width * np.sqrt(area / aspect)), width)
    sides = []
    for size, length, at in ((height, tall, place[:, 0]), (width, wide, place[:, 1])):
        start = np.floor(at * (size - length + 1)) if whole else np.floor(at * size) - length // 2
        sides += [np.clip(start, 0, size), np.clip(start + length, 0, size)]
    return np.stack(sides, axis=1)


def _matrices(
    config: AugmentConfig, even: Numbers, shift: Numbers, mirrored: NDArray[np.bool_], height: int, width: int
) -> Numbers:
    """(n, 2, 3) from a place of the result to a place of the picture: mirrored, turned, cropped, moved."""
    rows, signed = len(even), 2 * even - 1
    zoom, middle = np.ones((rows, 2)), np.zeros((rows, 2))  # across and upright
    if config.resized_crop:
        low, high = config.resized_crop
        area, aspect = low + even[:, 6] * (high - low), ASPECT ** signed[:, 7]
        zoom = np.minimum(np.sqrt(np.stack((area * aspect, area / aspect), axis=1)), 1.0)
        middle = (1 - zoom) * signed[:, (8, 17)] * (np.array([width, height]) / 2)
    turned = _turn(np.radians(config.rotate) * signed[:, 18])
    turned[:, :, 0] *= np.where(mirrored, -1.0, 1.0)[:, None]
    matrices = zoom[:, :, None] * turned
    return np.concatenate((matrices, (middle - shift[:, ::-1])[:, :, None]), axis=2)


def _turn(angle: Numbers) -> Numbers:
    """(n,) -> (n, 2, 2)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack((np.stack((cosine, -sine), -1), np.stack((sine, cosine), -1)), -2)


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    """Numbers of the host on the device, which is not waited for; floats become float32."""
    found = torch.from_numpy(np.ascontiguousarray(array))
    found = found.float() if found.is_floating_point() else found
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)


# --- RandAugment -----------------------------------------------------------------------------------------

Operation = Callable[[Tensor, Numbers, int, int], Tensor]


def _coloured(change: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """By a factor of up to 0.9 more or less."""
    return lambda x, strength, height, width: change(x, _on(1 + 0.9 * strength, x.device))


def _bent(matrix: Callable[[Numbers, int, int], Numbers]) -> Operation:
    """Through an affine map."""
    return lambda x, strength, height, width: ops.mapped(x, _on(matrix(strength, height, width), x.device))


def _affine(b: Any = 0.0, c: Any = 0.0, right: Any = 0.0, down: Any = 0.0) -> Numbers:
    """(n, 2, 3) of numbers and (n,) arrays: rows (1, b, right) and (c, 1, down)."""
    flat = np.stack(np.broadcast_arrays(1.0, b, right, c, 1.0, down), axis=-1).astype(np.float64)
    return flat.reshape(-1, 2, 3)


def _rotated(strength: Numbers, height: int, width: int) -> Numbers:
    turned = _turn(math.radians(30) * strength)
    return np.concatenate((turned, np.zeros((len(strength), 2, 1))), axis=2)


FARTHEST = 150 / 331  # of the side, that a picture is moved at most
OPERATIONS: tuple[Operation, ...] = (
    lambda x, strength, height, width: x,
    lambda x, strength, height, width: ops.autocontrast(x),
    lambda x, strength, height, width: ops.equalized(x),
    lambda x, strength, height, width: ops.solarized(x, _on(255 * (1 - np.abs(strength)), x.device)),
    lambda x, strength, height, width: ops.posterized(x, _on(8 - np.round(4 * np.abs(strength)), x.device)),
    _coloured(ops.brightness),
    _coloured(ops.contrast),
    _coloured(ops.saturation),
    _coloured(ops.sharpness),
    _bent(_rotated),
    _bent(lambda strength, height, width: _affine(b=0.3 * strength)),
    _bent(lambda strength, height, width: _affine(c=0.3 * strength)),
    _bent(lambda strength, height, width: _affine(right=FARTHEST * width * strength)),
    _bent(lambda strength, height, width: _affine(down=FARTHEST * height * strength)),
)
