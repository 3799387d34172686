"""The account against reality: bytes that a real run saves, and state that real optimizers keep."""

import pytest
import torch

from llmtool.core.contracts import Classes, Features, Images, NextToken, Tokens, Values
from llmtool.models import adapters
from llmtool.models.accounting import HELD, Component, Memory, account
from llmtool.models.activations import count_saved
from llmtool.models.adapters import LoRAConfig
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.convnext import ConvNeXtConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.models.vit import ViTConfig
from tests.models.small import saved_bytes


def transformer(architecture="llama", vocabulary=31, **keys):
    config = TransformerConfig(
        **{"depth": 2, "heads": 4, "width": 32, "context": 16} | keys, architecture=architecture
    )
    return config.build(Tokens(vocabulary), NextToken(vocabulary))


def mlp(outputs=Classes(3), **keys):  # noqa: B008
    return MLPConfig(**{"hidden": [16, 8]} | keys).build(Features(5), outputs)


def really_saved(model, rows, tokens, precision, packed):
    """Bytes of the storages that one forward pass and loss save on this CPU."""
    inputs = torch.randn(rows, 5) if tokens == 1 else torch.randint(31, (rows, tokens))
    if isinstance(model.inputs, Images):
        inputs = torch.randn(rows, 3, 16, 16)
    segments = torch.ones(rows, tokens, dtype=torch.int32) if packed else None

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(inputs, segments)
            if isinstance(model.outputs, Values):
                return torch.nn.functional.mse_loss(
                    outputs.float(), torch.zeros(outputs.shape), reduction="sum"
                )
            flat = outputs.flatten(0, -2).float()
            return torch.nn.functional.cross_entropy(
                flat, torch.zeros(len(flat), dtype=torch.int64), reduction="sum"
            )

    return count_saved(model, run).bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3", "gemma2", "phi3", "olmo2"])
def test_activations_are_those_of_a_real_run(architecture, dropout, packed, precision):
    keys = {"window": 5, "attention_soft_cap": 2.0, "logit_soft_cap": 3.0} if architecture == "gemma2" else {}
    keys |= {"rotary_share": 0.5} if architecture == "phi3" else {}
    keys |= {"key_value_heads": 4 if architecture == "gpt2" else 2}
    model = transformer(architecture, dropout=dropout, **keys)
    assert saved_bytes(model, 3, 16, precision, packed=packed) == really_saved(
        model, 3, 16, precision, packed
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("outputs", [Classes(3), Values(2)])
@pytest.mark.parametrize(
    "keys", [{}, {"hidden": []}, {"dropout": 0.2, "normalization": "layer", "activation": "gelu"}]
)
def test_activations_of_an_mlp(keys, outputs, precision):
    model = mlp(outputs, **keys)
    counted, real = saved_bytes(model, 7, 1, precision), really_saved(model, 7, 1, precision, packed=False)
    # torch's fake LayerNorm keeps its two figures a row in bf16, the real one in fp32
    assert counted == pytest.approx(real, rel=0.05 if precision == "bf16" and "normalization" in keys else 0)


PICTURES = {
    "vit": ViTConfig(patch=4, depth=2, heads=2, width=16, dropout=0.1),
    "dinov2": ViTConfig(
        architecture="dinov2", patch=4, depth=2, heads=2, width=16, gated=True, registers=2, drop_path=0.1
    ),
    "convnet": ConvNetConfig(stem_width=4, widths=[8, 12], depths=[1, 2]),
    "convnet cifar": ConvNetConfig(
        stem="small", shortcut="padding", stem_width=4, widths=[8, 12], depths=[1, 1]
    ),
    "convnext": ConvNeXtConfig(widths=[8, 12], depths=[1, 2], drop_path=0.1),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", PICTURES.values(), ids=PICTURES)
def test_activations_of_models_for_pictures(config, precision):
    model = config.build(Images(3, 16, 16), Classes(3))
    counted, real = saved_bytes(model, 6, 1, precision), really_saved(model, 6, 1, precision, packed=False)
    # torch's fake norms keep their figures in bf16, the real ones in fp32
    assert counted == pytest.approx(real, rel=0.05 if precision == "bf16" else 0)


def test_activations_grow_with_the_batch_and_shrink_with_what_is_frozen():
    model = transformer()
    one, two = saved_bytes(model, 8, 16), saved_bytes(model, 16, 16)
    assert two == pytest.approx(2 * one, rel=0.02)
    adapters.METHODS.validate_python({"kind": "head"}).apply(model)
    assert saved_bytes(model, 8, 16) < one / 3


def test_attention_on_cuda_keeps_no_square_of_the_tokens():
    model = transformer("gpt2", dropout=0.1, context=256, depth=1)
    square = 4 * 256 * 256 * 4  # heads, T, T, bytes
    assert saved_bytes(model, 1, 256, device="cpu") - saved_bytes(model, 1, 256, device="cuda") > square


@pytest.mark.parametrize("model", [transformer("gpt2"), transformer("qwen3", tie_embeddings=False), mlp()])
def test_weights_gradients_and_optimizer_state_are_those_of_real_ones(model):
    tokens = 1 if isinstance(model.inputs, Features) else 16
    inputs = torch.randn(4, 5) if tokens == 1 else torch.randint(31, (4, 16))
    for name in ("adamw", "sgd"):
        model.zero_grad()
        optimizer = (
            torch.optim.AdamW(model.parameters())
            if name == "adamw"
            else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        )
        model(inputs).sum().backward()
        optimizer.step()
        memory = account(model, 4, tokens, optimizer=name).memory
        assert memory.gradients == sum(4 * p.grad.numel() for p in model.parameters())
        state = [value for entry in optimizer.state.values() for value in entry.values() if value.ndim > 0]
        assert memory.optimizer == sum(4 * value.numel() for value in state)
        stored = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]
        }
        assert memory.weights == sum(stored.values())
    assert memory.live == memory.weights + memory.gradients + memory.optimizer + memory.activations
    assert memory.total == memory.live + memory.allocator == pytest.approx(HELD["cpu"] * memory.live, abs=1)
    assert account(model, 4, tokens, device="cuda").memory.allocator == 0


