"""Models on disk: the same logits as transformers both ways, and a clear refusal of everything else."""

import json
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from llmtool.core.contracts import Classes, Features, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import pretrained
from llmtool.models.forms import form_of
from llmtool.models.forms.form import Form, Stored
from llmtool.models.mlp import MLPConfig
from llmtool.models.relatives import RELATIVES
from llmtool.models.rope import LinearScaling, LongScaling
from llmtool.models.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT = 61, 24
SIZES = {"depth": 2, "heads": 4, "width": 32, "context": CONTEXT}
EVERY_OTHER = ["sliding_attention", "full_attention"]
VARIANTS = {
    "gpt2": {"architecture": "gpt2"},
    "gpt2 untied": {"architecture": "gpt2", "tie_embeddings": False, "feed_forward": 48},
    "llama": {"architecture": "llama"},
    "llama untied, shared keys": {"architecture": "llama", "key_value_heads": 2, "tie_embeddings": False},
    "qwen3 shared keys": {"architecture": "qwen3", "key_value_heads": 1, "rope_theta": 1e6},
    "mistral": {"architecture": "mistral", "window": 5},
    "qwen2": {"architecture": "qwen2", "window": 5, "layer_types": EVERY_OTHER},
    "gemma2": {"architecture": "gemma2", "window": 5, "attention_soft_cap": 2.0},
    "gemma2 without windows": {"architecture": "gemma2"},
    "gemma3": {"architecture": "gemma3_text", "window": 5, "layer_types": EVERY_OTHER, "logit_soft_cap": 3.0},
    "gemma3 without windows": {"architecture": "gemma3_text", "attention_bias": True},
    "phi3": {"architecture": "phi3", "key_value_heads": 2, "rotary_share": 0.5},
    "olmo2": {"architecture": "olmo2", "attention_bias": True},
    "smollm3": {"architecture": "smollm3", "unrotated": [0], "mlp_bias": True},
    "qwen3 wide heads, untied": {"architecture": "qwen3", "head_width": 12, "tie_embeddings": False},
}


