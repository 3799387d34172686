"""Attention written out: the kernel's numbers and gradients, where it is faster and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmtool.models import attention as module
from llmtool.models.attention import attention


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As on a processor with units for bfloat16: shapes of the queries that did without the kernel."""
    monkeypatch.setattr(module, "HERE", True)
    asked: list[Any] = []
    real = module.by_products

    def noted(query: Tensor, *more: Any) -> Tensor:
        asked.append(tuple(query.shape))
        return real(query, *more)

    monkeypatch.setattr(module, "by_products", noted)
    return asked


def three(keys: int = 4, tokens: int = 24) -> list[Tensor]:
    heads = (4, keys, keys)
    return [torch.randn(2, each, tokens, 16, requires_grad=True) for each in heads]


def off(found: list[Tensor], right: list[Tensor]) -> list[float]:
    """Relative errors."""
    pairs = zip(found, right, strict=True)
    return [float((one.double() - other).norm() / other.norm()) for one, other in pairs]


@pytest.mark.parametrize("keys", [4, 2], ids=["heads", "shared"])
@pytest.mark.parametrize("sight", ["causal", "mask", "all"])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_numbers_and_gradients_are_as_near_as_the_kernels(
    keys: int, sight: str, scale: float | None, written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, gradient = three(keys), torch.randn(2, 4, 24, 16)
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril() if sight == "mask" else None
    if mask is not None:
        mask[1, :, 12:, :12] = False  # a second document

    def all_of(dtype: torch.dtype) -> list[Tensor]:
        tensors = [each.detach().to(dtype).requires_grad_() for each in given]
        found = attention(*tensors, mask, sight == "causal", scale=scale)
        assert found.dtype == dtype
        return [found.detach(), *torch.autograd.grad(found, tensors, gradient.to(dtype))]

    right = all_of(torch.float64)
    assert written == []
    ours = off(all_of(torch.bfloat16), right)
    assert written == [(2, 4, 24, 16)]
    monkeypatch.setattr(module, "MOST", 0)
    theirs = off(all_of(torch.bfloat16), right)
    assert len(written) == 1
    assert all(0 < one < 1.5 * other < 0.02 for one, other in zip(ours, theirs, strict=True))


def test_under_autocast_it_is_taken_and_gives_bfloat16(written: list[Any]) -> None:
    given = three()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(*given, causal=True)
    assert found.dtype == torch.bfloat16
    assert written == [(2, 4, 24, 16)]
    gradients = torch.autograd.grad(found.sum(), given)
    assert [each.dtype for each in gradients] == [torch.float32] * 3


def test_elsewhere_the_kernel_stays(written: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = three()
    attention(*given, causal=True)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        with monkeypatch.context() as patch:
            patch.setattr(module, "HERE", False)
            attention(*given, causal=True)
        attention(*given, dropout=0.5)
        attention(*(each.detach() for each in given))
        with torch.no_grad():
            attention(*given)
        attention(*three(tokens=300))
    assert written == []


def test_only_what_learns_has_a_gradient(written: list[Any]) -> None:
    query, key, value = (each.detach().bfloat16() for each in three())
    value.requires_grad_()
    attention(query, key, value).sum().backward()
    assert written
    assert query.grad is None
    assert value.grad is not None


def test_its_gradients_are_those_of_a_difference() -> None:
    """In float64, where differences are exact enough: the formulas, not the rounding."""
    tensors = [each.detach().double().requires_grad_() for each in three(tokens=5)]
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.autograd.gradcheck(lambda *x: module._ByProducts.apply(*x, mask, 0.3), tensors)
