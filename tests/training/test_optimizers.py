"""Optimizers: groups, parity with torch, and a state that goes to disk and back without a changed bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from llmtool.core.contracts import Classes, Features, Images
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import layers
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.tabm import TabMConfig
from llmtool.training import muon
from llmtool.training.muon import Muon, orthogonalize
from llmtool.training.optimizers import AdamWConfig, MuonConfig, OptimizerConfig, Optimizers, SGDConfig
from tests.training.toys import ToyMLP, ToyTask, ToyTransformer, table, tokens

CONFIGS: list[AdamWConfig | SGDConfig | MuonConfig] = [
    AdamWConfig(name="adamw"),
    SGDConfig(name="sgd", nesterov=True, weight_decay=0.1),
    MuonConfig(name="muon", weight_decay=0.1),
]


def train(model: nn.Module, optimizers: Optimizers | torch.optim.Optimizer, steps: range) -> None:
    data = tokens() if isinstance(model, ToyTransformer) else table()
    for step in steps:
        loss = ToyTask().loss(model, data.batch(step * 8, 8))
        (loss.total / loss.count).backward()
        optimizers.step()
        optimizers.zero_grad()


def model_of(kind: type[nn.Module], **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(**keys)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("kind", [ToyMLP, ToyTransformer])
def test_state_goes_round_bit_by_bit(config: Any, kind: type[nn.Module], tmp_path: Path) -> None:
    straight = model_of(kind)
    optimizers = config.build(straight)
    train(straight, optimizers, range(5))
    save_file(optimizers.state(), tmp_path / "optimizer.safetensors")
    weights = {name: p.detach().clone() for name, p in straight.state_dict().items()}
    train(straight, optimizers, range(5, 9))

    resumed = model_of(kind)
    resumed.load_state_dict(weights)
    fresh = config.build(resumed)
    fresh.restore(load_file(tmp_path / "optimizer.safetensors"))
    train(resumed, fresh, range(5, 9))
    assert same(straight.state_dict(), resumed.state_dict())
    assert same(optimizers.state(), fresh.state())


def test_state_begun_early_changes_nothing() -> None:
    """Our zero state from the start against torch's own lazy first step."""
    ours, theirs = model_of(ToyMLP), model_of(ToyMLP)
    config = SGDConfig(name="sgd", lr=0.1, momentum=0.9)
    train(ours, config.build(ours), range(4))
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, fused=True), range(4))
    assert same(ours.state_dict(), theirs.state_dict())

    ours, theirs = model_of(ToyMLP), model_of(ToyMLP)
    train(ours, AdamWConfig(name="adamw", weight_decay=0.0).build(ours), range(4))
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, betas=(0.9, 0.99))
    train(theirs, adam, range(4))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_only_matrices_decay() -> None:
    groups = AdamWConfig(name="adamw", weight_decay=0.5).build(ToyTransformer()).groups()
    assert [{p.ndim for p in group["params"]} for group in groups] == [{2}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_hidden_matrices_only(tied: bool) -> None:
    model = model_of(ToyTransformer, tied=tied)
    optimizers = MuonConfig(name="muon").build(model)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for p in optimizers.parts["muon"].param_groups[0]["params"]}
    assert muon == {"qkv.weight", "up.weight", "down.weight"}
    rest = {names[id(p)] for group in optimizers.parts["adamw"].param_groups for p in group["params"]}
    assert muon | rest == set(names.values())
    assert optimizers.groups()[0]["initial_lr"] == 0.02
    assert optimizers.groups()[1]["initial_lr"] == 3e-3


def test_muon_leaves_the_last_layer_of_a_plain_stack() -> None:
    model = ToyMLP()
    muon = MuonConfig(name="muon").build(model).parts["muon"].param_groups[0]["params"]
    assert [id(p) for p in muon] == [id(model.layers[0].weight), id(model.layers[3].weight)]


