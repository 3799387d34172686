"""Adaptation: who trains and who stays, and LoRA that PEFT reads, writes and computes alike."""

import json

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from llmtool.core.contracts import Classes, Features, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import adapters, pretrained
from llmtool.models.adapters import METHODS, LoRAConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own

ARCHITECTURES = ["gpt2", "llama", "qwen3"]
QUERIES = {"gpt2": "c_attn", "llama": "q_proj", "qwen3": "q_proj"}


def transformer(architecture, seed=0, **keys):
    torch.manual_seed(seed)
    config = TransformerConfig(architecture=architecture, depth=2, heads=4, width=32, context=16, **keys)
    return config.build(Tokens(61), NextToken(61)).eval()


def mlp(outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    return MLPConfig(hidden=[8, 6], **keys).build(Features(5), outputs).eval()


def stir(model, seed=7):
    """Give every trained weight a value of its own, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids():
    return torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(2))


def rows():
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(2))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


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
    with pytest.raises(ConfigError, match="no tokens"):
        adapters.replace_head(model, NextToken(9), seed=1)
    with pytest.raises(ConfigError, match="keeps its vocabulary"):
        adapters.replace_head(transformer("llama"), NextToken(9), seed=1)


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
@torch.no_grad()
def test_peft_reads_ours(architecture, targets, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    model = transformer(architecture)
    pretrained.save(model, base)
    method = LoRAConfig(
        rank=3, alpha=7.5, targets=targets if targets == "all-linear" else [QUERIES[architecture]]
    )
    method.apply(model)
    stir(model)
    adapters.save_adapter(model, adapter, method, base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    wrapped = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(wrapped) == len(list(adapters._updates(model)))
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-5, rtol=0)
    fresh = pretrained.load(base).eval()
    adapters.load_adapter(fresh, adapter)
    assert torch.equal(fresh(ids()), model(ids()))
    assert trained(fresh) == trained(model)
    assert peft.PeftConfig.from_pretrained(adapter).base_model_name_or_path == str(base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_ours_reads_peft(architecture, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    pretrained.save(transformer(architecture), base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    theirs = stir(peft.get_peft_model(theirs, config)).eval()
    theirs.save_pretrained(adapter)
    model = pretrained.load(base).eval()
    adapters.load_adapter(model, adapter)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)
    adapters.merge(model)
    torch.testing.assert_close(model(ids()), theirs.merge_and_unload()(ids()).logits, atol=1e-5, rtol=0)


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
    adapters.merge(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(inputs), before, atol=1e-5, rtol=0)
    pretrained.save(model, tmp_path)
    assert torch.equal(pretrained.load(tmp_path).eval()(inputs), model(inputs))


@torch.no_grad()
def test_a_new_head_travels_with_the_adapter_and_peft_reads_it(tmp_path):
    model = mlp()
    adapters.replace_head(model, Classes(5), seed=1)
    method = LoRAConfig(rank=2)
    method.apply(model)
    assert {"head.weight", "head.bias"} < trained(model)
    stir(model)
    adapters.save_adapter(model, tmp_path, method, base="runs/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["head"]
    loaded = mlp()
    adapters.load_adapter(loaded, tmp_path)
    assert torch.equal(loaded.eval()(rows()), model(rows()))
    assert loaded.outputs == Classes(5)
    adapters.load_adapter(loaded, tmp_path)  # into a model that has its updates already
    assert torch.equal(loaded.eval()(rows()), model(rows()))
    theirs = mlp()
    adapters.replace_head(theirs, Classes(5), seed=4)
    theirs.config = None  # PEFT would read a configuration of transformers there
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    torch.testing.assert_close(theirs(rows()), model(rows()), atol=1e-5, rtol=0)


def test_targets_are_checked():
    model = transformer("llama")
    with pytest.raises(ConfigError, match=r"no linear layer 'q_prj'; did you mean \"q_proj\"\?"):
        LoRAConfig(targets=["q_prj"]).apply(model)
    with pytest.raises(ConfigError, match="output layer 'lm_head' is not a target"):
        LoRAConfig(targets=["lm_head"]).apply(model)
    LoRAConfig(targets=["layers.1.self_attn.v_proj", "o_proj"]).apply(model)
    assert len(list(adapters._updates(model))) == 3
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


@pytest.fixture
def saved(tmp_path):
    model = mlp()
    method = LoRAConfig(rank=2)
    method.apply(model)
    adapters.save_adapter(model, tmp_path, method, base="base")
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"linear": 4}}, "rank_pattern"),
        ({"r": "8"}, "sizes that can be read"),
        ({"r": 10**9}, "sizes that can be read"),
        ({"lora_alpha": None}, "sizes that can be read"),
        ({"target_modules": ".*"}, "sizes that can be read"),
        ({"target_modules": ["nope"]}, "no linear layer 'nope'"),
        ({"modules_to_save": ["body"]}, "modules_to_save"),
        ({"modules_to_save": 3}, "modules_to_save"),
    ],
)
def test_adapter_configurations_refused(saved, keys, message):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(ConfigError) as caught:
        adapters.load_adapter(mlp(), saved)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapter_files_refused(saved):
    path = saved / "adapter_model.safetensors"
    original = path.read_bytes()
    tensors = safetensors.torch.load(original)
    name = "base_model.model.body.0.linear.lora_A.weight"
    for change, message in (
        ({name: torch.ones(3, 5)}, "has the shape"),
        ({name: torch.full((2, 5), float("nan"))}, "NaN"),
        ({"base_model.model.head.lora_A.weight": torch.ones(2, 6)}, "unexpected"),
    ):
        safetensors.torch.save_file(tensors | change, path)
        with pytest.raises(LlmtoolError, match=message):
            adapters.load_adapter(mlp(), saved)
    path.write_bytes(original[:-1])
    with pytest.raises(LlmtoolError, match="not a whole safetensors file"):
        adapters.load_adapter(mlp(), saved)
    path.unlink()
    with pytest.raises(LlmtoolError, match=r"adapter_model\.safetensors"):
        adapters.load_adapter(mlp(), saved)
    (saved / "adapter_config.json").unlink()
    with pytest.raises(LlmtoolError, match=r"adapter_config\.json"):
        adapters.load_adapter(mlp(), saved)
