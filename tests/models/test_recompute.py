"""Blocks that are recomputed: the same bits, fewer bytes, as many as the account says."""

import copy

import pytest
import torch

from llmtool.core.contracts import Classes, Images, NextToken, Tokens
from llmtool.models.accounting import account, saved
from llmtool.models.activations import Activations, count_saved
from llmtool.models.adapters import METHODS, LoRAConfig
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.convnext import ConvNeXtConfig
from llmtool.models.encoder import EncoderConfig
from llmtool.models.recompute import learning_blocks, recompute
from llmtool.models.transformer import TransformerConfig
from llmtool.models.vit import ViTConfig
from tests.models.small import ids

SIZES = {"depth": 3, "heads": 4, "width": 32, "context": 16, "dropout": 0.2}
CAPS = {"window": 5, "attention_soft_cap": 2.0, "logit_soft_cap": 3.0}
MODELS = {
    name: lambda name=name: TransformerConfig(
        architecture=name, **SIZES | (CAPS if name == "gemma2" else {})
    ).build(Tokens(61), NextToken(61))
    for name in ("gpt2", "llama", "qwen3", "gemma2", "phi3", "olmo2", "smollm3")
}
MODELS |= {
    name: lambda name=name: EncoderConfig(architecture=name, **SIZES).build(Tokens(61, 16), Classes(3))
    for name in ("bert", "roberta", "modernbert")
}
PICTURES = {
    "vit": ViTConfig(patch=4, depth=3, heads=2, width=16, dropout=0.1),
    "dinov2": ViTConfig(
        architecture="dinov2", patch=4, depth=3, heads=2, width=16, gated=True, registers=2, drop_path=0.1
    ),
    "convnet": ConvNetConfig(stem_width=4, widths=[8, 12], depths=[1, 2]),
    "convnext": ConvNeXtConfig(widths=[8, 12], depths=[1, 2], drop_path=0.1),
}
MODELS |= {
    name: lambda config=config: config.build(Images(3, 16, 16), Classes(3))
    for name, config in PICTURES.items()
}


def built(name):
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch(model):
    """Rows, and their documents where it reads texts."""
    if isinstance(model.inputs, Images):
        return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2)), None
    return ids(), torch.tensor([1] * 7 + [2] * 9).repeat(3, 1)


def after_a_step(model):
    """Loss, gradients and buffers, bit by bit."""
    torch.manual_seed(3)
    loss = model(*batch(model)).float().square().sum()
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | found | {name: each.clone() for name, each in model.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", MODELS)
def test_no_bit_changes_with_dropout_and_statistics(name):
    model = built(name)
    twin, names = copy.deepcopy(model), list(model.state_dict())
    expected = after_a_step(twin)
    for count in (1, 3):
        again = copy.deepcopy(model)
        recompute(again, count)
        assert list(again.state_dict()) == names
        assert same(after_a_step(again), expected)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own torch.jit at the first compile
def test_compiled_statistics_move_once_and_break_no_graph():
    model = built("convnet")
    twin = copy.deepcopy(model)
    recompute(model, 3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inputs, _ = batch(model)
    compiled = torch.compile(lambda x: model(x).square().sum(), backend="aot_eager", dynamic=False)
    for _ in range(2):
        compiled(inputs).backward()
        twin(inputs).square().sum().backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    for (name, each), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(each, other, msg=name)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "vit"])
def test_bytes_are_those_that_a_real_step_keeps(name):
    model = built(name)
    inputs, segments = batch(model)
    tokens = inputs.shape[1] if inputs.ndim == 2 else 1
    kept = saved(model, len(inputs), tokens, packed=segments is not None)
    before = kept.bytes()

    def loss():
        outputs = model(inputs, segments)
        flat = outputs.flatten(0, -2)
        zeros = torch.zeros(len(flat), dtype=torch.int64)
        return torch.nn.functional.cross_entropy(flat, zeros, reduction="sum")

    for count in range(1, 3):
        recompute(model, count)
        watched = count_saved(model, loss)
        # a checkpoint keeps what goes into it, whether or not it tells autograd's hooks so
        assert all(watched.blocks[at].keys() <= watched.inputs[at].keys() for at in range(count))
        watched.blocks += watched.inputs[:count]
        assert kept.bytes(count) == watched.bytes() < before
        before = kept.bytes(count)


