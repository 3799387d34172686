"""ConvNeXt: what is left of a picture, stochastic depth, what its files may say."""

import json

import pytest
import torch

from llmtool.core.contracts import Classes, Images
from llmtool.core.errors import ConfigError
from llmtool.models import adapters, lora, peft_files, pretrained
from llmtool.models.convnext import ConvNeXtConfig

SMALL = {"widths": [4, 8], "depths": [1, 2]}


def build(height=16, width=16, **keys):
    return ConvNeXtConfig(**SMALL | keys).build(Images(3, height, width), Classes(3))


def test_the_default_is_convnext_tiny():
    with torch.device("meta"):
        model = ConvNeXtConfig().build(Images(3, 224, 224), Classes(1000))
    # 29 million weights, 4.5 billion multiplications a picture: https://arxiv.org/abs/2201.03545, table 1
    assert sum(p.numel() for p in model.parameters()) == 28_589_128
    assert model.flops() // 6 == pytest.approx(4.5e9, rel=0.02)


def test_stochastic_depth_grows_from_none_to_its_share():
    model = build(drop_path=0.3)
    assert [block.drop_path.share for block in model.blocks] == pytest.approx([0.0, 0.15, 0.3])


def test_pictures_too_small_for_all_stages_are_refused():
    assert build(8, 9)(torch.zeros(2, 3, 8, 9)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"leave nothing of pictures of 7 x 9 pixels \(at least 8 a side\)"):
        build(7, 9)


def test_refused_keys():
    with pytest.raises(ValueError, match="2 depths for 1 widths"):
        ConvNeXtConfig(widths=[4], depths=[1, 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ({"num_stages": 3}, "num_stages: 3 for 2 hidden_sizes"),
        ({"patch_size": [4, 8]}, "patch_size: 4 x 8 is not supported"),
        ({"layer_norm_eps": 2}, "norm_epsilon: Input should be less than 1"),
        (
            {"architectures": ["ConvNextBackbone"]},
            "ConvNextModel is read for convnext",
        ),
    ],
)
def test_configuration_refused(keys, message, tmp_path):
    pretrained.save(build(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(ConfigError) as error:
        pretrained.skeleton(tmp_path)
    assert message in str(error.value)


@torch.no_grad()
def test_the_linear_layers_of_its_blocks_get_low_rank_updates(tmp_path):
    model, method = build().eval(), adapters.LoRAConfig(rank=2)
    method.apply(model)
    assert {name.rpartition(".")[2] for name, _ in lora.updates(model)} == {"widen", "narrow"}
    for _, update in lora.updates(model):
        update.lora_B.weight.normal_()
    inputs = torch.randn(2, 3, 16, 16)
    expected = model(inputs)
    peft_files.save_adapter(model, tmp_path, method, base="base")
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names[0] == "convnext.encoder.stages.0.layers.0.pwconv1"
    lora.merge(model)
    torch.testing.assert_close(model(inputs), expected)