def transformer(seed=0, **keys):
    torch.manual_seed(seed)
    model = TransformerConfig(**SIZES | keys).build(Tokens(VOCABULARY), NextToken(VOCABULARY))
    with torch.no_grad():  # no parameter at a value where an error would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ids(rows=3, length=CONTEXT, seed=1):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_transformers_loads_ours(keys, tmp_path):
    ours = transformer(**keys)
    pretrained.save(ours, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(ours(ids()), theirs.eval()(ids()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_ours_loads_transformers(keys, tmp_path):
    keys_of_theirs = form_of(transformer(**keys))
    form = {"model_type": keys_of_theirs.model_type, **keys_of_theirs.write(transformer(**keys))}
    torch.manual_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**form)).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.load(tmp_path).eval()
    torch.testing.assert_close(ours(ids()), theirs(ids()).logits, atol=1e-5, rtol=0)
    assert ours.config == transformer(**keys).config


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_padding_agrees_with_an_attention_mask(keys, tmp_path):
    ours = transformer(**keys)
    pretrained.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    real = torch.ones(3, CONTEXT, dtype=torch.int32)
    real[0, 10:], real[2, 1:] = 0, 0
    kept = real.bool()
    expected = theirs(ids(), attention_mask=real.long()).logits
    torch.testing.assert_close(ours(ids(), real)[kept], expected[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "model",
    [
        *(transformer(**keys) for keys in VARIANTS.values()),
        MLPConfig(hidden=[7], dropout=0.5, normalization="layer").build(Features(5), Classes(3)),
        MLPConfig(hidden=[]).build(Features(5), Values(2)),
    ],
)
def test_save_and_load_is_exact(model, tmp_path):
    pretrained.save(model, tmp_path)
    loaded = pretrained.load(tmp_path)
    assert (loaded.config, loaded.inputs, loaded.outputs) == (model.config, model.inputs, model.outputs)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer)
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    meta = pretrained.skeleton(tmp_path)
    assert all(p.is_meta for p in meta.parameters())


def test_saved_files_are_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pretrained.save(transformer(), tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tied_weights_are_stored_once(tmp_path):
    pretrained.save(transformer(), tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    loaded = pretrained.load(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    pretrained.load(tmp_path)
    tensors["lm_head.weight"][0, 0] += 1
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LlmtoolError, match=r"lm_head\.weight differs from the embedding"):
        pretrained.load(tmp_path)


@torch.no_grad()
def test_openai_names_of_gpt2_and_half_precision(tmp_path):
    model = transformer(architecture="gpt2")
    pretrained.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        k.removeprefix("transformer."): v.bfloat16() for k, v in safetensors.torch.load_file(path).items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT)
    safetensors.torch.save_file(tensors, path)
    loaded = pretrained.load(tmp_path)
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight.bfloat16().float())


def shard(directory, files=3):
    """Divide the one file of a checkpoint into several and an index, as large ones are published."""
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    places = {key: names[i % files] for i, key in enumerate(tensors)}
    for name in names:
        safetensors.torch.save_file({k: v for k, v in tensors.items() if places[k] == name}, directory / name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return names, places


@torch.no_grad()
def test_weights_in_several_files(tmp_path):
    model = transformer()
    pretrained.save(model, tmp_path)
    shard(tmp_path)
    assert torch.equal(pretrained.load(tmp_path)(ids()), model(ids()))


def test_broken_shards_refused(tmp_path):
    pretrained.save(transformer(), tmp_path)
    names, places = shard(tmp_path)
    index, first = tmp_path / "model.safetensors.index.json", tmp_path / names[0]
    good = first.read_bytes()

    def attempt(places, message):
        index.write_text(json.dumps({"weight_map": places}))
        assert message in refused(tmp_path)

    norm = "model.norm.weight"
    attempt(places | {norm: "model-00009-of-00003.safetensors"}, "no such file, and model.safetensors.index")
    attempt(places | {norm: "../elsewhere.safetensors"}, "is not the name of a file beside it")
    attempt(places | {norm: "/etc/passwd"}, "is not the name of a file beside it")
    attempt(places | {norm: 3}, "is not the name of a file beside it")
    attempt(places | {"model.extra.weight": names[0]}, "lacks model.extra.weight, which")
    attempt([1], "weight_map: expected a mapping")
    other = {key: name for key, name in places.items() if name != names[1]}
    attempt(other, "lacks model.")
    tensors = safetensors.torch.load_file(first)
    twice = next(key for key, name in places.items() if name == names[1])
    safetensors.torch.save_file(tensors | {twice: torch.ones(32)}, first)
    attempt(places, f"{twice} is in {names[0]} too")
    first.write_bytes(good[: len(good) // 2])
    attempt(places, f"{names[0]}: not a whole safetensors file")


class Pair(nn.Module):
    """Two matrices of ours that a file holds as one."""

    def __init__(self):
        super().__init__()
        self.upper, self.lower = nn.Linear(3, 2), nn.Linear(3, 4)
        self.register_buffer("steps", torch.tensor(5))
        self.register_buffer("counted", torch.tensor(7))


class PairForm(Form):
    model_type = "pair"
    architectures = ("Pair",)
    prefix = "pair."

    def owns(self, model):
        return isinstance(model, Pair)

    def read(self, data, path):
        return Pair()

    def write(self, model):
        return {}

    def stored(self, model):
        joined = {
            f"{part}.{kind}": Stored(f"pair.both.{kind}", rows)
            for part, rows in (("lower", (2, 6)), ("upper", (0, 2)))
            for kind in ("weight", "bias")
        }
        return joined | {"steps": Stored("pair.steps")}


def test_a_form_may_join_and_rename_matrices_and_leave_tensors_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FORMS", (PairForm(),))
    monkeypatch.setattr(pretrained, "form_of", lambda model: PairForm())
    model = Pair()
    pretrained.save(model, tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "pair.both.weight": (6, 3),
        "pair.both.bias": (6,),
        "pair.steps": (),
    }
    assert torch.equal(tensors["pair.both.weight"], torch.cat([model.upper.weight, model.lower.weight]))
    for prefix in ("pair.", ""):  # a file of the body alone leaves the prefix out
        stored = {name.replace("pair.", prefix): tensor for name, tensor in tensors.items()}
        safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
        loaded = pretrained.load(tmp_path)
        assert torch.equal(loaded.lower.weight, model.lower.weight)
        assert torch.equal(loaded.upper.bias, model.upper.bias)
        assert (int(loaded.steps), int(loaded.counted), loaded.steps.dtype) == (5, 0, torch.int64)
    safetensors.torch.save_file(tensors | {"pair.both.bias": torch.ones(7)}, tmp_path / "model.safetensors")
    assert "pair.both.bias has the shape (7,)" in refused(tmp_path)


def test_the_ends_of_a_text_are_handed_on(tmp_path):
    pretrained.save(transformer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] is None
    edit_config(tmp_path, bos_token_id=1, eos_token_id=2, pad_token_id=[], torchscript=True)
    pretrained.save(pretrained.load(tmp_path), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)
    assert written["pad_token_id"] is None  # what was there is no id
    assert "torchscript" not in written
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    pretrained.save(pretrained.load(tmp_path), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [2, 7]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.generation_config.eos_token_id == [2, 7]
    for model, known in ((transformer(), {}), (pretrained.load(tmp_path), {"eos_token_id": [2, 7]})):
        pretrained.carry(model, bos_token_id=None, eos_token_id=9, pad_token_id=3)
        pretrained.save(model, tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert {key: written[key] for key in ("eos_token_id", "pad_token_id")} == {
            "eos_token_id": 9,
            "pad_token_id": 3,
        } | known


# --- refusals ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    pretrained.save(transformer(), tmp_path)
    return tmp_path


def edit_config(directory, **keys):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_weights(directory, change):
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def refused(directory, error=LlmtoolError):
    with pytest.raises(error) as caught:
        pretrained.load(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "lama"}, 'did you mean "llama"'),
        (
            {"model_type": None},
            "known: gpt2, llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, smollm3",
        ),
        ({"model_type": ["llama"]}, "known: gpt2"),
        ({"num_hidden_layers": 10**9}, "depth: Input should be less than or equal to 512"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: expected a whole number"),
        ({"num_hidden_layers": 10**400}, "a far larger number"),
        ({"hidden_size": 33}, "not a multiple of heads"),
        ({"hidden_size": "32"}, "hidden_size: expected a whole number"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"max_position_embeddings": 262_144, "head_dim": 65_536}, "rotary tables"),
        ({"rms_norm_eps": "small"}, "norm_epsilon"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"architectures": ["LlamaForTokenClassification"]}, "only LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ({"attention_bias": 1}, "attention_bias"),
        (
            {"rope_parameters": {"rope_type": "llama"}},
            "rope_type 'llama' is not known for llama; did you mean",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope_scaling.longrope.short_factor: Field required",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.linear.factor: Field required"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mrope_section": [1]}}, "mrope_section is not"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "only 1 is"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor: Input should be"),
        ({"rope_parameters": [1]}, "rope_parameters: expected a mapping"),
        ({"rope_parameters": {}, "rope_theta": "x"}, "rope_theta"),
        ({"layer_types": ["sliding_attention"]}, "full_attention"),
        ({"layer_types": 5}, "full_attention"),
        ({"tie_word_embeddings": 1}, "tie_embeddings"),
        ({"model_type": "gemma3"}, 'did you mean "gemma3_text"'),
    ],
)
def test_configuration_refused(saved, keys, message):
    edit_config(saved, **keys)
    assert message in refused(saved, ConfigError)


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("mistral", {"sliding_window": 0}, "window: Input should be greater than 0"),
        ("mistral", {"layer_types": ["full_attention"]}, "only sliding_attention is supported for mistral"),
        ("qwen2", {"layer_types": None, "max_window_layers": "2"}, "max_window_layers: expected a whole"),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for a depth of 2"),
        ("qwen2", {"layer_types": ["mamba"] * 2}, "layer_types.0: Input should be"),
        ("qwen2", {"head_dim": 12}, "qwen2's head_width is width / heads"),
        ("qwen3", {"num_hidden_layers": 10**9, "layer_types": None}, "less than or equal to 512"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention: True is not supported",
        ),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation: 'gelu' is not supported"),
        ("gemma2", {"sliding_window": None}, "which needs a window"),
        ("gemma2", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern: expected"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "expected a mapping of mappings"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
            "only the default",
        ),
        ("phi3", {"partial_rotary_factor": 0.3, "rope_parameters": {}}, "the head width 2"),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0] * 4}},
            "4 factors",
        ),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not known for phi3"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers: expected a list of 2 zeros and ones"),
    ],
)
def test_what_relatives_of_llama_refuse(tmp_path, architecture, keys, message):
    window = {"window": 5} if "window" in RELATIVES[architecture].keys else {}
    pretrained.save(transformer(architecture=architecture, **window), tmp_path)
    edit_config(tmp_path, **keys)
    if message == "the head width 2":
        pretrained.load(tmp_path)  # 8 x 0.3 turns 2 numbers, which is a pair
        edit_config(tmp_path, partial_rotary_factor=0.4)
        message = "the head width 3 must be even"
    assert message in refused(tmp_path, ConfigError)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "phi3", "mistral", "qwen2"])