def test_frozen_parameters_stay_out() -> None:
    model = ToyMLP()
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    assert not any("layers.0." in name for name in AdamWConfig(name="adamw").build(model).state())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        AdamWConfig(name="adamw").build(model)
    model.layers[5].requires_grad_(True)
    with pytest.raises(ConfigError, match="use adamw"):
        MuonConfig(name="muon").build(model)


def test_some_parameters_have_rates_of_their_own(tmp_path: Path) -> None:
    """Groups of one rate each; the schedule moves all of them; a resumed run has them too."""
    rates = {"up.weight": 16.0, "down.weight": 16.0}
    for config in CONFIGS[:2]:
        model, plain = model_of(ToyTransformer), model_of(ToyTransformer)
        optimizers = config.build(model, rates)
        names = {id(p): name for name, p in model.named_parameters()}
        for group in optimizers.groups():
            assert {rates.get(names[id(p)], 1.0) for p in group["params"]} == {group["lr"] / config.lr}
        assert optimizers.set_rate(0.5) == 0.5 * config.lr  # what the log says is the plain one
        assert {group["lr"] for group in optimizers.groups()} == {0.5 * config.lr, 8 * config.lr}
        train(model, optimizers, range(3))
        save_file(optimizers.state(), tmp_path / "optimizer.safetensors")
        plain.load_state_dict(model.state_dict())
        again = config.build(plain, rates)
        again.restore(load_file(tmp_path / "optimizer.safetensors"))
        again.set_rate(0.5)
        train(model, optimizers, range(3, 6))
        train(plain, again, range(3, 6))
        assert same(model.state_dict(), plain.state_dict())
    with pytest.raises(AssertionError, match="one rate for all"):
        MuonConfig(name="muon").build(model_of(ToyTransformer), rates)


def test_rate_moves_every_group() -> None:
    optimizers = MuonConfig(name="muon").build(ToyTransformer())
    assert optimizers.set_rate(0.5) == 0.01
    assert [group["lr"] for group in optimizers.groups()] == [0.01, 1.5e-3]
    assert optimizers.set_rate(1.0) == 0.02


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_skip_changes_nothing(config: Any) -> None:
    """The flag that CUDA uses instead of a wait."""
    model = model_of(ToyTransformer)
    optimizers = config.build(model)
    train(model, optimizers, range(2))
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    state = {n: t.clone() for n, t in optimizers.state().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizers.step(skip=torch.tensor(True))
    assert same(model.state_dict(), before)
    assert same(optimizers.state(), state)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_divisor_divides_the_gradient(config: Any) -> None:
    divided, given = model_of(ToyTransformer), model_of(ToyTransformer)
    for model, factor, divisor in ((divided, 8.0, torch.tensor(8.0)), (given, 1.0, None)):
        optimizers = config.build(model)
        for parameter in model.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter) * factor
        optimizers.step(divisor)
    assert same(divided.state_dict(), given.state_dict())


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_muon(nesterov: bool) -> None:
    """Batched products against torch's own, matrix by matrix; torch rounds to bfloat16 on the way."""
    ours, theirs = model_of(ToyTransformer), model_of(ToyTransformer)
    names = {"qkv.weight", "up.weight", "down.weight"}
    chosen = [[p for n, p in model.named_parameters() if n in names] for model in (ours, theirs)]
    mine = Muon(chosen[0], lr=0.02, momentum=0.9, nesterov=nesterov, ns_steps=5, weight_decay=0.1)
    torchs = torch.optim.Muon(chosen[1], lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    for step in range(3):
        for a, b in zip(*chosen, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step + a.numel()))
            b.grad = a.grad.clone()
        mine.step()
        torchs.step()
    for a, b in zip(*chosen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3 * 0.02 * 0.03)
        torch.testing.assert_close(mine.state[a]["momentum_buffer"], torchs.state[b]["momentum_buffer"])


