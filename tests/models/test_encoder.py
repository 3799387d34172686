"""Encoders and their files: padding, heads that are missing, names of classes, what is refused."""

import json

import pytest
import safetensors.torch
import torch

from llmtool.core.contracts import Classes, Tokens, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import pretrained
from llmtool.models.encoder import Encoder, EncoderConfig

transformers = pytest.importorskip("transformers")

V, N, T = 31, 3, 20
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "bert": transformers.BertConfig(**BERT, vocab_size=V, num_labels=N, max_position_embeddings=40),
    "roberta": transformers.RobertaConfig(
        **BERT, vocab_size=V, num_labels=N, max_position_embeddings=42, type_vocab_size=1,
        layer_norm_eps=1e-5, hidden_act="gelu_new",
    ),
    "distilbert": transformers.DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=V, num_labels=N,
        max_position_embeddings=40, activation="relu",
    ),
    "modernbert": transformers.ModernBertConfig(
        **BERT | {"num_hidden_layers": 5}, vocab_size=V, num_labels=N, max_position_embeddings=40,
        local_attention=8, pad_token_id=0, bos_token_id=2, eos_token_id=1, cls_token_id=2, sep_token_id=1,
        classifier_pooling="mean",
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", CONFIGS)


def theirs(name, classes=transformers.AutoModelForSequenceClassification, seed=0):
    """A model of transformers with weights that are not small, in eval mode."""
    torch.manual_seed(seed)
    model = classes.from_config(CONFIGS[name], attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Name -> a model of transformers, and the same read by us from its files."""
    found = {}
    for name in CONFIGS:
        model, directory = theirs(name), tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        found[name] = model, pretrained.load(directory).eval()
    return found


def ids(seed=1):
    return torch.randint(3, V, (3, T), generator=torch.Generator().manual_seed(seed))


def padded(name, side):
    """ids with padding, and its segments."""
    inputs, segments = ids(), torch.ones(3, T, dtype=torch.int32)
    for row, count in enumerate((0, 5, 9)):
        place = slice(T - count, T) if side == "right" else slice(0, count)
        segments[row, place] = 0
        inputs[row, place] = 1 if name == "roberta" else 0
    return inputs, segments


@each
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_texts_logits(name, side, pairs):
    _, ours = pairs[name]
    inputs, segments = padded(name, side)
    alone = torch.cat([ours(inputs[row : row + 1, segments[row] == 1]) for row in range(3)])
    torch.testing.assert_close(ours(inputs, segments), alone, atol=1e-5, rtol=0)


@each
@pytest.mark.parametrize("kind", ["body", "masked words"])
@torch.no_grad()
def test_checkpoints_without_such_a_head_give_the_body(name, kind, tmp_path):
    classes = transformers.AutoModel if kind == "body" else transformers.AutoModelForMaskedLM
    model = theirs(name, classes)
    model.save_pretrained(tmp_path)
    ours = pretrained.load(tmp_path).eval()
    assert ours.outputs is None
    torch.testing.assert_close(ours.hidden(ids()), model.base_model(ids())[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_names_of_the_first_bert_files(tmp_path):
    model = theirs("bert", transformers.AutoModelForMaskedLM)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    old = {}
    for key, tensor in safetensors.torch.load_file(path).items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[key] = tensor
    old["bert.embeddings.position_ids"] = torch.arange(40).unsqueeze(0)
    safetensors.torch.save_file(old, path)
    ours = pretrained.load(tmp_path).eval()
    torch.testing.assert_close(ours.hidden(ids()), model.base_model(ids())[0], atol=1e-5, rtol=0)


@each
def test_from_the_start_each_form_is_read_by_transformers(name, tmp_path):
    """The defaults of a new model go through transformers' own defaults unchanged; so do means and values."""
    config = EncoderConfig(architecture=name, depth=2, heads=2, width=16, context=T)
    ours = config.build(Tokens(V), Values(2)).eval()
    pretrained.save(ours, tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.problem_type == "regression"
    assert again.num_labels == 2
    torch.testing.assert_close(again(ids()).logits, ours(ids()), atol=1e-5, rtol=0)
    back = pretrained.load(tmp_path)
    assert isinstance(back, Encoder)
    assert (back.config, back.outputs) == (config, Values(2))


@torch.no_grad()
def test_a_head_on_a_mean_that_bert_has_not_does_not_pass_for_one(tmp_path):
    config = EncoderConfig(depth=1, heads=2, width=16, context=T, pooling="mean")
    ours = config.build(Tokens(V), Classes(N)).eval()
    pretrained.save(ours, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]
    body = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    torch.testing.assert_close(body(ids())[0], ours.hidden(ids()), atol=1e-5, rtol=0)
    again = pretrained.load(tmp_path).eval()
    assert torch.equal(again(ids()), ours(ids()))
    assert again.config.pooling == "mean"


def test_the_names_of_classes_are_written_and_read(tmp_path):
    ours = EncoderConfig(depth=1, heads=2, width=16, context=T).build(Tokens(V), Classes(2))
    ours.labels = ["no", "yes"]
    pretrained.save(ours, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "no", 1: "yes"}
    assert pretrained.load(tmp_path).labels == ["no", "yes"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key' is not supp"),
        ({"hidden_act": "silu"}, "hidden_act: 'silu' is not supported"),
        ({"is_decoder": True}, "is_decoder: True is not supported"),
        ({"problem_type": "several_of_them"}, "problem_type: 'several_of_them' is not supported"),
        ({"num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"architectures": ["BertForTokenClassification"]}, "only BertForSequenceClassification"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(keys, message, pairs, tmp_path):
    pretrained.save(pairs["bert"][1], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(ConfigError) as caught:
        pretrained.load(tmp_path)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 5}, "layer_types"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "only the default rotary"),
        ({"mlp_bias": True}, "mlp_bias: True is not supported"),
    ],
)
def test_other_kinds_of_modernbert_are_refused(keys, message, pairs, tmp_path):
    pretrained.save(pairs["modernbert"][1], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(ConfigError) as caught:
        pretrained.load(tmp_path)
    assert message in str(caught.value)


def test_a_torn_file_is_an_error_that_names_it(pairs, tmp_path):
    pretrained.save(pairs["bert"][1], tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LlmtoolError, match=r"model\.safetensors: not a whole safetensors file"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 30, "heads": 4}, "multiple of heads"),
        ({"rope_theta": 10_000.0}, "rope_theta is for architecture: modernbert"),
        ({"architecture": "distilbert", "token_types": 2}, "no token_types"),
        ({"architecture": "modernbert", "width": 12, "heads": 4}, "must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**keys)


def test_texts_longer_than_the_context_are_refused():
    with pytest.raises(ConfigError, match="context 16 is shorter than the data's texts of up to 64 tokens"):
        EncoderConfig(context=16).build(Tokens(V, 64), Classes(2))
