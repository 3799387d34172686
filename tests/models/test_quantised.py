"""Four-bit bases: bitsandbytes' own numbers, QLoRA beside PEFT's, small, and whole again when merged."""

import math
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmtool.core.contracts import Classes, Features
from llmtool.core.errors import ConfigError
from llmtool.models import lora, peft_files, pretrained, quantised
from llmtool.models.accounting import account
from llmtool.models.adapters import LoRAConfig
from llmtool.models.layers import Conv1D
from llmtool.models.mlp import MLPConfig
from llmtool.models.quantised import NF4Linear, linear_layers
from tests.models.beside_peft import losses, take
from tests.models.small import ids, mlp, rows, stir, transformer

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
CPU = torch.device("cpu")
DOUBLE = pytest.mark.parametrize("double", [False, True], ids=["single", "double"])


def theirs_of(linear, double):
    """bitsandbytes' own layer with the same weight."""
    inputs, outputs = linear.in_features, linear.out_features
    layer = bitsandbytes.nn.Linear4bit(
        inputs, outputs, linear.bias is not None, torch.float32, compress_statistics=double, quant_type="nf4"
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to(CPU)


@DOUBLE
@pytest.mark.parametrize("sizes", [(96, 160), (30, 7), (5, 3)])
def test_a_layer_is_bitsandbytes(sizes, double):
    torch.manual_seed(0)
    linear = nn.Linear(*sizes)
    ours, theirs = NF4Linear(linear, double, CPU), theirs_of(linear, double)
    x = torch.randn(2, 11, sizes[0], requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    torch.testing.assert_close(ours(x), theirs(y), atol=1e-5, rtol=0)
    gradient = torch.randn(2, 11, sizes[1])
    ours(x).backward(gradient)
    theirs(y).backward(gradient)
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=0)
    rounded = (ours.whole() - linear.weight).abs().max() / linear.weight.abs().max()
    assert 0.01 < rounded < 0.25  # four bits: 16 levels, the widest gap a third of the scale
    assert not any(p.requires_grad for p in ours.parameters())


def test_a_weight_stored_the_other_way_round():
    torch.manual_seed(0)
    conv = Conv1D(64, 96)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    layer = NF4Linear(conv, False, CPU)
    x = torch.randn(5, 64)
    torch.testing.assert_close(layer(x), x @ layer.whole() + conv.bias, atol=1e-5, rtol=0)
    plain = layer.plain()
    assert isinstance(plain, Conv1D)
    torch.testing.assert_close(plain(x), layer(x), atol=1e-5, rtol=0)


@DOUBLE
def test_in_lower_precision(double):
    torch.manual_seed(0)
    linear = nn.Linear(96, 160)
    layer = NF4Linear(linear, double, CPU)
    x = torch.randn(7, 96, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0)
    assert x.grad.dtype == torch.float32


@DOUBLE
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_qlora_is_pefts(double, dora, tmp_path):
    """Outputs, loss and gradients beside PEFT's on bitsandbytes' layers; and the merged model."""
    model = transformer("llama")
    pretrained.save(model, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name in linear_layers(model):
        quantised.replace(base, name, theirs_of(base.get_submodule(name), double))
    base.is_loaded_in_4bit = True  # as transformers marks a model that it quantised itself
    names = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=3, target_modules=names, use_dora=dora, task_type="CAUSAL_LM")
    theirs = stir(peft.get_peft_model(base, config))
    method = LoRAConfig(rank=3, alpha=8, targets=names, dora=dora, quantise="nf4", double_quantise=double)
    method.apply(model)
    assert len(list(lora.updates(model))) == 4
    take(theirs, model)
    (loss, ours), (other, wanted) = losses(model.train(), theirs.train())
    torch.testing.assert_close(loss, other, atol=1e-5, rtol=0)
    assert ours.keys() == wanted.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)
    before = model.eval()(ids())
    lora.merge(model)
    assert model.state_dict().keys() == transformer("llama").state_dict().keys()
    torch.testing.assert_close(model(ids()), before, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_adapter_loads_in_peft_beside_the_plain_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    model = transformer("gpt2")
    pretrained.save(model, base)
    method = LoRAConfig(rank=3, quantise="nf4")
    method.apply(model)
    stir(model)
    peft_files.save_adapter(model, adapter, method, base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    plain = pretrained.load(base).eval()
    peft_files.load_adapter(plain, adapter)
    torch.testing.assert_close(plain(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)
    assert not torch.allclose(plain(ids()), model(ids()), atol=1e-3)  # the base was rounded in training
    again = pretrained.load(base).eval()
    quantised.quantise(again, False, CPU)
    peft_files.load_adapter(again, adapter)
    assert torch.equal(again(ids()), model(ids()))
    with pytest.raises(AssertionError, match="merge"):
        pretrained.save(model, base)


def test_a_table_too():
    model = mlp()
    LoRAConfig(rank=2, quantise="nf4", double_quantise=True).apply(model)
    assert isinstance(model.head, nn.Linear)
    before = stir(model)(rows())
    lora.merge(model)
    torch.testing.assert_close(model(rows()), before, atol=1e-5, rtol=0)


@DOUBLE
def test_what_is_counted(double):
    """Every weight counts as one, and their bytes are those that are there."""
    plain, model = transformer("llama"), transformer("llama")
    LoRAConfig(rank=2).apply(plain)
    LoRAConfig(rank=2, quantise="nf4", double_quantise=double).apply(model)
    one, two = account(plain, 3, 16), account(model, 3, 16)
    assert two.parameters == one.parameters
    assert two.trainable == one.trainable
    assert two.flops_forward == one.flops_forward
    assert (two.memory.gradients, two.memory.optimizer) == (one.memory.gradients, one.memory.optimizer)
    weights = [layer.shape[0] * layer.shape[1] for _, layer in _packed(model)]
    blocks = [math.ceil(n / 64) for n in weights]
    second = sum(4 * math.ceil(n / 256) + 4 * 256 + 4 for n in blocks)  # scales, their code, their offset
    scales = sum(blocks) + second if double else 4 * sum(blocks)
    assert one.memory.weights - two.memory.weights == 4 * sum(weights) - sum(weights) // 2 - scales
    assert two.memory.activations <= one.memory.activations * 1.05
    assert two.tree.parameters == two.parameters


def _packed(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, NF4Linear)]


def test_nothing_whole_is_kept_between_forward_and_backward():
    torch.manual_seed(0)
    layer = NF4Linear(nn.Linear(512, 512, bias=False), False, CPU)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(4, 512, requires_grad=True)).sum()
    assert sum(kept) < 512 * 512 // 2


def test_without_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"quantise needs bitsandbytes: pip install 'llmtool\[quant\]'"):
        LoRAConfig(quantise="nf4").apply(transformer("llama"))


