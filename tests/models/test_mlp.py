"""The multilayer perceptron's arithmetic and its configuration."""

import pytest
import torch
from pydantic import ValidationError

from llmtool.core.contracts import Classes, Features, Values
from llmtool.models.mlp import MLPConfig


def test_the_forward_pass_is_the_formula():
    torch.manual_seed(0)
    model = MLPConfig(hidden=[4, 3]).build(Features(5), Classes(2))
    x = torch.randn(7, 5)
    first, second = model.blocks
    h = (x @ first.linear.weight.T + first.linear.bias).clamp(min=0)
    h = (h @ second.linear.weight.T + second.linear.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.head.weight.T + model.head.bias)


def test_the_parameters_have_the_names_that_adapters_and_people_use():
    model = MLPConfig(hidden=[4], normalization="layer").build(Features(5), Values(1))
    assert [name for name, _ in model.named_parameters()] == [
        "body.0.linear.weight",
        "body.0.linear.bias",
        "body.0.norm.weight",
        "body.0.norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_a_deep_model_neither_fades_nor_explodes():
    torch.manual_seed(0)
    model = MLPConfig(hidden=[256] * 12).build(Features(256), Values(1))
    hidden = model.body(torch.randn(64, 256))
    assert 0.3 < float(hidden.detach().square().mean().sqrt()) < 3


@pytest.mark.parametrize(
    "keys",
    [
        {"hidden": [0]},
        {"hidden": [10**6]},
        {"hidden": 64},
        {"hidden": [2.0]},
        {"dropout": 1.0},
        {"activation": "tanh"},
        {"x": 1},
    ],
)
def test_sizes_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValidationError):
        MLPConfig(**keys)
