"""Keys and values that are kept: the same logits as without, for prompts of different lengths at once."""

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.cache import Cache, look
from llmtool.models.transformer import TransformerConfig

VOCABULARY = 23
SIZES = {"depth": 2, "heads": 4, "width": 16, "context": 16}
LONG = {"kind": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0], "original_context": 5}
VARIANTS = {
    "gpt2": {"architecture": "gpt2"},
    "llama": {"architecture": "llama", "key_value_heads": 2},
    "qwen3": {"architecture": "qwen3", "key_value_heads": 1, "head_width": 6},
    "mistral": {"architecture": "mistral", "window": 4},
    "gemma3": {"architecture": "gemma3_text", "window": 4, "depth": 6},
    "gemma2": {"architecture": "gemma2", "window": 4, "attention_soft_cap": 2.0, "key_value_heads": 2},
    "phi3": {"architecture": "phi3", "rotary_share": 0.5},
}
every_variant = pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)


def build(keys):
    torch.manual_seed(0)
    model = TransformerConfig(**SIZES | keys).build(Tokens(VOCABULARY), NextToken(VOCABULARY)).eval()
    with torch.no_grad():  # far enough from the start that positions and neighbours matter
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ids(rows, length):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(3))


@every_variant
@torch.no_grad()
def test_one_token_at_a_time_is_as_all_at_once(keys):
    model, inputs = build(keys), ids(3, 16)
    cache = Cache(rows=3, capacity=16)
    parts = [model(inputs[:, :7], cache=cache)]
    parts += [model(inputs[:, i : i + 1], cache=cache) for i in range(7, 10)]
    parts += [model(inputs[:, 10:14], cache=cache)]  # several at once, as when a guess is checked
    parts += [model(inputs[:, i : i + 1], cache=cache) for i in range(14, 16)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, dim=1), model(inputs), atol=1e-5, rtol=0)


@every_variant
@torch.no_grad()
def test_prompts_filled_up_on_the_left_are_as_each_alone(keys):
    model, inputs = build(keys), ids(3, 14)
    lengths, prompt = (9, 4, 1), 9
    segments = torch.tensor([[0] * (prompt - n) + [1] * n for n in lengths])
    cache = Cache(rows=3, capacity=14)
    parts = [model(inputs[:, :prompt], segments, cache)]
    parts += [model(inputs[:, i : i + 1], cache=cache) for i in range(prompt, 12)]
    parts += [model(inputs[:, 12:14], cache=cache)]
    together = torch.cat(parts, dim=1)
    assert bool(torch.isfinite(together).all())
    for row, length in enumerate(lengths):
        alone = model(inputs[row : row + 1, prompt - length :])[0]
        torch.testing.assert_close(together[row, prompt - length :], alone, atol=1e-5, rtol=0)


@every_variant
@torch.no_grad()
def test_rows_may_be_left_out_and_repeated(keys):
    model, inputs = build(keys), ids(3, 10)
    cache = Cache(rows=3, capacity=10)
    model(inputs[:, :6], torch.tensor([[0] * i + [1] * (6 - i) for i in (0, 2, 4)]), cache)
    cache.select(torch.tensor([2, 0, 2, 2]))
    after = model(inputs[[2, 0, 0, 2], 6:7], cache=cache)
    expected = model(torch.cat([inputs[2:3, 4:6], inputs[2:3, 6:7]], dim=1))[:, -1]
    torch.testing.assert_close(after[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(after[3], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(after[1], model(inputs[:1, :7])[:, -1], atol=1e-5, rtol=0)
    assert not torch.allclose(after[2], after[0])


@torch.no_grad()
def test_memory_is_taken_once_and_in_the_precision_of_the_model():
    model = build({"key_value_heads": 2})
    cache = Cache(rows=1, capacity=12)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids(1, 4), cache=cache)
        first = [key.data_ptr() for key in cache.keys]
        model(ids(1, 1), cache=cache)
    assert [key.data_ptr() for key in cache.keys] == first
    assert all(t.shape == (1, 2, 12, 4) and t.dtype == torch.bfloat16 for t in cache.values)
    with pytest.raises(AssertionError, match="13 tokens in a cache for 12"):
        model(ids(1, 8), cache=cache)
    with pytest.raises(AssertionError, match="more tokens than the context"):
        model(ids(1, 12), cache=cache)


def test_no_mask_is_made_where_none_is_needed():
    inputs = ids(2, 8)
    assert look(inputs, None, None).visible is None
    cache = Cache(rows=2, capacity=12)
    assert look(inputs, None, cache).visible is None
    cache.length = 8
    assert look(inputs[:, :1], None, cache).visible is None
    assert look(inputs[:, :1], None, cache).window(9) is None
    assert look(inputs[:, :1], None, cache).window(3).int().tolist() == [[[[0, 0, 0, 0, 0, 0, 1, 1, 1]]]]
    assert look(inputs[:, :2], None, cache).visible.int().sum(dim=-1).tolist() == [[[9, 10]]]


@torch.no_grad()
def test_angles_that_change_with_the_length_are_not_mixed():
    model, inputs = build({"architecture": "phi3", "rope_scaling": LONG}), ids(1, 10)
    cache = Cache(rows=1, capacity=10)
    parts = [model(inputs[:, :6], cache=cache)] + [
        model(inputs[:, i : i + 1], cache=cache) for i in range(6, 10)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(inputs), atol=1e-5, rtol=0)
    cache = Cache(rows=1, capacity=10)
    model(inputs[:, :5], cache=cache)
    with pytest.raises(ConfigError, match="another way beyond 5 tokens"):
        model(inputs[:, 5:6], cache=cache)


@torch.no_grad()
def test_rows_of_different_lengths_are_each_turned_their_own_way():
    model, inputs = build({"architecture": "phi3", "rope_scaling": LONG}), ids(1, 9)
    prompts = torch.cat([inputs[:, :7], torch.cat([torch.zeros_like(inputs[:, :3]), inputs[:, :4]], dim=1)])
    segments = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    cache = Cache(rows=2, capacity=9)
    first = model(prompts, segments, cache)[:, -1]
    then = model(torch.stack([inputs[0, 7:8], inputs[0, 4:5]]), cache=cache)[:, -1]
    alone = [model(inputs[:, :n])[0, -1] for n in (7, 4, 8, 5)]
    torch.testing.assert_close(torch.cat([first, then]), torch.stack(alone), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="another way beyond 5 tokens"):  # the second row, not the first
        model(torch.stack([inputs[0, 8:9], inputs[0, 5:6]]), cache=cache)
