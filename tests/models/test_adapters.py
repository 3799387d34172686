"""Adaptation: who trains and who stays, which layers get updates, and which keys go together."""

import pytest
import torch
from pydantic import ValidationError

from llmtool.core.contracts import Classes, Features, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models import adapters, lora, pretrained
from llmtool.models.adapters import METHODS, LoRAConfig
from llmtool.models.encoder import EncoderConfig
from tests.models.small import ARCHITECTURES, ids, mlp, rows, stir, trained, transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own

# --- full, freeze, head --------------------------------------------------------------------------------


def test_full_trains_everything():
    model = mlp().requires_grad_(False)
    METHODS.validate_python({"kind": "full"}).apply(model)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_freeze_keeps_the_first_layers():
    model = mlp()
    METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(model)
    assert trained(model) == {"body.1.linear.weight", "body.1.linear.bias", "head.weight", "head.bias"}
    model = transformer("gpt2")
    METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(model)
    assert all(name.startswith(("transformer.h.1.", "transformer.ln_f")) for name in trained(model))
    model = transformer("qwen3", tie_embeddings=False)
    METHODS.validate_python({"kind": "freeze", "blocks": 2}).apply(model)
    assert trained(model) == {"model.norm.weight", "lm_head.weight"}
    with pytest.raises(ConfigError, match="3 of the model's 2 blocks"):
        METHODS.validate_python({"kind": "freeze", "blocks": 3}).apply(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_trains_the_output_layer_only(architecture, tmp_path):
    model = transformer(architecture)
    before = model(ids())
    METHODS.validate_python({"kind": "head"}).apply(model)
    assert trained(model) == {"lm_head.weight"}
    assert torch.equal(model(ids()), before)
    stir(model)  # the embeddings must not follow the output layer they were tied to
    pretrained.save(model, tmp_path)
    loaded = pretrained.load(tmp_path)
    assert torch.equal(loaded.eval()(ids()), model(ids()))
    assert torch.equal(loaded.embeddings[0].weight, transformer(architecture).embeddings[0].weight)
    small = mlp()
    METHODS.validate_python({"kind": "head"}).apply(small)
    assert trained(small) == {"head.weight", "head.bias"}


def test_a_new_head_for_other_classes():
    model = mlp()
    body = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    state = torch.get_rng_state()
    adapters.replace_head(model, Classes(5), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(rows()).shape == (9, 5)
    assert model.outputs == Classes(5)
    assert all(torch.equal(body[name], tensor) for name, tensor in model.body.state_dict().items())
    again, other = mlp(), mlp()
    adapters.replace_head(again, Classes(5), seed=1)
    adapters.replace_head(other, Classes(5), seed=2)
    assert torch.equal(again.head.weight, model.head.weight)
    assert not torch.equal(other.head.weight, model.head.weight)
    adapters.replace_head(model, Values(2), seed=1)
    assert model.outputs == Values(2)
    with pytest.raises(ConfigError, match=r"model\.family mlp gives classes or values"):
        adapters.replace_head(model, NextToken(9), seed=1)
    with pytest.raises(ConfigError, match="keeps its vocabulary"):
        adapters.replace_head(transformer("llama"), NextToken(9), seed=1)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_an_encoder_gets_a_head_or_another_output_layer(architecture, tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(architecture=architecture, depth=2, heads=4, width=32, context=16)
    model = config.build(Tokens(61), Classes(3)).eval()
    model.labels = ["a", "b", "c"]
    hidden, dense = model.hidden(ids()), model.head.dense.weight
    adapters.replace_head(model, Classes(5), seed=1)
    assert model(ids()).shape == (3, 5)
    assert model.head.dense.weight is dense  # what it knew of texts stays
    assert model.labels is None
    assert torch.equal(model.hidden(ids()), hidden)
    model.outputs = None
    pretrained.save(model, tmp_path)
    body = pretrained.load(tmp_path).eval()
    assert body.outputs is None
    assert not body.head.dense.weight.any()
    adapters.replace_head(body, Values(2), seed=1)
    assert body(ids()).abs().sum() > 0
    assert body(ids()).shape == (3, 2)
    METHODS.validate_python({"kind": "head"}).apply(body)
    assert all(name.startswith("head.") for name in trained(body))
    METHODS.validate_python({"kind": "freeze", "blocks": 1}).apply(body)
    assert not any(name.startswith(("embed.", "layers.0.")) for name in trained(body))
    assert any(name.startswith("layers.1.") for name in trained(body))


# --- LoRA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [transformer("gpt2"), transformer("llama"), mlp()], ids=["gpt2", "llama", "mlp"]
)
def test_lora_starts_as_the_base_and_trains_little(model):
    inputs = rows() if isinstance(model.inputs, Features) else ids()
    before = model(inputs)
    LoRAConfig(rank=2).apply(model, seed=3)
    assert torch.equal(model(inputs), before)
    assert trained(model) == {name for name, _ in model.named_parameters() if ".lora_" in name}
    stir(model)
    assert not torch.allclose(model(inputs), before)


def test_lora_is_seeded():
    models = [mlp(), mlp(), mlp()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        LoRAConfig(rank=2).apply(model, seed=seed)
    first, again, other = (model.body[0].linear.lora_A.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mlp"])
@torch.no_grad()
def test_merged_is_a_plain_model_with_the_same_outputs(architecture, tmp_path):
    model = mlp() if architecture == "mlp" else transformer(architecture)
    inputs = rows() if architecture == "mlp" else ids()
    names = list(model.state_dict())
    LoRAConfig(rank=3).apply(model)
    stir(model)
    before = model(inputs)
    with pytest.raises(AssertionError, match="merge"):
        pretrained.save(model, tmp_path)
    lora.merge(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(inputs), before, atol=1e-5, rtol=0)
    pretrained.save(model, tmp_path)
    assert torch.equal(pretrained.load(tmp_path).eval()(inputs), model(inputs))


def test_targets_are_checked():
    model = transformer("llama")
    with pytest.raises(ConfigError, match=r"no linear layer 'q_prj'; did you mean \"q_proj\"\?"):
        LoRAConfig(targets=["q_prj"]).apply(model)
    with pytest.raises(ConfigError, match="output layer 'lm_head' is not a target"):
        LoRAConfig(targets=["lm_head"]).apply(model)
    LoRAConfig(targets=["layers.1.self_attn.v_proj", "o_proj"]).apply(model)
    assert len(list(lora.updates(model))) == 3
    for keys in (
        {"targets": []},
        {"rank": 0},
        {"rank": 2.0},
        {"alpha": 0.0},
        {"targets": "some"},
        {"dropout": 1.0},
    ):
        with pytest.raises(ValidationError):
            LoRAConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"kind": "lora", "init": "pissa", "dora": True}, "choose one"),
        ({"kind": "lora", "init": "pissa", "quantise": "nf4"}, "another base"),
        ({"kind": "lora", "double_quantise": True}, "double_quantise needs quantise: nf4"),
        (
            {"kind": "full", "quantise": "nf4"},
            "quantise needs kind: lora .a weight of four bits is not trained",
        ),
        ({"kind": "head", "lora_plus_ratio": 16.0}, "lora_plus_ratio needs kind: lora"),
        ({"kind": "freeze", "blocks": 1, "dora": True}, "dora needs kind: lora"),
        ({"kind": "lora", "lora_plus_ratio": 0.0}, "greater than 0"),
    ],
)
def test_what_does_not_go_together(keys, reason):
    with pytest.raises(ValidationError, match=reason):
        METHODS.validate_python(keys)


def test_rates_of_lora_plus():
    model = transformer("llama")
    method = LoRAConfig(rank=2, targets=["q_proj"], lora_plus_ratio=16)
    method.apply(model)
    assert method.rates(model) == {f"model.layers.{n}.self_attn.q_proj.lora_B.weight": 16 for n in (0, 1)}
    assert LoRAConfig(rank=2).rates(model) == {}


def test_new_columns_beside_a_text_start_from_the_seed():
    """Whatever was drawn before; and they change nothing until they have learned."""
    models = []
    for seed in (1, 1, 2):
        model = EncoderConfig(depth=1, heads=1, width=8).build(Tokens(11), Classes(2)).eval()
        ids = torch.ones(2, 4, dtype=torch.int64)
        before = model(ids)
        adapters.read_beside(model, 3, seed)
        torch.testing.assert_close(model(ids, None, torch.randn(2, 3)), before)
        models.append(model.head.table[0].weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