def test_configurations_in_older_words(tmp_path, architecture):
    """transformers 4 said rotary positions and windows with other keys."""
    shown = {
        "gemma2": ({"sliding_window": 5}, {"window": 5, "layer_types": EVERY_OTHER}),
        "gemma3_text": (
            {"sliding_window_pattern": 2, "rope_theta": 1e5, "rope_local_base_freq": 500.0,
             "sliding_window": 5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"window": 5, "layer_types": EVERY_OTHER, "rope_theta": 1e5,
             "rope_theta_window": 500.0, "rope_scaling": LinearScaling(factor=8.0)},
        ),
        "phi3": (
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2] * 4},
             "original_max_position_embeddings": 8, "sliding_window": None},
            {"rope_scaling": LongScaling(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_context=8)},
        ),
        "mistral": ({"sliding_window": 5}, {"window": 5}),
        "qwen2": (
            {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
            {"window": 5, "layer_types": ["full_attention", "sliding_attention"]},
        ),
    }  # fmt: skip
    pretrained.save(transformer(architecture=architecture), tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "sliding_window", "rope_theta", "rope_local_base_freq"):
        data.pop(key, None)
    older, ours = shown[architecture]
    path.write_text(json.dumps(data | older))
    assert pretrained.skeleton(tmp_path).config == transformer(architecture=architecture, **ours).config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON document"),
        ("[1]", "expected a mapping"),
        ("[" * 100_000, "not a JSON document"),
        ("\xff", "not a JSON document"),
        ('{"a": "' + "x" * 10_000_001 + '"}', "at most"),
    ],
    ids=["torn", "list", "deep", "latin-1", "large"],
)
def test_broken_json_refused(saved, text, message):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    assert message in refused(saved)


