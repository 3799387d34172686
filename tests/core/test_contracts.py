"""A batch on its way to a device: pictures are bytes until then, all other inputs what the model takes."""

import pytest
import torch

from llmtool.core.contracts import Batch

CPU = torch.device("cpu")
PICTURES = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2) * 10  # (B, c, h, w)
SCALE = (torch.tensor([0.0, 10.0, 20.0]), torch.tensor([1.0, 2.0, 4.0]))


def pictures() -> Batch:
    return Batch(PICTURES, torch.tensor([0, 1]), scale=SCALE)


def test_bytes_are_standardised_channel_by_channel() -> None:
    moved = pictures().to(CPU)
    assert moved.inputs.dtype == torch.float32
    assert moved.scale is None
    for channel, (mean, deviation) in enumerate(zip(*SCALE, strict=True)):
        expected = (PICTURES[:, channel].float() - mean) / deviation
        torch.testing.assert_close(moved.inputs[:, channel], expected, rtol=0, atol=0)
    assert moved.to(CPU).inputs is moved.inputs  # no second time


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_change_sees_bytes_and_may_give_floats_of_the_same_unit(dtype: torch.dtype) -> None:
    def change(batch: Batch) -> Batch:
        assert batch.inputs.dtype == torch.uint8
        assert batch.scale is not None
        return Batch(batch.inputs.flip(-1).to(dtype), batch.targets + 1, scale=batch.scale)

    moved = pictures().on(CPU).ready(change)
    torch.testing.assert_close(moved.inputs, pictures().to(CPU).inputs.flip(-1), rtol=0, atol=0)
    assert moved.targets.tolist() == [1, 2]
    assert torch.equal(PICTURES, pictures().inputs)  # what the store holds is as it was


@pytest.mark.cuda
def test_pinned_pictures_are_moved_and_standardised_without_waiting() -> None:
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    pinned = pictures().pinned()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = pinned.to(device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(moved.inputs.cpu(), pictures().to(CPU).inputs, rtol=1e-6, atol=0)


def test_other_batches_do_not_go_through_a_change() -> None:
    def change(batch: Batch) -> Batch:
        raise AssertionError("of pictures only")

    rows = Batch(torch.ones(2, 3), torch.zeros(2), torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 1))
    moved = rows.on(CPU).ready(change)
    assert moved.inputs is rows.inputs
    assert moved.segments is rows.segments
    assert moved.units is rows.units
