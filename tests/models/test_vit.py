"""The vision transformer: positions at other sizes, tokens beside the patches, what its files may say."""

import json

import pytest
import safetensors.torch
import torch

from llmtool.core.contracts import Classes, Images, NextToken, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import adapters, lora, peft_files, pretrained
from llmtool.models.layers import DropPath
from llmtool.models.vit import TwoHeads, ViT, ViTConfig, some_of

SMALL = {"depth": 2, "heads": 2, "width": 16, "patch": 4}
PICTURES = Images(3, 16, 16)


def build(outputs=None, inputs=PICTURES, **keys):
    torch.manual_seed(0)
    return ViTConfig(**SMALL | keys).build(inputs, outputs or Classes(3)).eval()


def pictures(height=16, width=16):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path):
    model = build()
    model.labels = ["cat", "dog", "bird"]
    pretrained.save(model, tmp_path)
    return tmp_path


def edit(directory, **keys):
    path = directory / "config.json"
    data = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@torch.no_grad()
def test_equal_positions_stay_equal_at_every_size():
    embed = build().embed
    embed.positions.copy_(torch.arange(16.0).expand_as(embed.positions))
    for grid in ((4, 4), (6, 3), (2, 9)):
        found = embed.positions_for(grid)
        assert found.shape == (1, 1 + grid[0] * grid[1], 16)
        torch.testing.assert_close(found, torch.arange(16.0).expand_as(found))


@torch.no_grad()
def test_positions_keep_height_and_width_apart():
    embed = build(inputs=Images(3, 8, 16)).embed  # 2 x 4 patches
    rows = torch.tensor([0.0, 1.0]).repeat_interleave(4)
    embed.positions[:, 1:] = rows[None, :, None]
    found = embed.positions_for((2, 8))[0, 1:, 0].reshape(2, 8)
    torch.testing.assert_close(found, torch.tensor([[0.0] * 8, [1.0] * 8]))


@torch.no_grad()
def test_patches_without_positions_may_stand_anywhere():
    model = build(architecture="dinov2", registers=2)
    model.embed.positions.zero_()
    x = pictures()
    moved = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).flip(2)  # (B, c, patches, 4, 4), backwards
    moved = moved.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert not torch.equal(moved, x)
    torch.testing.assert_close(model(moved), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("keys", "beside"),
    [
        ({}, 1),
        ({"registers": 2}, 3),
        ({"architecture": "deit"}, 2),
        ({"architecture": "dinov2", "registers": 3}, 4),
    ],
)
@torch.no_grad()
def test_tokens_beside_the_patches(keys, beside):
    model = build(**keys)
    assert model.embed.beside == beside
    assert model.hidden(pictures()).shape == (2, 16 + beside, 16)
    assert model.hidden(pictures(8, 19)).shape == (2, 2 * 4 + beside, 16)  # three columns are not seen


@torch.no_grad()
def test_dropped_patches_are_other_ones_in_each_row_and_all_are_seen_in_evaluation():
    patches = torch.arange(16.0).expand(3, 16)[:, :, None].repeat(1, 1, 2)
    torch.manual_seed(0)
    kept = some_of(patches, 0.75)
    assert kept.shape == (3, 4, 2)
    chosen = [set(row[:, 0].tolist()) for row in kept]
    assert all(len(each) == 4 for each in chosen)
    assert len(set(map(frozenset, chosen))) > 1
    assert some_of(patches, 0.999).shape == (3, 1, 2)
    whole, part = build(registers=2), build(registers=2, patch_dropout=0.5)
    assert torch.equal(whole(pictures()), part(pictures()))
    assert part.train().hidden(pictures()).shape == (2, 8 + 3, 16)


@torch.no_grad()
def test_registers_of_a_plain_one_are_written_as_ours(tmp_path):
    """No class of transformers has them."""
    model = build(registers=2, dropout=0.1)
    pretrained.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llmtool_vit"
    again = pretrained.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.eval()(pictures()), model(pictures()))