def test_seen_from_one_layer_to_the_next():
    """The loss of a small model falls although its base is in four bits."""
    torch.manual_seed(0)
    model = transformer("llama")
    LoRAConfig(rank=4, quantise="nf4").apply(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    found = []
    for _ in range(15):
        loss = F.cross_entropy(model(ids()).flatten(0, 1), torch.roll(ids(), -1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.8 * found[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_the_memory_of_whole_weights_is_given_back():
    """Told by a process of its own: in this one, what earlier tests have freed would be used again."""
    told = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, whole, quantised_ = map(int, told.stdout.split())
    weights = 24 * 1024 * 1024 * 4
    assert whole - before > 0.9 * weights
    assert quantised_ - before < 0.4 * weights


MEMORY = """
import os, torch
from llmtool.core.contracts import Classes, Features
from llmtool.models import quantised
from llmtool.models.mlp import MLPConfig

def resident():  # bytes in memory but those of files (libraries), which the system lets go whenever it likes
    _, all_, of_files, *_ = map(int, open("/proc/self/statm").read().split())
    return (all_ - of_files) * os.sysconf("SC_PAGE_SIZE")

small = MLPConfig(hidden=[64]).build(Features(64), Classes(3))
quantised.quantise(small, False, torch.device("cpu"))  # what the first use loads
print(resident())
model = MLPConfig(hidden=[1024] * 24).build(Features(1024), Classes(3))
print(resident())
quantised.quantise(model, False, torch.device("cpu"))
print(resident())
"""


@pytest.mark.cuda
@DOUBLE
def test_on_cuda_as_on_the_cpu(double):
    torch.manual_seed(0)
    linear = nn.Linear(96, 160)
    here, there = NF4Linear(linear, double, CPU), NF4Linear(linear, double, torch.device("cuda"))
    apart = (here.whole() - there.whole().cpu()).abs()
    assert (apart > 1e-3).float().mean() < 0.01  # a number between two levels may go either way
    x = torch.randn(7, 96, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        there(x).float().sum().backward()
    torch.testing.assert_close(x.grad, there.matrix().sum(dim=0).expand_as(x), atol=0.1, rtol=0.02)


@pytest.mark.cuda
def test_the_whole_model_is_never_on_the_device():
    model = mlp_of(width=2048, layers=8)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    quantised.quantise(model, False, torch.device("cuda"))
    model.to("cuda")
    whole = 8 * 2048 * 2048 * 4
    assert torch.cuda.max_memory_allocated() - before < whole / 2
    assert torch.cuda.memory_allocated() - before < whole / 6


def mlp_of(width, layers):
    return MLPConfig(hidden=[width] * layers).build(Features(width), Classes(3))
