"""The ensemble for tables: its arithmetic, its members, and what fine-tuning does with it."""

import pytest
import torch
import torch.nn.functional as F

from llmtool.core.contracts import Batch, Classes, Features, Values
from llmtool.core.errors import ConfigError
from llmtool.models import adapters, onnx, peft_files, pretrained
from llmtool.models.adapters import METHODS, LoRAConfig
from llmtool.models.tabm import TabMConfig
from llmtool.tasks.classification import ClassificationConfig
from llmtool.tasks.regression import RegressionConfig
from llmtool.training.optimizers import AdamWConfig
from tests.models.small import stir, trained

CARD = {"targets": {"kind": "classes", "names": ["a", "b", "c"], "counts": [5, 4, 3]}}


def tabm(outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    keys = {"members": 4, "embedding": 3, "hidden": [8, 6], "dropout": 0.0} | keys
    return TabMConfig(**keys).build(Features(5, (2, 3)), outputs).eval()


def rows(count=9):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(2))


def test_the_forward_pass_is_the_formula():
    model, x = stir(tabm()), rows()
    weight = model.embedding.weight
    columns = [x[:, :2] @ weight[:2], x[:, 2:] @ weight[2:]]
    embedded = torch.cat(columns, dim=1) + model.embedding.bias
    for member in range(4):
        hidden = embedded
        for layer in model.blocks:
            own = layer.all
            r, s, b = (part.view(4, -1)[member] for part in (own.scale_in, own.scale_out, own.bias))
            hidden = (((hidden * r) @ own.linear.weight.T) * s + b).clamp(min=0)
        logits = hidden @ model.head.weight[:, member].T + model.head.bias.view(4, -1)[member]
        torch.testing.assert_close(model.members(x)[:, member], logits)
    mean = model.members(x).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(model(x).softmax(dim=-1), mean)
    torch.testing.assert_close(model(x).exp(), mean)
    numbers = tabm(Values(2))
    torch.testing.assert_close(numbers(x), numbers.members(x).mean(dim=1))


def test_members_start_apart_and_columns_stay_apart():
    model = tabm()
    found = model.members(rows())
    assert all(not torch.allclose(found[:, 0], found[:, member]) for member in range(1, 4))
    assert set(model.blocks[0].all.scale_in.tolist()) == {-1.0, 1.0}
    x = rows().requires_grad_()
    model.embedding(x)[:, :3].sum().backward()
    assert bool((x.grad[:, :2] != 0).all())
    assert not bool(x.grad[:, 2:].any())


def test_each_member_learns_by_its_own_loss():
    model, targets = tabm(), torch.arange(9) % 3
    loss = ClassificationConfig().build(CARD).loss(model, Batch(rows(), targets))
    members = model.members(rows())
    each = [F.cross_entropy(members[:, k], targets, reduction="sum") for k in range(4)]
    torch.testing.assert_close(loss.total, torch.stack(each).mean())
    assert int(loss.count) == 9
    weighted = ClassificationConfig(class_weights="balanced").build(CARD).loss(model, Batch(rows(), targets))
    assert float(weighted.count) == pytest.approx(3 * 12 / 3 * (1 / 5 + 1 / 4 + 1 / 3))
    card = {"targets": {"kind": "values", "names": ["y", "z"], "mean": [1.0, 2.0], "scale": [3.0, 4.0]}}
    numbers, values = tabm(Values(2)), torch.randn(9, 2)
    loss = RegressionConfig().build(card).loss(numbers, Batch(rows(), values))
    standard = (values - torch.tensor([1.0, 2.0])) / torch.tensor([3.0, 4.0])
    each = [F.mse_loss(numbers.members(rows())[:, k], standard, reduction="sum") for k in range(4)]
    torch.testing.assert_close(loss.total, torch.stack(each).mean())
    assert int(loss.count) == 18


def test_thousands_of_columns_are_not_embedded():
    with torch.device("meta"):
        assert TabMConfig().build(Features(20_000), Classes(2)).embedding is None
        assert TabMConfig().build(Features(2_000), Classes(2)).embedding.width == 8
        with pytest.raises(ConfigError, match=r"model\.embedding: 20,000 columns .* are too many"):
            TabMConfig(embedding=16).build(Features(20_000), Classes(2))


def test_what_members_own_is_never_decayed():
    model = tabm()
    groups = AdamWConfig(name="adamw", weight_decay=0.1).build(model).groups()
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in decayed} == {
        "embedding.weight",
        "body.0.all.linear.weight",
        "body.1.all.linear.weight",
        "head.weight",
    }


def test_a_new_head_and_the_methods_of_fine_tuning():
    model, state = tabm(), torch.get_rng_state()
    adapters.replace_head(model, Classes(5), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(rows()).shape == (9, 5)
    again = tabm()
    adapters.replace_head(again, Classes(5), seed=1)
    assert torch.equal(again.head.weight, model.head.weight)
    METHODS.validate_python({"kind": "head"}).apply(model)
    assert trained(model) == {"head.weight", "head.bias"}
    METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(model)
    assert all(name.startswith(("body.1.", "head.")) for name in trained(model))


def test_low_rank_updates_with_a_new_head_are_kept(tmp_path):
    def changed():
        model = tabm()
        adapters.replace_head(model, Classes(5), seed=1)
        return model

    method, model = LoRAConfig(rank=2), changed()
    method.apply(model)
    assert "body.0.all.linear.lora_A.weight" in trained(model)
    stir(model)
    peft_files.save_adapter(model, tmp_path, method, base="elsewhere")
    loaded = tabm()
    peft_files.load_adapter(loaded, tmp_path)
    assert loaded.outputs == Classes(5)
    torch.testing.assert_close(loaded.eval()(rows()), model.eval()(rows()))


@pytest.mark.parametrize("outputs", [Classes(3), Values(2)])
def test_as_an_onnx_file(tmp_path, outputs):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = tabm(outputs)
    onnx.export(model, tmp_path / onnx.FILE)
    assert max(one["difference"] for one in onnx.check(model, tmp_path / onnx.FILE)) < 1e-5


@pytest.mark.parametrize("columns", [[2, 2], [0, 5], "all", [5.0], [-1, 6]])
def test_columns_that_do_not_fit_are_refused(tmp_path, columns):
    pretrained.save(tabm(), tmp_path)
    path = tmp_path / pretrained.CONFIG_FILE
    data = pretrained.files.read_json(path)
    data["inputs"]["columns"] = columns
    path.write_text(pretrained.files.json_bytes(data).decode())
    with pytest.raises(ConfigError, match=r"inputs\.columns: "):
        pretrained.load(tmp_path)
