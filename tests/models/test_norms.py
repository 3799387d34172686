"""The root mean square norm of a CPU: torch's numbers and gradients in fewer passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmtool.models.layers import OffsetRMSNorm, RMSNorm, rms_norm


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 4, 24)], ids=str)
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).mul_(3).requires_grad_(), torch.randn(24, requires_grad=True)
    towards = torch.randn(shape)
    found = rms_norm(x, weight, 1e-6)
    ours = [found, *torch.autograd.grad((found * towards).sum(), (x, weight))]
    wide = [each.detach().double().requires_grad_() for each in (x, weight)]
    right = F.rms_norm(wide[0], (24,), wide[1], 1e-6)
    theirs = [right, *torch.autograd.grad((right * towards).sum(), wide)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_a_vector_of_zeros_and_one_that_is_not_finite() -> None:
    x = torch.zeros(3, 8)
    x[1] = torch.nan
    x[2, 0] = torch.inf
    found = rms_norm(x, torch.ones(8), 1e-6)
    right = F.rms_norm(x, (8,), torch.ones(8), 1e-6)
    assert torch.equal(found[0], torch.zeros(8))
    assert torch.equal(found.isfinite(), right.isfinite())


def test_only_the_gradients_that_are_wanted() -> None:
    layer, x = RMSNorm(8, 1e-6), torch.randn(4, 8)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(requires_grad=False)
    assert not layer(x).requires_grad
    assert layer(x.requires_grad_()).requires_grad


def test_gemmas_is_one_plus_the_weight_and_bfloat16_is_torchs_own() -> None:
    x = torch.randn(4, 8)
    torch.testing.assert_close(OffsetRMSNorm(8, 1e-6)(x), RMSNorm(8, 1e-6)(x))
    low = x.bfloat16()
    assert torch.equal(RMSNorm(8, 1e-6)(low), F.rms_norm(low, (8,), torch.ones(8).bfloat16(), 1e-6))
