"""Decoders that give classes or values of texts: what they read, whose files they are, what is refused."""

import json

import pytest
import torch

from llmtool.core.contracts import Classes, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models import adapters, gguf, peft_files, pretrained
from llmtool.models.adapters import METHODS
from llmtool.models.causal import relate
from llmtool.models.transformer import TransformerConfig
from tests.models.small import ids, stir, trained, transformer

ALL = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"]


def classifier(architecture="qwen3", outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    config = TransformerConfig(architecture=architecture, depth=2, heads=4, width=32, context=16, **keys)
    return config.build(Tokens(61), outputs).eval()


def padded(lengths=(16, 9, 1)):
    """Rows that end early, and their segments."""
    real = torch.arange(16) < torch.tensor(lengths).unsqueeze(1)
    return ids() * real, real.to(torch.int32)


@pytest.mark.parametrize("architecture", ALL)
def test_transformers_reads_ours_and_gives_the_same(architecture, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = stir(classifier(architecture))
    model.labels = ["bad", "fair", "good"]
    pretrained.carry(model, pad_token_id=0)
    pretrained.save(model, tmp_path)
    theirs, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert theirs.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    inputs, segments = padded()
    inputs = torch.where(segments > 0, inputs.clamp(min=1), 0)  # they know padding by its id
    wanted = theirs.eval()(inputs, attention_mask=segments.long()).logits
    torch.testing.assert_close(model(inputs, segments), wanted, atol=2e-5, rtol=0)
    again = pretrained.load(tmp_path).eval()
    assert (again.outputs, again.labels) == (Classes(3), model.labels)
    assert torch.equal(again(inputs, segments), model(inputs, segments))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_and_what_comes_after_changes_nothing(pooling):
    model = classifier(pooling=pooling)
    inputs, segments = padded()
    found = model(inputs, segments)
    for row, length in enumerate((16, 9, 1)):
        torch.testing.assert_close(found[row], model(inputs[row : row + 1, :length])[0], atol=1e-6, rtol=0)


def test_a_mean_is_said_in_the_file(tmp_path):
    model = classifier(outputs=Values(2), pooling="mean")
    pretrained.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3Model"]  # no class of theirs reads the mean
    again = pretrained.load(tmp_path).eval()
    assert (again.config.pooling, again.outputs) == ("mean", Values(2))
    assert torch.equal(again(ids()), model(ids()))


def test_a_language_model_gets_a_head_for_classes():
    model = transformer("llama")
    body = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    adapters.replace_head(model, Classes(4), seed=1)
    assert model(ids()).shape == (3, 4)
    assert "lm_head.weight" not in model.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in model.model.state_dict().items())
    METHODS.validate_python({"kind": "head"}).apply(model)
    assert trained(model) == {"score.weight"}
    adapters.pool_by(model, "mean")
    assert model.config.pooling == "mean"
    for pooling, words in (("cls", "choices: last, mean"), ("x", "choices: last, mean")):
        with pytest.raises(ConfigError, match=words):
            adapters.pool_by(model, pooling)
    with pytest.raises(ConfigError, match="no such choice"):
        adapters.pool_by(transformer("llama"), "mean")
    with pytest.raises(ConfigError, match="gives classes or values, not the next token"):
        adapters.replace_head(model, NextToken(61), seed=1)
    with pytest.raises(ConfigError, match="and writes none"):
        gguf.layout_of(model)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_its_new_head_travels_with_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformer("qwen3")
    base = tmp_path / "base"
    base.mkdir()
    pretrained.save(model, base)
    adapters.replace_head(model, Classes(3), seed=1)
    method = METHODS.validate_python({"kind": "lora", "rank": 2})
    method.apply(model)
    assert "score.weight" in trained(model)
    stir(model)
    (tmp_path / "adapter").mkdir()
    peft_files.save_adapter(model, tmp_path / "adapter", method, base=str(base))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(
        theirs(ids().clamp(min=1)).logits, model(ids().clamp(min=1)), atol=2e-5, rtol=0
    )
    again = pretrained.load(base)
    adapters.replace_head(again, Classes(3), seed=9)
    peft_files.load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again.eval()(ids()), model(ids()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_share_parts_begin_with_vectors_that_are_alike(tied):
    torch.manual_seed(0)
    config = TransformerConfig(depth=1, heads=4, width=512, context=8, tie_embeddings=tied)
    model = config.build(Tokens(5), NextToken(5))
    before = [model.embeddings[0].weight.detach().clone(), model.lm_head.weight.detach().clone()]
    relate(
        model,
        [(), ("from a1", "to b2"), ("from a1", "to c3"), ("from d4", "to c3"), ("from d4", "to e5", "q")],
    )
    after = [model.embeddings[0].weight, model.lm_head.weight]
    assert (after[0] is after[1]) == tied
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now[0], was[0])
        likeness = torch.nn.functional.cosine_similarity(now.unsqueeze(0), now.unsqueeze(1), dim=2)
        wanted = torch.eye(5)
        for one, other, both in ((1, 2, 0.42), (2, 3, 0.42), (3, 4, 0.84 / 6**0.5)):
            wanted[one, other] = wanted[other, one] = both
        torch.testing.assert_close(likeness, wanted, rtol=0, atol=0.15)
        torch.testing.assert_close(now.norm(dim=1), was.norm(dim=1), rtol=0.15, atol=0)