@torch.no_grad()
def test_a_dropped_path_leaves_whole_rows_out_and_the_mean_as_it_is():
    torch.manual_seed(0)
    path, x = DropPath(0.25), torch.ones(4000, 3, 2)
    found = path.train()(x)
    assert found.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(found[:, :1, :1].expand_as(found), found)
    assert found.mean() == pytest.approx(1.0, abs=0.03)
    assert path.eval()(x) is x


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 17}, "not a multiple of heads"),
        ({"architecture": "deit", "registers": 2}, "registers is for architecture: dinov2; deit has none"),
        ({"architecture": "deit", "gated": True}, "gated is for architecture: dinov2"),
        ({"architecture": "deit", "layer_scale": 0.1}, "layer_scale is for"),
        ({"architecture": "dinov2", "feed_forward": 40}, "not a multiple of width"),
    ],
)
def test_refused_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**SMALL | keys)


def test_pictures_that_patches_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="pictures of 16 x 18 pixels do not divide into patches of 4"):
        build(inputs=Images(3, 16, 18))
    with pytest.raises(ConfigError, match=r"model\.patch 1 makes 90,000 patches of pictures of 300 x 300"):
        build(inputs=Images(3, 300, 300), patch=1)


# --- files ---


@torch.no_grad()
def test_names_of_classes_stay(saved):
    data = json.loads((saved / "config.json").read_text())
    assert data["id2label"] == {"0": "cat", "1": "dog", "2": "bird"}
    assert data["architectures"] == ["ViTForImageClassification"]
    assert pretrained.load(saved).labels == ["cat", "dog", "bird"]


def test_two_heads_and_none_are_written_as_such(tmp_path):
    config = ViTConfig(**SMALL, architecture="deit")
    for outputs, teacher, named in (
        (Classes(3), True, "DeiTForImageClassificationWithTeacher"),
        (Values(2), False, "DeiTForImageClassification"),
        (None, False, "DeiTModel"),
    ):
        pretrained.save(ViT(config, Images(1, 8, 16), outputs, teacher), tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [named]
        again = pretrained.load(tmp_path)
        assert (again.outputs, again.inputs) == (outputs, Images(1, 8, 16))
        assert isinstance(again.head, TwoHeads) == teacher


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "ViTModel is read for vit",
        ),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported (only 'gelu')"),
        ({"qkv_bias": False}, "qkv_bias: False is not supported"),
        ({"patch_size": [4, 2]}, "patch_size: 4 x 2 is not supported (only squares are)"),
        ({"patch_size": 32}, "patch_size 32 makes 0 patches"),
        ({"patch_size": 1, "image_size": 60_000}, "patches of 60000 x 60000 pixels"),
        ({"image_size": 0}, "image_size: expected a whole number from 1 to 65536, or two (got 0)"),
        ({"image_size": [16, True]}, "image_size: expected"),
        ({"num_channels": "3"}, "num_channels: expected a whole number"),
        ({"num_hidden_layers": 10**9}, "depth: Input should be less than or equal to 512"),
        ({"hidden_size": 15}, "width 15 is not a multiple of heads 2"),
        ({"intermediate_size": ...}, "intermediate_size: expected a whole number"),
        ({"layer_norm_eps": "0"}, "norm_epsilon: Input should be a valid number"),
        ({"hidden_dropout_prob": 1}, "dropout: Input should be less than 1"),
        ({"problem_type": "several_of_them"}, "problem_type: 'several_of_them' is not supported"),
        ({"model_type": "vti"}, 'did you mean "vit"'),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map is not supported"),
    ],
)
def test_configuration_refused(saved, keys, message):
    edit(saved, **keys)
    with pytest.raises(ConfigError) as error:
        pretrained.skeleton(saved)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dinov2_with_an_odd_ratio_is_refused(tmp_path):
    pretrained.save(build(architecture="dinov2"), tmp_path)
    edit(tmp_path, mlp_ratio=2.5)
    with pytest.raises(ConfigError, match="mlp_ratio: expected a whole number"):
        pretrained.skeleton(tmp_path)


