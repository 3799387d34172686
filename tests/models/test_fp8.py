"""Products in eight bits: near those of float32, forward and backward, whatever the numbers' size."""

import copy
import math

import pytest
import torch
from torch import nn

from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models import fp8
from llmtool.models.attention import by_kernel
from llmtool.models.layers import Conv1D, Linear
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig
from tests.models.small import Classes, Features

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TURNED = pytest.mark.parametrize("turned", [False, True], ids=["linear", "conv1d"])


@pytest.fixture(autouse=True)
def kernel():
    """Eight bits are for CUDA devices, whose attention is the kernel's."""
    with by_kernel():
        yield


def away(found, expected):
    """How far, as a share of how long."""
    exact = expected.double()
    return float((found.double() - exact).norm() / exact.norm())


def numbers(*shape, seed=0, size=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def both(x, weight, gradient, turned):
    """Result and gradients, in eight bits and in float32."""
    ways = []
    for multiply in (fp8.multiply, lambda x, w, turned: x @ (w if turned else w.t())):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        result = multiply(*leaves, turned)
        result.backward(gradient.to(result.dtype))
        ways.append((result.detach(), *(leaf.grad for leaf in leaves)))
    return ways


@TURNED
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_near_float32_at_every_size(turned, size):
    """e4m3 rounds to 2**-4 at most, e5m2 to 2**-3: of even numbers about a quarter and a half of that."""
    weight = numbers(64, 48, seed=1, size=0.02) if turned else numbers(48, 64, seed=1, size=0.02)
    found, exact = both(numbers(2, 16, 64, size=size), weight, numbers(2, 16, 48, seed=2, size=1e-6), turned)
    assert away(found[0], exact[0]) < 0.045
    assert 0.02 < away(found[1], exact[1]) < 0.075
    assert 0.02 < away(found[2], exact[2]) < 0.075
    assert found[0].dtype == torch.bfloat16
    assert found[1].dtype == found[2].dtype == torch.float32


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_the_largest_number_is_exact_and_nothing_overflows(kind):
    matrix = numbers(32, 32)
    matrix[3, 4] = -1e4  # far beyond the others
    scale = fp8.scale_of(matrix, kind)
    back = fp8.quantised(matrix, scale, kind).float() * scale
    assert back.isfinite().all()
    assert back[3, 4] == pytest.approx(-1e4, rel=1e-6)
    # beyond what the format has it saturates, where plain casts of e5m2 give infinity
    assert fp8.quantised(matrix, scale / 2, kind).float().min() == -torch.finfo(kind).max


@TURNED
def test_zeros_give_zeros(turned):
    zeros = torch.zeros(16, 32)
    found, _ = both(zeros, torch.zeros(32, 32), zeros, turned)
    assert all(torch.equal(part.float(), torch.zeros_like(part).float()) for part in found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(value):
    """The guard of training has to see it."""
    x = numbers(16, 32)
    x[1, 2] = value
    assert fp8.multiply(x, numbers(32, 32), False)[1].isnan().all()
    weight = numbers(32, 32).requires_grad_()
    fp8.multiply(numbers(16, 32), weight, False).backward(x.bfloat16())
    assert not weight.grad.isfinite().all()


def test_a_frozen_weight_gets_no_gradient():
    x, weight = numbers(16, 32).requires_grad_(), numbers(32, 32)
    fp8.multiply(x, weight, False).float().sum().backward()
    assert weight.grad is None
    assert away(x.grad, weight.sum(dim=0).expand(16, 32)) < 0.06


def model_of(architecture, seed=0, **keys):
    torch.manual_seed(seed)
    sizes = {"depth": 2, "heads": 2, "width": 32, "context": 16} | keys
    return TransformerConfig(architecture=architecture, **sizes).build(Tokens(61), NextToken(61))


IDS = torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(2))


def scored(model):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), IDS.roll(-1, 1).flatten())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "phi3"])
def test_a_model_keeps_names_head_and_judgement(architecture):
    model = model_of(architecture)
    plain = copy.deepcopy(model)
    layers = 4 if architecture in ("gpt2", "phi3") else 7
    assert fp8.use(model) == fp8.use(model) == 2 * layers
    assert list(model.state_dict()) == list(plain.state_dict())
    assert type(model.lm_head) is Linear
    assert [p.data_ptr() for p in model.parameters()] != []
    loss, expected = scored(model), scored(plain)
    assert not torch.equal(loss, expected)
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    loss.backward()
    expected.backward()
    for name, parameter in plain.named_parameters():
        assert away(model.get_parameter(name).grad, parameter.grad) < 0.3, name
    assert torch.equal(scored(model.eval()), scored(plain.eval()))  # what is judged is in bf16


def test_rows_and_widths_that_are_no_multiples_stay_as_they_are():
    layer, conv = nn.Linear(32, 32), Conv1D(32, 32)
    nn.init.normal_(conv.weight)
    for each, kind in ((layer, fp8.FP8Linear), (conv, fp8.FP8Conv1D)):
        odd = numbers(3, 5, 32)
        plain = each(odd)
        each.__class__ = kind
        assert torch.equal(each(odd), plain)
        assert each(numbers(4, 8, 32)).dtype == torch.bfloat16
    odd = model_of("llama", heads=1, width=24, head_width=24)  # 24 -> 24, but 24 -> 64 in the feed-forward
    with pytest.raises(ConfigError, match="precision: fp8 is for linear layers"):
        fp8.use(odd)
    with pytest.raises(ConfigError, match="choose bf16"):
        fp8.use(MLPConfig(hidden=[8]).build(Features(5), Classes(3)))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_one_graph(architecture):
    model = model_of(architecture)
    fp8.use(model)
    torch._dynamo.reset()
    seen = torch._dynamo.explain(lambda: scored(model))()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


def learned(eight, steps=60):
    model = model_of("llama")
    if eight:
        fp8.use(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for _ in range(steps):
        loss = scored(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@pytest.mark.filterwarnings("ignore")  # the first use of torch's own optimizer imports its compiler
def test_it_learns_as_bf16_does():
    eight, plain = learned(True), learned(False)
    assert plain < 2.0  # of 4.1
    assert eight == pytest.approx(plain, rel=0.1)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no units for fp8"
)
@TURNED
@pytest.mark.parametrize("compiled", [False, True])
def test_on_cuda(turned, compiled):
    layer = (Conv1D(256, 512) if turned else nn.Linear(256, 512)).cuda()
    nn.init.normal_(layer.weight, std=0.02)
    x = numbers(4, 32, 256).cuda().requires_grad_()
    gradient = numbers(4, 32, 512, seed=2, size=1e-6).cuda()
    layer(x).backward(gradient)
    exact = layer.weight.grad.clone(), x.grad.clone()
    layer.weight.grad = x.grad = None
    layer.__class__ = fp8.KINDS[type(layer)]
    with torch.autocast("cuda", torch.bfloat16):
        (torch.compile(layer) if compiled else layer)(x).backward(gradient.bfloat16())
    assert away(layer.weight.grad, exact[0]) < 0.08
    assert away(x.grad, exact[1]) < 0.08
