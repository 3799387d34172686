"""ResNet: sizes on the way, shortcuts, what a frozen norm does, what its files may say."""

import json

import pytest
import torch
from torch import nn

from llmtool.core.contracts import Classes, Images
from llmtool.core.errors import ConfigError
from llmtool.models import adapters, pretrained
from llmtool.models.convnet import BatchNorm, ConvNetConfig, Padded

SMALL = {"stem_width": 4, "widths": [8, 12], "depths": [1, 2]}


def build(**keys):
    torch.manual_seed(0)
    return ConvNetConfig(**SMALL | keys).build(Images(3, 16, 16), Classes(3))


def pictures(rows=8):
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_defaults_are_resnet_18_and_resnet_20():
    with torch.device("meta"):
        large = ConvNetConfig().build(Images(3, 224, 224), Classes(1000))
        small = ConvNetConfig(stem="small", shortcut="padding").build(Images(3, 32, 32), Classes(10))
    # torchvision's count of its resnet18, and the one of He et al. 2015 (0.27 million), batch norms included
    assert sum(p.numel() for p in large.parameters()) == 11_689_512
    assert sum(p.numel() for p in small.parameters()) == 269_722
    # 1.8 billion and 41 million multiplications a picture, https://arxiv.org/abs/1512.03385
    assert large.flops() // 6 == pytest.approx(1.8e9, rel=0.03)
    assert small.flops() // 6 == pytest.approx(41e6, rel=0.03)


def test_a_norm_learns_the_statistics_of_its_batches():
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(5, 3, 4, 4) * 3 + 1
    for _ in range(3):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_norm_of_one_value_keeps_its_statistics():
    """A single picture whose last stage is one pixel: torch's own refuses it."""
    norm, x = BatchNorm(3), torch.randn(1, 3, 1, 1)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert torch.equal(norm.running_mean, torch.zeros(3))
    model = build(stem="large", depths=[1, 1]).train()
    model(torch.randn(1, 3, 8, 8)).sum().backward()


def test_a_frozen_norm_keeps_its_statistics_in_training():
    norm = BatchNorm(3)
    x = torch.randn(5, 3, 4, 4) * 3 + 1
    norm(x)
    norm.requires_grad_(False)
    before = norm.running_mean.clone()
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert torch.equal(norm.running_mean, before)


def test_a_padded_shortcut_takes_every_second_pixel():
    x = torch.arange(2 * 3 * 5.0).reshape(1, 2, 3, 5)
    found = Padded(4, 2)(x)
    assert found.shape == (1, 6, 2, 3)
    assert torch.equal(found[:, 2:4], x[:, :, ::2, ::2])
    assert float(found[:, :2].abs().sum() + found[:, 4:].abs().sum()) == 0


@torch.no_grad()
@pytest.mark.parametrize("side", [7, 8])
def test_a_pooling_shortcut_reads_the_mean_of_four_pixels(side):
    block = build(shortcut="pooling").stages[1][0]
    for norm in (block.parts[-1].norm, block.shortcut[1].norm):
        norm.weight.fill_(1.0)
    block.parts[-1].norm.weight.zero_()
    x = torch.randn(2, 8, side, side).abs()
    padded = nn.functional.pad(x, (0, side % 2, 0, side % 2), value=float("nan"))
    fours = padded.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).nanmean(dim=4)  # the edge has fewer
    wanted = torch.einsum("bchw,dc->bdhw", fours, block.shortcut[1].convolution.weight[:, :, 0, 0])
    torch.testing.assert_close(block.eval()(x), wanted.relu(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_blocks_that_begin_as_their_shortcuts():
    block = build(zero_init=True).stages[1][1].eval()
    x = torch.randn(2, 12, 4, 4)
    assert torch.equal(block(x), x.relu())
    assert not torch.equal(build().stages[1][1].eval()(x), x.relu())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depths": [1]}, "1 depths for 2 widths"),
        ({"block": "bottleneck", "widths": [8, 10]}, "multiples of 4"),
        ({"shortcut": "padding", "widths": [8, 11]}, "by even numbers"),
        ({"shortcut": "padding", "stem_width": 10}, "from stem_width on"),
    ],
)
def test_refused_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        ConvNetConfig(**SMALL | keys)


# --- files ---


@torch.no_grad()
def test_statistics_are_stored(tmp_path):
    model = build()
    model.train()(pictures())
    pretrained.save(model, tmp_path)
    again = pretrained.load(tmp_path)
    assert torch.equal(again.stem.norm.running_mean, model.stem.norm.running_mean)
    assert float(again.stem.norm.running_mean.abs().sum()) > 0
    assert torch.equal(again.eval()(pictures()), model.eval()(pictures()))


@pytest.mark.parametrize(
    "keys", [{"stem": "small", "zero_init": True}, {"shortcut": "padding"}, {"shortcut": "pooling"}]
)
def test_what_no_class_of_theirs_can_be_is_written_as_ours(keys, tmp_path):
    pretrained.save(build(**keys), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llmtool_convnet"
    assert pretrained.load(tmp_path).config == build(**keys).config


def edit(directory, **keys):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck: True is not supported"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage: True is not supported"),
        ({"hidden_sizes": 8}, "hidden_sizes: expected a list of 1 to 16 numbers"),
        ({"hidden_sizes": [8, "9"]}, "hidden_sizes: expected a whole number"),
        ({"depths": [1, 10**9]}, "depths.1: Input should be less than or equal to 512"),
        ({"depths": [1]}, "1 depths for 2 widths"),
        ({"layer_type": "wide"}, "block: Input should be 'basic' or 'bottleneck'"),
    ],
)
def test_configuration_refused(keys, message, tmp_path):
    pretrained.save(build(), tmp_path)
    edit(tmp_path, **keys)
    with pytest.raises(ConfigError) as error:
        pretrained.skeleton(tmp_path)
    assert message in str(error.value)


def test_the_size_of_pictures_is_looked_up_beside_the_weights(tmp_path):
    pretrained.save(build(), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data.pop("image_size") == 16
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert pretrained.skeleton(tmp_path).inputs == Images(3, 224, 224)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 288}}')
    assert pretrained.skeleton(tmp_path).inputs == Images(3, 288, 288)
    assert pretrained.load(tmp_path)(pictures()).shape == (8, 3)


# --- adapters ---


def test_a_frozen_body_stays_as_it_is_in_training():
    model = build()
    adapters.replace_head(model, Classes(4), seed=1)
    adapters.METHODS.validate_python({"kind": "head"}).apply(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(pictures()).sum().backward()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    adapters.METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(model)
    model.train()(pictures())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(state[name], tensor)}
    assert {name.rpartition(".")[2] for name in moved} == {"running_mean", "running_var"}
    assert all(name.startswith("stages.1.") for name in moved)


def test_convolutions_get_no_low_rank_updates():
    with pytest.raises(ConfigError, match="but for its output layer this model has none"):
        adapters.LoRAConfig(rank=2).apply(build())
