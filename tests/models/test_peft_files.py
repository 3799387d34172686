"""Adapters in PEFT's files: ours load there, theirs load here, each kind; what is not read is refused."""

import json

import pytest
import safetensors.torch
import torch

from llmtool.core.contracts import Classes, Tokens
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import adapters, lora, peft_files, pretrained
from llmtool.models.adapters import LoRAConfig
from llmtool.models.encoder import EncoderConfig
from tests.models.beside_peft import ARCHITECTURE, METHOD, METHODS, theirs_of
from tests.models.small import ARCHITECTURES, QUERIES, ids, mlp, rows, stir, trained, transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:PiSSA changes the base weights of the model:UserWarning"),
]


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
    peft_files.save_adapter(model, adapter, method, base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    wrapped = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert len(wrapped) == len(list(lora.updates(model)))
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-5, rtol=0)
    fresh = pretrained.load(base).eval()
    peft_files.load_adapter(fresh, adapter)
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
    peft_files.load_adapter(model, adapter)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)
    lora.merge(model)
    torch.testing.assert_close(model(ids()), theirs.merge_and_unload()(ids()).logits, atol=1e-5, rtol=0)


@METHOD
@ARCHITECTURE
@torch.no_grad()
def test_each_method_loads_in_peft_beside_the_original_base(method, architecture, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    model = transformer(architecture)
    pretrained.save(model, base)
    method.apply(model)
    stir(model)
    peft_files.save_adapter(model, adapter, method, base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-5, rtol=0)
    fresh = pretrained.load(base).eval()  # as for evaluate: PiSSA is a plain LoRA of twice the rank by now
    peft_files.load_adapter(fresh, adapter)
    torch.testing.assert_close(fresh(ids()), model(ids()), atol=1e-5, rtol=0)
    again = pretrained.load(base).eval()  # as for a resumed training
    method.apply(again)
    peft_files.load_adapter(again, adapter)
    assert torch.equal(again(ids()), model(ids()))
    for (_, one), (_, two) in zip(lora.updates(again), lora.updates(model), strict=True):
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[key]), key


PISSA = {"pissa", "pissa rank stabilised"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - PISSA))
@ARCHITECTURE
@torch.no_grad()
def test_each_of_pefts_kinds_is_read(name, architecture, tmp_path):
    adapter = tmp_path / "adapter"
    theirs = stir(theirs_of(transformer(architecture), METHODS[name], tmp_path)).eval()
    theirs.save_pretrained(adapter)
    model = pretrained.load(tmp_path).eval()
    peft_files.load_adapter(model, adapter)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(PISSA))
@torch.no_grad()
def test_pefts_pissa_is_read_once_it_is_converted(name, tmp_path):
    theirs = theirs_of(transformer("llama"), METHODS[name], tmp_path)
    theirs.peft_config["default"].init_lora_weights = True  # as PEFT's own example of the conversion does
    theirs.save_pretrained(tmp_path / "start")
    stir(theirs).eval()
    theirs.peft_config["default"].init_lora_weights = "pissa"
    theirs.save_pretrained(tmp_path / "as it is")
    model = pretrained.load(tmp_path).eval()
    with pytest.raises(ConfigError, match=r"'pissa' changes the base itself; .*path_initial_model"):
        peft_files.load_adapter(model, tmp_path / "as it is")
    before = theirs(ids()).logits
    theirs.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    peft_files.load_adapter(model, tmp_path / "converted")
    torch.testing.assert_close(model(ids()), before, atol=1e-5, rtol=0)
    assert all(update.lora_A.out_features == 6 for _, update in lora.updates(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("whole", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
@torch.no_grad()
def test_layers_that_peft_stored_whole(whole, tied, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    pretrained.save(transformer("llama", tie_embeddings=tied), base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "nowhere"], modules_to_save=whole)
    theirs = stir(peft.get_peft_model(theirs, config)).eval()
    theirs.save_pretrained(adapter)
    model = pretrained.load(base).eval()
    peft_files.load_adapter(model, adapter)
    torch.testing.assert_close(model(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)
    lora.merge(model)
    merged = tmp_path / "merged"
    merged.mkdir()
    pretrained.save(model, merged)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(merged).eval()
    torch.testing.assert_close(loaded(ids()).logits, theirs(ids()).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_new_head_travels_with_the_adapter_and_peft_reads_it(tmp_path):
    model = mlp()
    adapters.replace_head(model, Classes(5), seed=1)
    method = LoRAConfig(rank=2)
    method.apply(model)
    assert {"head.weight", "head.bias"} < trained(model)
    stir(model)
    peft_files.save_adapter(model, tmp_path, method, base="runs/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["head"]
    loaded = mlp()
    peft_files.load_adapter(loaded, tmp_path)
    assert torch.equal(loaded.eval()(rows()), model(rows()))
    assert loaded.outputs == Classes(5)
    peft_files.load_adapter(loaded, tmp_path)  # into a model that has its updates already
    assert torch.equal(loaded.eval()(rows()), model(rows()))
    theirs = mlp()
    adapters.replace_head(theirs, Classes(5), seed=4)
    theirs.config = None  # PEFT would read a configuration of transformers there
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    torch.testing.assert_close(theirs(rows()), model(rows()), atol=1e-5, rtol=0)


def encoder(architecture, outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    config = EncoderConfig(architecture=architecture, depth=2, heads=4, width=32, context=16, **keys)
    return config.build(Tokens(61), outputs).eval()


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert"])
@torch.no_grad()
def test_an_encoders_adapter_and_new_head_are_read_by_peft_and_back(architecture, tmp_path):
    rows = ids().clamp(min=2)  # no padding, which transformers would see by its id
    base = tmp_path / "base"
    base.mkdir()
    pretrained.save(encoder(architecture), base)
    model = pretrained.load(base).eval()
    adapters.replace_head(model, Classes(5), seed=1)
    method = LoRAConfig(rank=2)
    method.apply(model)
    stir(model)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    peft_files.save_adapter(model, adapter, method, base=str(base))
    loaded = pretrained.load(base)
    peft_files.load_adapter(loaded, adapter)
    assert torch.equal(loaded.eval()(rows), model(rows))
    assert loaded.outputs == Classes(5)
    classes = transformers.AutoModelForSequenceClassification
    theirs = classes.from_pretrained(base, num_labels=5, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    torch.testing.assert_close(theirs(rows).logits, model(rows), atol=1e-5, rtol=0)
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    loaded = pretrained.load(base)
    peft_files.load_adapter(loaded, again)
    torch.testing.assert_close(loaded.eval()(rows), model(rows), atol=1e-6, rtol=0)


@pytest.fixture
def saved(tmp_path):
    model = mlp()
    method = LoRAConfig(rank=2)
    method.apply(model)
    peft_files.save_adapter(model, tmp_path, method, base="base")
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"linear": 4}}, "rank_pattern"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "olora"}, "'olora' changes the base itself"),
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
        peft_files.load_adapter(mlp(), saved)
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
            peft_files.load_adapter(mlp(), saved)
    path.write_bytes(original[:-1])
    with pytest.raises(LlmtoolError, match="not a whole safetensors file"):
        peft_files.load_adapter(mlp(), saved)
    path.unlink()
    with pytest.raises(LlmtoolError, match=r"adapter_model\.safetensors"):
        peft_files.load_adapter(mlp(), saved)
    (saved / "adapter_config.json").unlink()
    with pytest.raises(LlmtoolError, match=r"adapter_config\.json"):
        peft_files.load_adapter(mlp(), saved)