def test_muon_keeps_one_float_for_inner_matrices_and_adamw_has_the_rest():
    model = transformer(tie_embeddings=False)
    inner = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n)
    rest = sum(p.numel() for p in model.parameters()) - inner
    assert account(model, 1, 16, optimizer="muon").memory.optimizer == 4 * (inner + 2 * rest)
    pictures = ConvNetConfig(stem="small", stem_width=4, widths=[4, 8], depths=[1, 1]).build(
        Images(3, 8, 8), Classes(3)
    )
    inner = sum(p.numel() for p in pictures.stages.parameters() if p.ndim == 4)
    rest = sum(p.numel() for p in pictures.parameters()) - inner
    assert account(pictures, 1, optimizer="muon").memory.optimizer == 4 * (inner + 2 * rest)
    small = mlp()
    body = sum(layer.linear.weight.numel() for layer in small.blocks)
    rest = sum(p.numel() for p in small.parameters()) - body
    assert account(small, 1, optimizer="muon").memory.optimizer == 4 * (body + 2 * rest)


@pytest.mark.parametrize("keys", [{}, {"dora": True}, {"init": "pissa"}], ids=["lora", "dora", "pissa"])
def test_updates_of_low_rank_cost_little(keys):
    full = account(transformer(), 2, 16)
    model = transformer()
    LoRAConfig(rank=2, **keys).apply(model)
    small = account(model, 2, 16)
    assert small.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert small.parameters == full.parameters + small.trainable
    assert small.memory.optimizer == 8 * small.trainable
    assert full.flops_forward < small.flops_forward < 1.35 * full.flops_forward
    assert small.flops_backward < full.flops_backward
    assert any(part.kind == "LoRALinear" for part in walk(small.tree))


def walk(component: Component):
    yield component
    for part in component.parts:
        yield from walk(part)


@pytest.mark.parametrize(
    "model", [transformer("gpt2", dropout=0.1), transformer("qwen3"), mlp(normalization="layer")]
)
def test_the_tree_adds_up_and_says_what_each_part_does(model):
    tokens = 1 if isinstance(model.inputs, Features) else 16
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    figures = account(model, 4, tokens)
    assert not model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    for part in walk(figures.tree):
        assert part.does
        assert "\n" not in part.does
        if part.shape is not None:
            assert part.shape[0] == 4 or part.kind == "Embedding"
        if part.parts:
            assert part.flops >= sum(child.flops for child in part.parts)
    assert figures.tree.flops == figures.flops_forward
    assert figures.tree.parameters == figures.parameters
    assert figures.tree.shape == ([4, 3] if tokens == 1 else [4, 16, 31])


def qwen3_8b(depth):
    with torch.device("meta"):
        return TransformerConfig(
            architecture="qwen3",
            depth=depth,
            heads=32,
            key_value_heads=8,
            width=4096,
            head_width=128,
            feed_forward=12288,
            context=4096,
            tie_embeddings=False,
        ).build(Tokens(151_936), NextToken(151_936))


def test_a_large_model_is_accounted_without_its_memory():
    assert sum(p.numel() for p in qwen3_8b(36).parameters()) == 8_190_735_360
    figures = account(qwen3_8b(3), 1, 4096, "bf16", device="cuda")
    assert figures.memory.weights == pytest.approx(4 * figures.parameters, rel=1e-3)
    assert figures.memory.optimizer == 8 * figures.parameters
    assert not figures.memory.fits(24 * 2**30)
    assert figures.memory.fits(80 * 2**30)


def test_fits_keeps_a_reserve():
    memory = Memory(weights=50, gradients=20, optimizer=20, activations=0)
    assert memory.fits(100)
    assert not memory.fits(99)
    assert memory.fits(90, reserve=0)