def test_muon_does_the_same_whatever_is_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for most in (1 << 26, 1):
        monkeypatch.setattr(layers, "STACK", most)
        model = model_of(ToyTransformer)
        chosen = [p for n, p in model.named_parameters() if n in {"qkv.weight", "up.weight", "down.weight"}]
        optimizer = Muon(chosen, lr=0.02, momentum=0.9, nesterov=False, ns_steps=5, weight_decay=0.1)
        assert len(optimizer._stacks) == (3 if most == 1 else 2)
        for _ in range(2):
            for p in chosen:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            optimizer.step()
        made.append([*chosen, *(optimizer.state[p]["momentum_buffer"] for p in chosen)])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 16), (1, 1, 5)])
def test_orthogonal_updates(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonalize(matrices.clone(), 10))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.equal(orthogonalize(torch.zeros(shape), 5), torch.zeros(shape))


def test_wide_matrices_are_made_orthogonal_by_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(wide[2], full_matrices=False)
    wide[2] = left @ torch.diag(torch.logspace(0, -6, len(values))) @ right  # as uneven as a gradient can be
    found = orthogonalize(wide.clone(), 5)
    monkeypatch.setattr(muon, "WIDE", math.inf)
    whole = orthogonalize(wide, 5)
    torch.testing.assert_close(found[:2], whole[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], whole[2], rtol=0, atol=1e-3)


def test_state_of_another_model_is_refused() -> None:
    small, other = (
        AdamWConfig(name="adamw").build(ToyMLP()),
        AdamWConfig(name="adamw").build(ToyTransformer()),
    )
    with pytest.raises(LlmtoolError, match="another model or optimizer"):
        small.restore(other.state())
    wider = {name: torch.zeros(2, 2) for name in small.state()}
    with pytest.raises(LlmtoolError, match=r"is \(2, 2\), not"):
        small.restore(wider)


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "lion"},
        {"lr": 0.0},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"momentum": 0.9},
        {"lr": float("nan")},
    ],
)
def test_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(OptimizerConfig).validate_python({"name": "adamw", **keys})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        SGDConfig(name="sgd", momentum=0.0, nesterov=True).build(ToyMLP())


def test_muon_moves_a_convolution_as_the_matrix_it_is() -> None:
    """Beside the same numbers as a matrix; what stands for inputs, and depthwise ones, are AdamW's."""
    model = ConvNetConfig(stem="small", stem_width=4, widths=[4, 8], depths=[1, 1]).build(
        Images(3, 8, 8), Classes(3)
    )
    made = MuonConfig(name="muon", lr=0.1).build(model)
    names = {
        name for name, p in model.named_parameters() if any(p is each for each in made.parts["muon"].state)
    }
    assert "stages.1.0.parts.0.convolution.weight" in names
    assert "stem.convolution.weight" not in names
    assert "head.weight" not in names
    table = TabMConfig(members=2, hidden=[8]).build(Features(5, (2, 3)), Classes(3))
    moved = MuonConfig(name="muon").build(table).parts["muon"].state
    assert list(moved) == [table.blocks[0].all.linear.weight]  # not the vectors of columns
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(3, 3), nn.Linear(3, 2))
    assert len(MuonConfig(name="muon").build(depthwise).parts["muon"].state) == 1
    for shape in ((6, 2, 3, 3), (40, 2, 3, 3)):  # wide and tall
        torch.manual_seed(0)
        convolution = nn.Parameter(torch.randn(shape))
        matrix = nn.Parameter(convolution.detach().flatten(1).clone())
        both = [Muon([each], 0.1, 0.95, True, 5, 0.1) for each in (convolution, matrix)]
        for _ in range(3):
            gradient = torch.randn(shape)
            convolution.grad = gradient.contiguous(memory_format=torch.channels_last)
            matrix.grad = gradient.flatten(1)
            for part in both:
                part.step()
        assert torch.equal(convolution.detach().flatten(1), matrix.detach())
