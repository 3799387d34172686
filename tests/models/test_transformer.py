"""The transformer's configuration, and what is particular to its modules."""

import pytest
import torch
from pydantic import ValidationError

from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.layers import Rotary, document_mask, document_positions
from llmtool.models.relatives import RELATIVES
from llmtool.models.transformer import TransformerConfig

every_architecture = pytest.mark.parametrize("architecture", ["gpt2", *RELATIVES])
LLAMA3 = {"kind": "llama3", "factor": 8.0}
SHORT = {"kind": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 16}


def test_what_is_left_out_is_filled_in():
    gpt2 = TransformerConfig(architecture="gpt2", width=96, heads=3)
    assert (gpt2.key_value_heads, gpt2.head_width, gpt2.feed_forward) == (3, 32, 384)
    assert (gpt2.norm_epsilon, gpt2.rope_theta) == (1e-5, None)
    llama = TransformerConfig(width=96, heads=3)
    assert (llama.feed_forward, llama.norm_epsilon, llama.rope_theta) == (256, 1e-6, 10_000.0)
    assert TransformerConfig(width=96, heads=3, head_width=10, architecture="qwen3").head_width == 10
    gemma3 = TransformerConfig(architecture="gemma3_text", depth=7, window=9)
    assert [kind[:4] for kind in gemma3.layer_types] == ["slid"] * 5 + ["full", "slid"]
    assert (gemma3.rope_theta, gemma3.rope_theta_window, gemma3.query_scale) == (1e6, 10_000.0, 32)
    assert set(TransformerConfig(architecture="gemma3_text").layer_types) == {"full_attention"}
    assert TransformerConfig(architecture="smollm3", depth=9).unrotated == [3, 7]
    assert TransformerConfig(architecture="phi3").norm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 100, "heads": 3}, "width 100 is not a multiple of heads 3"),
        ({"heads": 4, "key_value_heads": 3}, "heads 4 is not a multiple of key_value_heads 3"),
        ({"architecture": "gpt2", "rope_theta": 1e4}, "no rope_theta"),
        ({"architecture": "gpt2", "key_value_heads": 2}, "as many key_value_heads"),
        ({"architecture": "gpt2", "head_width": 16}, "head_width is width / heads"),
        ({"width": 12, "heads": 4}, "the head width 3 must be even"),
        ({"width": 100, "heads": 3, "head_width": 16}, "not a multiple of heads"),
        ({"width": 65536, "heads": 1, "context": 262144}, "rotary tables"),
        ({"depth": 0}, "greater than 0"),
        ({"depth": 2.0}, "integer"),
        ({"dropout": 1.0}, "less than 1"),
        ({"architecture": "mamba"}, "llama"),
        ({"layers": 3}, "layers"),
        (
            {"window": 8},
            "llama has no window \\(that is for mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, smollm3\\)",
        ),
        ({"architecture": "gpt2", "window": 8}, "gpt2 has no window"),
        (
            {"architecture": "gpt2", "rope_scaling": {"kind": "linear", "factor": 2.0}},
            "no rope_theta or rope_sc",
        ),
        ({"architecture": "mistral", "window": 8, "layer_types": ["full_attention"] * 4}, "no layer_types"),
        ({"architecture": "qwen2", "layer_types": ["sliding_attention"] * 4}, "which needs a window"),
        ({"architecture": "qwen2", "layer_types": ["full_attention"]}, "1 entries for a depth of 4"),
        ({"architecture": "qwen2", "head_width": 16}, "qwen2's head_width is width / heads"),
        (
            {"architecture": "qwen3", "logit_soft_cap": 30.0},
            "no logit_soft_cap \\(that is for gemma2, gemma3_text\\)",
        ),
        ({"architecture": "phi3", "rotary_share": 0.1}, "the head width 3 must be even"),
        ({"architecture": "phi3", "rope_scaling": {"kind": "linear", "factor": 2.0}}, "is longrope"),
        (
            {"architecture": "phi3", "rope_scaling": SHORT},
            "rope_scaling.short_factor needs 16 factors above 0",
        ),
        ({"architecture": "smollm3", "unrotated": [4]}, "blocks beyond a depth of 4"),
        ({"rope_scaling": {"kind": "stretch"}}, "llama3"),
        ({"rope_scaling": LLAMA3 | {"low_frequency_factor": 4.0}}, "must be above low_frequency_factor"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        TransformerConfig(**keys)


def test_rows_longer_than_the_context_are_refused():
    with pytest.raises(ConfigError, match=r"model\.context 8 is shorter"):
        TransformerConfig(context=8).build(Tokens(9, length=9), NextToken(9))
    with pytest.raises(ConfigError, match="own vocabulary"):
        TransformerConfig().build(Tokens(9), NextToken(10))
    model = TransformerConfig(context=8, width=8, heads=2).build(Tokens(9), NextToken(9))
    with pytest.raises(AssertionError, match="context"):
        model(torch.zeros(1, 9, dtype=torch.int64))


def test_positions_and_mask_of_documents():
    segments = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [4, 4, 4, 4, 4, 4, 4]])
    assert document_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    mask = document_mask(segments)
    assert mask.shape == (2, 1, 7, 7)
    assert mask[0, 0].int().tolist()[4] == [0, 0, 1, 1, 1, 0, 0]
    assert mask[0, 0].int().tolist()[1] == [1, 1, 0, 0, 0, 0, 0]
    assert bool(mask.any(dim=-1).all())  # a row that may look nowhere would be NaN


def test_rotary_tables_are_not_stored_and_can_be_filled_later():
    rotary = Rotary(8, 10, 10_000.0)
    assert not rotary.state_dict()
    with torch.device("meta"):
        empty = Rotary(8, 10, 10_000.0)
    empty.fill(torch.device("cpu"))
    assert torch.equal(empty.cosine, rotary.cosine)
    assert torch.equal(empty.sine, rotary.sine)


@every_architecture
def test_tying_survives_moves_and_untying_keeps_the_output(architecture):
    model = TransformerConfig(architecture=architecture, depth=1, width=8, heads=2).build(
        Tokens(9), NextToken(9)
    )
    model.to(torch.float64).to("cpu", torch.float32)
    assert model.lm_head.weight is model.embeddings[0].weight
    inputs = torch.arange(8).unsqueeze(0)
    before = model(inputs)
    model.untie()
    assert model.lm_head.weight is not model.embeddings[0].weight
    assert not model.config.tie_embeddings
    assert torch.equal(model(inputs), before)


@every_architecture
def test_dropout_acts_in_training_only(architecture):
    config = TransformerConfig(architecture=architecture, depth=1, width=8, heads=2, dropout=0.5)
    model = config.build(Tokens(9), NextToken(9))
    inputs = torch.arange(8).unsqueeze(0)
    torch.manual_seed(0)
    first = model(inputs)
    assert not torch.equal(model(inputs), first)
    torch.manual_seed(0)
    assert torch.equal(model(inputs), first)
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@every_architecture
def test_a_new_model_knows_nothing(architecture):
    """The first loss is near that of guessing, ln(vocabulary); a bad initialisation shows here."""
    torch.manual_seed(0)
    model = TransformerConfig(architecture=architecture, depth=6).build(Tokens(100), NextToken(100))
    inputs = torch.randint(100, (8, 65))
    loss = torch.nn.functional.cross_entropy(model(inputs[:, :-1]).flatten(0, 1), inputs[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(4.605, abs=0.35)
