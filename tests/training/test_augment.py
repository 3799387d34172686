"""Augmentation: off is nothing, chances are the step's alone, any split of a batch sees the same pictures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from llmtool.core.contracts import Batch, Images
from llmtool.training.augment import OPERATIONS, Augment, AugmentConfig, draw

SHAPE = Images(3, 10, 14)
ROWS = 12
EVERYTHING = {
    "crop": 3,
    "flip": True,
    "colour": 0.4,
    "randaugment": {"operations": 2, "magnitude": 12.0},
    "erase": 0.5,
}
CONFIGS: list[dict[str, Any]] = [
    {"crop": 2},
    {"flip": True},
    {"rotate": 20.0},
    {"resized_crop": [0.3, 1.0]},
    {"colour": 0.4},
    {"erase": 1.0},
    {"randaugment": {}},
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {**EVERYTHING, "mixup": 0.2, "cutmix": 1.0},
    {**EVERYTHING, "rotate": 10.0, "resized_crop": [0.5, 0.9], "mixup": 0.2, "cutmix": 1.0},
]


def config(**keys: Any) -> AugmentConfig:
    return AugmentConfig.model_validate(keys)


def rows(first: int, count: int) -> Batch:
    """Rows of step 0, the same whoever asks."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 256, (ROWS, 3, 10, 14), generator=generator, dtype=torch.uint8)
    scale = torch.tensor([100.0, 120.0, 90.0]), torch.tensor([50.0, 60.0, 70.0])
    part = slice(first, first + count)
    return Batch(inputs[part], torch.arange(ROWS)[part], scale=scale)


def seen(augment: Augment, step: int, first: int, count: int) -> Batch:
    """As the loop gives them to a model."""
    cpu = torch.device("cpu")
    batch = rows(first, count).on(cpu).ready(augment.change(step, first))
    if not augment.mixes:
        return batch
    other = ROWS - first - count
    met = rows(other, count).on(cpu).ready(augment.change(step, other))
    return augment.mixed(batch, met, step, first)


def augment(**keys: Any) -> Augment:
    return Augment(config(**keys), SHAPE, seed=5, batch=ROWS)


def test_off_is_nothing() -> None:
    assert not config().active
    assert not config().mixes
    plain = rows(0, ROWS).to(torch.device("cpu"))
    assert torch.equal(seen(augment(), 0, 0, ROWS).inputs, plain.inputs)


def test_no_strength_is_nothing() -> None:
    for number in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13):  # all but those that have no strength
        x = rows(0, ROWS).inputs.float()
        torch.testing.assert_close(
            OPERATIONS[number](x, np.zeros(ROWS), 10, 14), x if number != 3 else _white_negated(x),
            atol=3e-3, rtol=0,
        )  # fmt: skip


def _white_negated(x: Tensor) -> Tensor:
    """Solarize from 255 on, as torchvision's weakest."""
    return torch.where(x >= 255, 255 - x, x)


@pytest.mark.parametrize("keys", CONFIGS)
def test_the_split_of_a_batch_changes_nothing(keys: dict[str, Any]) -> None:
    whole = seen(augment(**keys), 7, 0, ROWS)
    assert whole.inputs.shape == (ROWS, 3, 10, 14)
    assert whole.inputs.dtype == torch.float32
    assert torch.isfinite(whole.inputs).all()
    for size in (6, 4, 1):
        parts = [seen(augment(**keys), 7, first, size) for first in range(0, ROWS, size)]
        joined = torch.cat([part.inputs for part in parts])
        torch.testing.assert_close(joined, whole.inputs, atol=1e-5, rtol=0)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        if whole.mixed is not None:
            for at in (0, 1):
                assert torch.equal(
                    torch.cat([part.mixed[at] for part in parts if part.mixed]), whole.mixed[at]
                )


@pytest.mark.parametrize("keys", CONFIGS)
def test_a_step_has_chances_of_its_own(keys: dict[str, Any]) -> None:
    first, again = augment(**keys), augment(**keys)
    seen(first, 3, 0, ROWS)  # what came before does not matter
    here, there = seen(first, 4, 0, ROWS), seen(again, 4, 0, ROWS)
    assert torch.equal(here.inputs, there.inputs)
    assert not torch.equal(here.inputs, seen(again, 5, 0, ROWS).inputs)
    other = Augment(config(**keys), SHAPE, seed=6, batch=ROWS)
    assert not torch.equal(here.inputs, seen(other, 4, 0, ROWS).inputs)
    assert not torch.equal(here.inputs, rows(0, ROWS).to(torch.device("cpu")).inputs)


