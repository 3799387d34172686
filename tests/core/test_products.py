"""Products by oneDNN: the numbers of torch's own, gradients too, wherever they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core import products
from llmtool.models.layers import Conv1D, Linear

ROWS, INPUTS, OUTPUTS = 96, 320, 256  # 7.9 million multiplications
pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch is built without oneDNN"
)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """As on a processor where it pays: (M, K, N) of the products that oneDNN was given."""
    asked: list[tuple[int, int, int]] = []
    real = torch.ops.llmtool.product.default

    def noted(a: Tensor, b: Tensor, bias: Tensor | None) -> Any:
        asked.append((*a.shape, b.shape[1]))
        return real(a, b, bias)

    monkeypatch.setattr(torch.ops.llmtool, "product", noted)
    monkeypatch.setattr(products, "HERE", True)
    return asked


def gradients(result: Tensor, *wanted: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad((result * torch.randn(result.shape)).sum(), wanted))


@pytest.mark.parametrize("turned", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [INPUTS, 200], ids=["wide", "narrow"])  # which of two is copied
def test_a_layer_and_its_gradients(turned: bool, bias: bool, inputs: int, calls: list[Any]) -> None:
    x = torch.randn(4, ROWS // 2, inputs, requires_grad=True)
    weight = torch.randn((inputs, OUTPUTS) if turned else (OUTPUTS, inputs), requires_grad=True)
    offset = torch.randn(OUTPUTS, requires_grad=True) if bias else None
    wanted = [x, weight] + ([offset] if offset is not None else [])
    found = products.linear(x, weight, offset, turned)
    ours = [found, *gradients(found, *wanted)]
    assert len(calls) == 3
    wide = [each.detach().double().requires_grad_() for each in wanted]
    right = F.linear(wide[0], wide[1].t() if turned else wide[1], wide[2] if bias else None)
    theirs = [right, *gradients(right, *wide)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-4)


def test_only_the_gradients_that_are_wanted(calls: list[Any]) -> None:
    x, weight = torch.randn(ROWS, INPUTS, requires_grad=True), torch.randn(OUTPUTS, INPUTS)
    products.linear(x, weight).sum().backward()
    assert calls == [(ROWS, INPUTS, OUTPUTS), (ROWS, OUTPUTS, INPUTS)]


def test_what_stays_with_torch(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(OUTPUTS, INPUTS)
    products.linear(torch.randn(products.FEWEST - 1, INPUTS), torch.randn(4096, INPUTS))  # few rows
    products.linear(torch.randn(32, 64), torch.randn(64, 64))  # too small
    products.linear(torch.randn(ROWS, INPUTS).double(), weight.double())
    products.linear(torch.randn(ROWS, INPUTS, device="meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(torch.randn(ROWS, INPUTS), weight).dtype == torch.bfloat16
    monkeypatch.setattr(products, "HERE", False)
    products.linear(torch.randn(ROWS, INPUTS), weight)
    assert calls == []


def test_products_of_stacks(calls: list[Any]) -> None:
    a, b, added = torch.randn(3, ROWS, INPUTS), torch.randn(3, INPUTS, OUTPUTS), torch.randn(3, ROWS, OUTPUTS)
    torch.testing.assert_close(products.bmm(a, b), torch.bmm(a, b), rtol=1e-5, atol=1e-4)
    found = products.baddbmm(added, a, b, beta=0.5, alpha=-2.0)
    right = torch.baddbmm(added, a, b, beta=0.5, alpha=-2.0)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=2e-4)
    assert len(calls) == 6
    small = torch.randn(2, 8, 8)
    assert torch.equal(products.bmm(small, small), small @ small)
    assert len(calls) == 6


def test_a_layer_is_torchs_own_to_all_others() -> None:
    torch.manual_seed(0)
    ours = Linear(INPUTS, OUTPUTS)
    torch.manual_seed(0)
    theirs = nn.Linear(INPUTS, OUTPUTS)
    assert all(
        torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    x = torch.randn(ROWS, INPUTS)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_graphs_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    monkeypatch.undo()
    monkeypatch.setattr(products, "HERE", True)
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(ROWS, INPUTS, requires_grad=True)
    expected = gradients(layer(x), x, layer.weight)
    there: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        there.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=look), fullgraph=True)
    for found, right in zip(gradients(compiled(x), x, layer.weight), expected, strict=True):
        torch.testing.assert_close(found, right)
    assert there.count("llmtool.product.default") == 3


def test_an_exported_program_knows_nothing_of_it() -> None:
    model = nn.Sequential(Linear(INPUTS, OUTPUTS), nn.GELU(), Conv1D(OUTPUTS, INPUTS)).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (torch.randn(ROWS, INPUTS),), dynamic_shapes=({0: rows},))
    assert not [node for node in program.graph.nodes if "llmtool" in str(node.target)]


def test_which_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert not products.mkl_is_slow()  # not Linux
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    assert not products.mkl_is_slow()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert products.mkl_is_slow()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not products.mkl_is_slow()  # before Zen 4: both have AVX2