def test_the_last_recomputed_block_is_whole_for_a_moment():
    block, entry = {1: 100, 2: 10}, {2: 10}
    kept = Activations({0: 5}, {9: 20}, [block, {3: 100, 4: 10}], [entry, {4: 10}])
    assert kept.bytes(0) == 5 + 220 + 20
    assert kept.bytes(1) == 5 + 10 + 110 + 20
    assert kept.bytes(2) == kept.bytes(7) == 5 + 10 + 110  # more than its 5 + 10 + 10 + 20 after the forward


def test_work_of_the_second_pass_is_counted():
    model = built("gpt2")
    none, some, every = (account(model, 2, 16, recomputed=count) for count in (0, 1, 3))
    assert none.flops_again == 0
    blocks = sum(part.flops for part in none.tree.parts[0].parts if part.name == "h")
    assert every.flops_again == pytest.approx(3 * some.flops_again)
    assert every.flops_again == pytest.approx(blocks)  # dropout comes after the last product
    assert every.flops_backward == none.flops_backward
    assert every.memory.activations < some.memory.activations < none.memory.activations


def test_blocks_before_the_first_that_learns_keep_nothing_anyway():
    model = built("llama")
    assert len(learning_blocks(model)) == 3
    METHODS.validate_python({"kind": "freeze", "blocks": 2}).apply(model)
    assert learning_blocks(model) == model.blocks[2:]
    METHODS.validate_python({"kind": "head"}).apply(model)
    assert learning_blocks(model) == []
    recompute(model, 3)
    assert not any("forward" in vars(block) for block in model.blocks)


@pytest.mark.parametrize("keys", [{}, {"dora": True}], ids=["lora", "dora"])
def test_updates_of_low_rank_get_the_same_gradients(keys):
    model = built("qwen3")
    LoRAConfig(rank=2, dropout=0.3, **keys).apply(model)
    expected = after_a_step(copy.deepcopy(model))
    recompute(model, 3)
    assert same(after_a_step(model), expected)
    assert account(model, 2, 16, recomputed=3).memory.activations < account(model, 2, 16).memory.activations


def test_scoring_and_none_run_as_if_nothing_had_been_said():
    model = built("llama")
    recompute(model, 2)
    with torch.no_grad():
        assert model(ids()).grad_fn is None
    model.eval()
    plain = copy.deepcopy(model)
    recompute(plain, 0)
    assert not any("forward" in vars(block) for block in plain.blocks)
    assert torch.equal(plain(ids()), model(ids()))


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_peak_on_cuda_falls_and_the_gradient_stays(compiled):
    config = TransformerConfig(depth=8, heads=8, width=512, context=1024, dropout=0.0 if compiled else 0.1)
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = config.build(Tokens(61), NextToken(61))
    tokens = torch.randint(61, (8, 1024), device="cuda")

    def peak(count):
        recompute(model, count)
        torch._dynamo.reset()
        run = torch.compile(model) if compiled else model
        for _ in range(2):  # the first one compiles
            model.zero_grad()
            torch.manual_seed(1)
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16):
                loss = run(tokens).float().logsumexp(dim=-1).sum()
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return torch.cuda.max_memory_allocated(), loss.item(), gradient

    whole, loss, gradient = peak(0)
    half, _, _ = peak(4)
    least, again, found = peak(8)
    fixed = 12 * sum(p.numel() for p in model.parameters())  # weights and gradients, and a gradient kept
    assert least - fixed < 0.5 * (whole - fixed)
    assert least < half < whole
    assert again == pytest.approx(loss, rel=1e-3)
    assert torch.allclose(found, gradient, rtol=1e-2, atol=1e-2 * gradient.abs().max().item())