def test_crop_and_flip_show_each_picture_moved() -> None:
    found = augment(crop=2, flip=True)
    batch = rows(0, ROWS)
    given = replace(batch, inputs=batch.inputs[:, :1].clone())
    changed = found.change(0, 0)(given).inputs
    chances = found._of(0)
    assert 0 < chances.mirrored.sum() < ROWS
    assert np.abs(chances.shift).max() == 2
    for row, (down, right) in enumerate(chances.shift.astype(int)):
        wide = np.pad(given.inputs[row, 0].numpy(), 2, mode="reflect")
        wanted = wide[2 - down : 12 - down, 2 - right : 16 - right]
        assert np.array_equal(changed[row, 0].numpy(), wanted[:, ::-1] if chances.mirrored[row] else wanted)


def test_a_crop_beyond_the_picture_reaches_one_mirror_image() -> None:
    small = Images(1, 2, 3)
    shift = draw(config(crop=100), small, 0, 0, 400).shift
    assert (np.abs(shift).max(axis=0) == [1, 2]).all()


def test_erased_rectangles_have_the_mean() -> None:
    share = []
    for step in range(20):
        found = augment(erase=0.5)
        before = rows(0, ROWS)
        after = found.change(step, 0)(before).inputs
        mean = before.scale[0].view(-1, 1, 1)  # type: ignore[index]
        gone = (after != before.inputs).any(dim=1)
        assert (after == mean).all(dim=1)[gone].all()
        share += gone.float().mean(dim=(1, 2)).tolist()
    erased = [each for each in share if each > 0]
    assert 0.35 < len(erased) / len(share) < 0.65
    assert max(erased) < 0.45


def test_mixed_pictures_by_hand() -> None:
    found = augment(mixup=0.4, cutmix=1.0)
    batch, plain = seen(found, 2, 0, ROWS), rows(0, ROWS).to(torch.device("cpu"))
    assert batch.mixed is not None
    others, share = batch.mixed
    assert torch.equal(others, plain.targets.flip(0))
    chances, met = found._of(2), plain.inputs.flip(0)
    assert 0 < chances.mixed.sum() < ROWS
    for row in range(ROWS):
        own = batch.inputs[row]
        if chances.mixed[row]:
            wanted = share[row] * plain.inputs[row] + (1 - share[row]) * met[row]
            torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)
        else:
            kept = (own == plain.inputs[row]).all(dim=0)
            assert torch.equal(torch.where(kept, met[row], own), met[row])
            assert kept.float().mean().item() == pytest.approx(share[row].item(), abs=0.05)


def test_the_chances_are_those_asked_for() -> None:
    many = draw(
        config(mixup=0.2, cutmix=1.0, resized_crop=[0.25, 0.5], rotate=30.0, flip=True), SHAPE, 0, 0, 4000
    )
    assert many.mixed.mean() == pytest.approx(0.5, abs=0.03)
    assert many.share.min() >= 0
    assert many.share.max() <= 1
    area = np.abs(np.linalg.det(many.matrices[:, :, :2]))
    assert 0.24 < area.min() < 0.27
    assert 0.47 < area.max() <= 0.5 + 1e-9
    assert (np.linalg.det(many.matrices[:, :, :2]) < 0).mean() == pytest.approx(0.5, abs=0.03)
    corners = np.array(list(itertools.product((-7, 7), (-5, 5))), dtype=float)
    straight = draw(config(resized_crop=[0.25, 0.5]), SHAPE, 0, 0, 4000).matrices
    reached = np.einsum("nij,kj->nki", straight[:, :, :2], corners) + straight[:, None, :, 2]
    assert (np.abs(reached) <= np.array([7, 5]) + 1e-9).all()  # never outside the picture


def test_mistakes_are_named() -> None:
    with pytest.raises(ValidationError, match="least share comes first"):
        config(resized_crop=[1.0, 0.3])