def test_a_head_of_another_size_is_refused(saved):
    edit(saved, id2label={"0": "cat", "1": "dog"})
    with pytest.raises(LlmtoolError, match=r"classifier\.bias has the shape \(3,\)"):
        pretrained.load(saved)


@torch.no_grad()
def test_unused_tensors_are_skipped_and_lost_ones_named(saved):
    path = saved / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    more = {"vit.pooler.dense.weight": torch.ones(16, 16), "vit.embeddings.mask_token": torch.ones(1, 1, 16)}
    safetensors.torch.save_file(tensors | more, path)
    assert torch.equal(pretrained.load(saved).eval()(pictures()), build()(pictures()))
    del tensors["vit.embeddings.cls_token"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(LlmtoolError, match=r"lacks vit\.embeddings\.cls_token"):
        pretrained.load(saved)


# --- adapters ---


def trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def test_a_new_head_for_other_classes_and_for_a_body_alone():
    for model in (
        build(),
        ViT(ViTConfig(**SMALL, architecture="deit"), PICTURES, Classes(3), teacher=True).eval(),
        ViT(ViTConfig(**SMALL, architecture="dinov2"), PICTURES, None).eval(),
    ):
        model.labels = ["a", "b", "c"]
        before = model.hidden(pictures())
        adapters.replace_head(model, Classes(5), seed=1)
        assert model(pictures()).shape == (2, 5)
        assert (model.outputs, model.labels, model.head_is_new) == (Classes(5), None, True)
        assert torch.equal(model.hidden(pictures()), before)
        weight = model.head.weight.clone()
        adapters.replace_head(model, Classes(5), seed=1)
        assert torch.equal(model.head.weight, weight)
        with pytest.raises(ConfigError, match=r"model\.family vit gives classes or values"):
            adapters.replace_head(model, NextToken(9), seed=1)


def test_what_each_method_trains():
    model = build()
    adapters.METHODS.validate_python({"kind": "head"}).apply(model)
    assert trained(model) == ["head.weight", "head.bias"]
    adapters.METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(model)
    assert {name.split(".")[0] for name in trained(model)} == {"layers", "norm", "head"}
    assert not any(name.startswith("layers.0.") for name in trained(model))
    adapters.LoRAConfig(rank=2).apply(model)
    targets = {name.split(".lora_")[0] for name in trained(model)}
    parts = ("attention.query", "attention.key", "attention.value", "attention.output")
    parts += ("feed_forward.widen", "feed_forward.narrow")
    assert targets == {f"layers.{block}.{part}" for block in (0, 1) for part in parts}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"architecture": "deit"},
        {"architecture": "dinov2"},
        {"architecture": "dinov2", "gated": True, "registers": 2},
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@torch.no_grad()
def test_an_adapter_and_its_new_head_are_read_by_peft_and_back(keys, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, adapter, again = (tmp_path / name for name in ("base", "adapter", "again"))
    for directory in (base, adapter):
        directory.mkdir()
    pretrained.save(build(**keys), base)
    model, method = pretrained.load(base).eval(), adapters.LoRAConfig(rank=2)
    adapters.replace_head(model, Classes(5), seed=1)
    method.apply(model)
    for name in trained(model):
        parameter = model.get_parameter(name)
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    peft_files.save_adapter(model, adapter, method, base=str(base))
    loaded = pretrained.load(base)
    peft_files.load_adapter(loaded, adapter)
    assert torch.equal(loaded.eval()(pictures()), model(pictures()))
    assert loaded.outputs == Classes(5)
    classes = transformers.AutoModelForImageClassification
    theirs = classes.from_pretrained(base, num_labels=5, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    torch.testing.assert_close(theirs(pixel_values=pictures()).logits, model(pictures()), atol=1e-5, rtol=0)
    theirs.save_pretrained(again)
    loaded = pretrained.load(base)
    peft_files.load_adapter(loaded, again)
    torch.testing.assert_close(loaded.eval()(pictures()), model(pictures()), atol=1e-6, rtol=0)
    expected = model(pictures())
    lora.merge(model)
    torch.testing.assert_close(model(pictures()), expected, atol=1e-5, rtol=0)
