"""LoRA, rsLoRA, DoRA and PiSSA beside PEFT: the same outputs, loss and gradients, and merged models alike."""

import pytest
import torch
from torch import nn

from llmtool.core.contracts import Classes, Features
from llmtool.core.errors import ConfigError
from llmtool.models import lora, peft_files
from llmtool.models.adapters import LoRAConfig
from llmtool.models.layers import Conv1D
from llmtool.models.lora import LoRALinear
from llmtool.models.mlp import MLPConfig
from tests.models.beside_peft import ARCHITECTURE, METHOD, losses, take, theirs_of
from tests.models.small import ids, stir, transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own


@METHOD
@ARCHITECTURE
def test_outputs_loss_and_gradients_are_pefts(method, architecture, tmp_path):
    model = transformer(architecture)
    before = model(ids()).detach()
    theirs = theirs_of(model, method, tmp_path)
    method.apply(model)
    torch.testing.assert_close(model(ids()), before, atol=1e-5, rtol=0)  # the start is the base model
    if method.init == "pissa":  # the same decomposition, whose signs are free
        for name, update in lora.updates(model):
            layer = theirs.base_model.model.get_submodule(name)
            pair = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            torch.testing.assert_close(update.lora_B.weight @ update.lora_A.weight, pair, atol=1e-5, rtol=0)
            torch.testing.assert_close(update.base.weight, layer.base_layer.weight, atol=1e-5, rtol=0)
    stir(theirs)
    take(theirs, model)
    (loss, ours), (other, wanted) = losses(model.train(), theirs.train())
    torch.testing.assert_close(loss, other, atol=1e-5, rtol=0)
    assert ours.keys() == wanted.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4, msg=lambda s, n=name: n + s)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@ARCHITECTURE
def test_dropout_is_pefts(architecture, dora, tmp_path):
    """The same random stream in the same order, so that the same inputs are dropped."""
    model = transformer(architecture)
    method = LoRAConfig(rank=3, dropout=0.4, dora=dora)
    theirs = stir(theirs_of(model, method, tmp_path, dropout=0.4))
    method.apply(model)
    take(theirs, model)
    outputs = []
    for run in (model.train(), lambda x: theirs.train()(x).logits):
        torch.manual_seed(3)
        outputs.append(run(ids()))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    assert not torch.allclose(outputs[0], model.eval()(ids()), atol=1e-2)


@METHOD
@ARCHITECTURE
@torch.no_grad()
def test_merged_is_a_plain_model_with_the_same_outputs(method, architecture, tmp_path):
    model = transformer(architecture)
    theirs = stir(theirs_of(model, method, tmp_path))
    names = list(model.state_dict())
    method.apply(model)
    take(theirs, model)
    before = model(ids())
    lora.merge(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(ids()), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids()), theirs.merge_and_unload()(ids()).logits, atol=1e-5, rtol=0)


@METHOD
@torch.no_grad()
def test_a_table_too(method):
    """Biases, and layers that are narrower than they are long."""
    torch.manual_seed(0)
    model = MLPConfig(hidden=[8, 6]).build(Features(5), Classes(3)).eval()
    rows = torch.randn(9, 5)
    before = model(rows)
    method.apply(model)
    torch.testing.assert_close(model(rows), before, atol=1e-5, rtol=0)
    stir(model)
    changed = model(rows)
    assert not torch.allclose(changed, before, atol=1e-3)
    lora.merge(model)
    torch.testing.assert_close(model(rows), changed, atol=1e-5, rtol=0)


@METHOD
def test_nothing_but_the_update_is_trained(method):
    model = transformer("llama")
    method.apply(model)
    model(ids()).sum().backward()
    parts = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if method.dora else set())
    wanted = {f"{name}.{part}" for name, _ in lora.updates(model) for part in parts}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert {name for name, p in model.named_parameters() if p.grad is not None} == wanted


def test_more_directions_than_there_are():
    with pytest.raises(ConfigError, match=r"rank: 9 is more than the 5 singular directions .* 5 x 8"):
        LoRAConfig(rank=9, init="pissa").apply(MLPConfig(hidden=[8]).build(Features(5), Classes(3)))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@torch.no_grad()
def test_lengths_of_rows_without_the_matrix(kind):
    """The closed form that DoRA uses in each forward pass, against the matrix itself."""
    torch.manual_seed(1)
    base = kind(24, 40)
    nn.init.normal_(base.weight)
    update = LoRALinear(base, rank=5, scale=0.7, dora=True)
    nn.init.normal_(update.lora_A.weight)
    nn.init.normal_(update.lora_B.weight)
    whole = lora.matrix(base) + 0.7 * update.lora_B.weight @ update.lora_A.weight
    torch.testing.assert_close(update._lengths(), whole.norm(dim=1), rtol=1e-5, atol=0)
    update.lora_B.weight.copy_(-1e-3 * update.lora_B.weight)  # small, as in training
    whole = lora.matrix(base) + 0.7 * update.lora_B.weight @ update.lora_A.weight
    torch.testing.assert_close(update._lengths(), whole.norm(dim=1), rtol=1e-5, atol=0)


@torch.no_grad()
def test_pissa_goes_on_from_another_decomposition(tmp_path):
    """Resumed where the decomposition comes out with other signs or last bits: the base follows the file."""
    model, other = transformer("llama"), transformer("llama")
    method = LoRAConfig(rank=3, init="pissa")
    method.apply(model)
    stir(model)
    method.apply(other)
    for _, update in lora.updates(other):
        update.take_out(-1.5 * update.start_A, -update.start_B)
    peft_files.save_adapter(model, tmp_path, method, base="base")
    peft_files.load_adapter(other, tmp_path)
    torch.testing.assert_close(other(ids()), model(ids()), atol=1e-5, rtol=0)
    for (_, one), (_, two) in zip(lora.updates(model), lora.updates(other), strict=True):
        assert torch.equal(one.lora_A.weight, two.lora_A.weight)
        assert torch.equal(one.start_B, two.start_B)


def test_a_row_of_zeros_has_no_direction():
    base = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        base.weight[1] = 0
    update = LoRALinear(base.requires_grad_(False), rank=2, scale=1.0, dora=True)
    update.start_at_random(torch.Generator().manual_seed(0))
    y = update(torch.randn(3, 6, requires_grad=True))
    y.sum().backward()
    assert torch.equal(y[:, 1], torch.zeros(3))
    assert all(torch.isfinite(p.grad).all() for p in update.parameters() if p.requires_grad)
    torch.testing.assert_close(update.merged().weight[1], torch.zeros(6))
