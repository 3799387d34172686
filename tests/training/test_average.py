"""Averaged weights beside the closed form, swapped in and out exactly; statistics put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmtool.core.errors import LlmtoolError
from llmtool.training import average as average_module
from llmtool.training.average import Average, Statistics, moving, restore


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made[2].bias.requires_grad_(False)
    return made


def test_the_average_is_the_closed_form() -> None:
    """Of weights that are t at step t: the sum of t times what each later step left of it."""
    net, steps, decay = model(), 60, 0.7
    average = Average(net, decay)
    begin = {name: tensor.clone() for name, tensor in moving(net).items()}
    assert "2.bias" not in begin
    assert "1.running_var" in begin
    assert "1.num_batches_tracked" not in begin
    for step in range(steps):
        for tensor in moving(net).values():
            tensor.fill_(float(step))
        average.update(step)
    keeps = [min(decay, (1 + step) / (10 + step)) for step in range(steps)]
    assert keeps[0] == 0.1
    assert keeps[-1] == decay
    left = [torch.tensor(keeps[step + 1 :], dtype=torch.float64).prod().item() for step in range(steps)]
    wanted = sum((1 - keeps[step]) * step * left[step] for step in range(steps))
    start = torch.tensor(keeps, dtype=torch.float64).prod().item()
    with average.inside():
        for name, tensor in moving(net).items():
            torch.testing.assert_close(tensor, begin[name] * start + wanted, atol=1e-4, rtol=1e-5, msg=name)
    assert all((tensor == steps - 1).all() for tensor in moving(net).values())


@pytest.mark.parametrize("piece", [1, 64, average_module.PIECE], ids=["each apart", "some", "all at once"])
def test_skipped_on_the_device_is_skipped(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average_module, "PIECE", piece)
    net = model()
    average = Average(net, 0.9)
    with average.inside():
        before = {name: tensor.clone() for name, tensor in moving(net).items()}
    for tensor in moving(net).values():
        tensor.add_(1.0)
    average.update(50, torch.tensor(True))
    with average.inside():
        assert all(torch.equal(tensor, before[name]) for name, tensor in moving(net).items())
    average.update(50, torch.tensor(False))
    weight = 1 - 51 / 60
    with average.inside():
        for name, tensor in moving(net).items():
            torch.testing.assert_close(tensor, before[name] + weight)


def test_restore_is_exact_and_refuses_others() -> None:
    net, other = model(), nn.Linear(3, 4)
    saved = {name: tensor + 1 for name, tensor in moving(net).items()}
    restore(net, saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in moving(net).items())
    with pytest.raises(LlmtoolError, match="of another model"):
        restore(other, saved)


@pytest.mark.parametrize("skip", [None, True, False])
def test_statistics_are_put_back(skip: bool | None) -> None:
    net = model()
    kept = Statistics(net)
    net(torch.randn(8, 3))
    kept.keep()
    before = net[1].running_mean.clone()
    net(torch.randn(8, 3) + 5)
    after = net[1].running_mean.clone()
    assert not torch.equal(before, after)
    kept.put_back(None if skip is None else torch.tensor(skip))
    assert torch.equal(net[1].running_mean, after if skip is False else before)
