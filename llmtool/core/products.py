"""Matrix products in float32 on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch has MKL multiply, which keeps to AVX2 on processors of AMD, also on those that have AVX-512. oneDNN,
which multiplies bfloat16 and convolves, goes by what the processor can: there it is given the float32
products that are worth the call, twice as fast on a core of Zen 5 (scripts/benchmarks/products.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PROCESSORS = Path("/proc/cpuinfo")
FEWEST = 16  # rows: of fewer the weight is packed for almost nothing
SMALLEST = 6 * 2**20  # multiplications: of fewer the longer way there costs more than it saves


def mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 on which MKL does without it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in PROCESSORS.read_text()
    return False


HERE = mkl_is_slow()  # asked once: torch.compile would read the file each time it traces a layer


def pays(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is to multiply these, (M, K) and (K, N)."""
    return (
        HERE
        and not torch.compiler.is_exporting()  # other programs know torch's own operations, of any shapes
        and a.is_cpu
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] >= FEWEST
        and a.numel() * b.shape[1] >= SMALLEST
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K) times (K, N), plus (N,) -> (M, N); without a gradient."""
    if pays(a, b):
        found: Tensor = torch.ops.llmtool.product(a, b, bias)
        return found
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """(S, M, K) times (S, K, N) -> (S, M, N), as torch.bmm; without a gradient."""
    if not pays(a[0], b[0]):
        return torch.bmm(a, b)
    return torch.stack([product(left, right) for left, right in zip(a, b, strict=True)])


def baddbmm(added: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """`beta` times (S, M, N) plus `alpha` times the products of (S, M, K) and (S, K, N), as torch.baddbmm."""
    if not pays(a[0], b[0]):
        return torch.baddbmm(added, a, b, beta=beta, alpha=alpha)
    return bmm(a, b).mul_(alpha).add_(added, alpha=beta)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, turned: bool = False) -> Tensor:
    """(..., K) times a weight (N, K), or (K, N) where it is `turned`, plus (N,) -> (..., N)."""
    matrix = weight if turned else weight.t()
    if HERE and x.is_cpu and not torch.is_autocast_enabled("cpu"):
        flat = x.reshape(-1, x.shape[-1])
        if pays(flat, matrix):
            found: Tensor = _Linear.apply(flat, weight, bias, turned)
            return found.view(*x.shape[:-1], found.shape[-1])
    return F.linear(x, matrix.t(), bias)


class _Linear(torch.autograd.Function):
    """(M, K), (N, K) or (K, N) where it is `turned`, (N,) or None -> (M, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.turned = turned
        return product(x, weight if turned else weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients  # (M, N)
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = product(gradient, weight.t() if ctx.turned else weight)
        if ctx.needs_input_grad[1]:
            few, many = (x, gradient) if x.shape[1] < gradient.shape[1] else (gradient, x)
            of_weight = product(few.t().contiguous(), many)  # of the smaller a copy is made column by column
            if (few is x) != ctx.turned:
                of_weight = of_weight.t()
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=0)
        return of_x, of_weight, of_bias, None


# Opaque to torch.compile, which takes oneDNN's operation for constant weights only. Of a Library and not a
# custom_op, whose calls take longer: the gradients are _Linear's.
_library = torch.library.Library("llmtool", "FRAGMENT")
_library.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return found


def _without_values(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


_library.impl("product", _product, "CPU")
_library.impl("product", _without_values, "Meta")
