"""A step on tensors without data against the same step on real ones: operations, FLOPs, bytes at once."""

import pytest
import torch

from llmtool.core.contracts import Classes, Features, Images, NextToken, Tokens
from llmtool.models import accounting, attention
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.tracing import trace
from llmtool.models.transformer import TransformerConfig
from llmtool.training.average import Average
from llmtool.training.optimizers import AdamWConfig, MuonConfig, SGDConfig


def transformer(architecture, **keys):
    sizes = {"depth": 2, "heads": 4, "width": 32, "context": 16, "dropout": 0.0} | keys
    return TransformerConfig(architecture=architecture, **sizes).build(Tokens(61), NextToken(61))


MODELS = {
    "gpt2": lambda: transformer("gpt2"),
    "qwen3": lambda: transformer("qwen3"),
    "dropout": lambda: transformer("gpt2", dropout=0.1),
    "mlp": lambda: MLPConfig(hidden=[64, 32], normalization="layer").build(Features(5), Classes(3)),
    "convnet": lambda: ConvNetConfig(stem_width=4, widths=[8, 12], depths=[1, 1]).build(
        Images(3, 16, 16), Classes(3)
    ),
}
OPTIMIZERS = [AdamWConfig(name="adamw"), SGDConfig(name="sgd"), MuonConfig(name="muon")]


def updating(optimizer, ema=None):
    def build(model):
        optimizers = optimizer.build(model)
        average = Average(model, ema) if ema else None

        def step():
            optimizers.step(torch.ones((), device=next(model.parameters()).device))
            if average is not None:
                average.update(0)

        return step

    return build


def traced(model, place, **keys):
    """A trace of the model on meta tensors, or on real ones."""
    tokens = getattr(model, "context", 1)
    spec = model.inputs

    def loss(model):
        outputs = model(accounting._inputs(spec, 4, tokens, place))
        return accounting._loss(model.outputs, outputs)

    copied = accounting.copy_on(model, "meta") if place == "meta" else model.train()
    return trace(copied, loss, **keys)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_meta_tensors_tell_what_real_ones_do(name, accumulate):
    model = MODELS[name]()
    update = updating(AdamWConfig(name="adamw"), ema=0.9)
    found, real = (traced(model, place, update=update, accumulate=accumulate) for place in ("meta", "cpu"))
    assert found.peak == pytest.approx(real.peak, rel=0.02)
    assert found.saved == pytest.approx(real.saved, rel=0.02)
    assert found.state == real.state
    assert found.flops() == real.flops() > 0
    assert abs(len(found.operations) - len(real.operations)) <= 0.07 * len(real.operations)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.name)
def test_state_and_work_of_optimizers(optimizer):
    model = transformer("gpt2")
    found, real = (traced(model, place, update=updating(optimizer)) for place in ("meta", "cpu"))
    assert (found.state, found.peak) == (real.state, real.peak)
    assert (found.flops("update") > 0) == (optimizer.name == "muon")
    assert found.flops("update") == real.flops("update")


def test_gradients_of_earlier_micro_batches_are_there_from_the_start():
    model = transformer("gpt2")
    once, again = (traced(model, "meta", accumulate=accumulate) for accumulate in (False, True))
    gradients = sum(4 * parameter.numel() for parameter in model.parameters())
    assert once.peak < again.peak <= once.peak + gradients
    assert once.saved == again.saved


def test_flops_are_those_of_the_account():
    model = transformer("gpt2")
    account = accounting.account(model, 4, model.context)
    step = accounting.step(model, 4, model.context)
    assert step.flops("forward") == 4 * account.flops_forward
    assert step.flops("backward") == pytest.approx(4 * account.flops_backward, rel=0.02)


def test_a_gpu_keeps_no_square_for_dropout_and_scoring_keeps_nothing():
    model = transformer("gpt2", dropout=0.1, context=256, depth=1)
    cpu, cuda = (accounting.step(model, 1, 256, device=device) for device in ("cpu", "cuda"))
    assert cpu.peak - cuda.peak > 4 * 256 * 256 * 4  # heads, T, T, bytes
    scored = accounting.step(model, 1, 256, scored=True)
    assert scored.flops("backward") == 0
    assert 0 < scored.forward < cpu.peak


def test_half_precision_is_traced_with_its_copies():
    model = transformer("gpt2", width=64)
    whole, half = (accounting.step(model, 4, model.context, precision=name) for name in ("fp32", "bf16"))
    sizes = {each.itemsize for each in half.operations if each.flops and each.part == "forward"}
    assert sizes == {2}
    assert half.saved < whole.saved


def test_a_cpu_keeps_the_square_of_short_rows_in_half_precision(monkeypatch):
    monkeypatch.setattr(attention, "HERE", True)
    model = transformer("qwen3", context=128, depth=1)
    cpu, cuda = (accounting.step(model, 2, 128, "bf16", device=device) for device in ("cpu", "cuda"))
    square = 2 * 4 * 128 * 128  # rows, heads, T, T
    assert cpu.saved - cuda.saved == pytest.approx(2 * square, rel=0.1)
    assert cuda.flops() - cpu.flops() == 2 * square * 8  # the kernel makes its scores twice

    def loss(model):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(accounting._inputs(model.inputs, 2, 128, "cpu"))
        return accounting._loss(model.outputs, outputs)

    real = trace(model.train(), loss)
    assert cpu.saved == pytest.approx(real.saved, rel=0.05)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_are_recomputed_need_less_and_do_more(architecture, precision):
    model = transformer(architecture, depth=3)
    found = [accounting.step(model, 8, 16, precision, recomputed=count) for count in (0, 1, 3)]
    assert found[0].peak > found[1].peak > found[2].peak
    flops = [sum(operation.flops for operation in each.operations) for each in found]
    assert flops[0] < flops[1] < flops[2]