def test_broken_mlp_configuration_refused(tmp_path):
    pretrained.save(MLPConfig(hidden=[3]).build(Features(5), Classes(2)), tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    for keys in (
        {"inputs": {"kind": "images"}},
        {"inputs": None},
        {"outputs": {"kind": "classes", "n": -1}},
        {"inputs": {"kind": "features", "width": 10**10}},
        {"model": {"family": "mlp", "hidden": [10**9]}},
        {"model": {"family": "mlp", "surprise": 1}},
        {"model": None},
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | keys))
        refused(tmp_path, ConfigError)
    (tmp_path / "config.json").write_text(
        json.dumps(good | {"inputs": {"kind": "features", "width": 2**31 - 1}})
    )
    assert "shape" in refused(tmp_path)  # the file's own header is asked before memory is taken


def test_broken_tensors_refused(saved):
    original = (saved / "model.safetensors").read_bytes()

    def attempt(change, message):
        edit_weights(saved, change)
        assert message in refused(saved)
        (saved / "model.safetensors").write_bytes(original)

    norm = "model.norm.weight"
    attempt(lambda t: t.pop(norm), f"lacks {norm}")
    attempt(lambda t: t.update(extra=torch.ones(1)), "has the unexpected extra")
    attempt(lambda t: t.update({norm: torch.ones(31)}), "has the shape (31,)")
    attempt(lambda t: t.update({norm: torch.ones(32, dtype=torch.float64)}), "is F64")
    attempt(lambda t: t.update({norm: torch.ones(32, dtype=torch.int8)}), "is I8")
    attempt(lambda t: t[norm].fill_(float("nan")), f"{norm} contains NaN or infinity")
    attempt(lambda t: t[norm].fill_(float("inf")), "contains NaN or infinity")
    attempt(lambda t: t.clear(), "lacks")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_torn_weights_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refused(saved)


def test_header_of_absurd_length_refused(saved):
    (saved / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    assert "not a whole safetensors file" in refused(saved)


def test_pickles_are_not_opened(saved, tmp_path_factory):
    class Trap(nn.Module):
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "a pickle can run code" in refused(saved)
    (saved / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "not a whole safetensors file" in refused(saved)


def test_missing_files_named(saved):
    (saved / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refused(saved)
    (saved / "model.safetensors.index.json").write_text("{}")
    assert "weight_map: expected a mapping" in refused(saved)
    (saved / "config.json").unlink()
    assert "config.json: no such file" in refused(saved)
