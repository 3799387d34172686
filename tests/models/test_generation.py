"""Generation: as transformers' token for token, the same alone and beside others, sampled as asked."""

from pathlib import Path

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.models.generation import Sampling, allowed, generate
from llmtool.models.transformer import TransformerConfig
from tests.models.parity.decoders import DECODERS, VOCABULARY
from tests.models.parity.pair import pair

WARM = Sampling(temperature=0.8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TransformerConfig(depth=2, heads=2, width=16, context=12, dropout=0.5, tie_embeddings=False)
    made = config.build(Tokens(11), NextToken(11))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def by_hand(model, ids, tokens):
    """Greedy, one prompt, nothing kept between tokens."""
    model.eval()
    ids, start = list(ids), max(0, len(ids) - model.context)
    first = len(ids)
    for _ in range(tokens):
        if len(ids) - start > model.context:
            start = len(ids) - model.context // 2
        ids.append(int(model(torch.tensor([ids[start:]]))[0, -1].argmax()))
    return ids[first:]


PROMPTS = [[1, 2], [4], [5, 6, 7, 8, 9, 10, 1, 2, 3], [*range(11), 3, 1, 4, 1, 5], [9, 9, 9]]


@torch.no_grad()
def test_greedy_is_the_likeliest_token_each_time_far_beyond_the_context(model):
    expected = [by_hand(model, ids, 40) for ids in PROMPTS]
    assert generate(model, PROMPTS, 40) == expected
    assert [generate(model, [ids], 40)[0] for ids in PROMPTS] == expected
    assert generate(model, PROMPTS, 40, Sampling(1.0, top_k=1)) == expected
    assert generate(model, PROMPTS, 40, Sampling(1e-30)) == expected
    assert generate(model, PROMPTS, 0) == [[]] * 5
    assert generate(model, [], 3) == []
    with pytest.raises(AssertionError):
        generate(model, [[1], []], 3)


def test_a_text_is_the_same_alone_and_beside_others(model):
    together = generate(model, PROMPTS, 50, WARM, seeds=[7, 8, 9, 10, 11])
    assert [
        generate(model, [p], 50, WARM, [s])[0] for p, s in zip(PROMPTS, range(7, 12), strict=True)
    ] == together
    backwards = generate(model, PROMPTS[::-1], 50, WARM, seeds=[11, 10, 9, 8, 7])
    assert backwards[::-1] == together
    assert generate(model, [[1, 2]], 50, WARM, [12])[0] != together[0]


def test_everything_else_is_left_alone(model):
    model.train()
    state = torch.get_rng_state()
    generate(model, PROMPTS, 5, WARM)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_texts_end_at_stop_tokens_or_when_told(model):
    free = generate(model, PROMPTS, 30, WARM)
    stop = {free[0][4], free[2][6]}
    cut = [next((n for n, token in enumerate(ids, 1) if token in stop), 30) for ids in free]
    assert generate(model, PROMPTS, 30, WARM, stop=stop) == [
        ids[:n] for ids, n in zip(free, cut, strict=True)
    ]
    told = [[] for _ in PROMPTS]

    def seen(row, token):
        told[row].append(token)
        return len(told[row]) == row + 1

    found = generate(model, PROMPTS, 30, WARM, seen=seen)
    assert found == told == [ids[: row + 1] for row, ids in enumerate(free)]


@torch.no_grad()
def test_tokens_are_drawn_with_their_probability(model):
    model.eval()
    shares = model(torch.tensor([[4]]))[0, -1].div(1.5).softmax(0)
    drawn = generate(model, [[4]] * 4000, 1, Sampling(1.5), seeds=range(4000))
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=11) / 4000
    assert float((counts - shares).abs().max()) < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize(
    "keys",
    [{"top_k": 3}, {"top_k": 99}, {"top_p": 0.7}, {"top_p": 1e-6}, {"min_p": 0.2}, {"min_p": 1.0},
     {"top_k": 6, "top_p": 0.8, "min_p": 0.05}],
)  # fmt: skip
def test_what_may_be_drawn_is_what_transformers_allows(keys):
    transformers = pytest.importorskip("transformers")
    logits = 3 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    warpers = [transformers.TemperatureLogitsWarper(1.7)]
    names = {"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper", "min_p": "MinPLogitsWarper"}
    warpers += [getattr(transformers, names[key])(value) for key, value in keys.items()]
    expected = transformers.LogitsProcessorList(warpers)(None, logits).softmax(dim=-1)
    found = allowed(logits, Sampling(1.7, **keys))
    torch.testing.assert_close((found / found.sum(-1, keepdim=True)).float(), expected)


def test_a_broken_model_is_told_of(model):
    broken = TransformerConfig(depth=1, heads=2, width=16, context=6).build(Tokens(11), NextToken(11))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError):
        generate(broken, [[1]], 3)


SOME = ("gpt2", "llama", "llama, llama3", "mistral, window", "qwen2", "qwen3", "gemma2", "gemma3_text",
        "phi3", "olmo2", "smollm3")  # fmt: skip


@pytest.mark.parametrize("family", [f for f in DECODERS if f.name in SOME], ids=lambda family: family.name)
@torch.no_grad()
def test_greedy_as_transformers(family, tmp_path: Path):
    pytest.importorskip("transformers")
    models = pair(family, tmp_path)
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in (9, 4, 1, 12)]
    longest = max(map(len, prompts))
    inputs = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    free = models.theirs.generate(
        inputs, attention_mask=mask, max_new_tokens=18, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, longest:].tolist()
    assert generate(models.ours, prompts, 18) == free
    end = free[1][7]  # some token, where each text ends that comes to it
    theirs = models.theirs.generate(
        inputs, attention_mask=mask, max_new_tokens=18, do_sample=False, eos_token_id=[end], pad_token_id=0
    )[:, longest:].tolist()
    ours = generate(models.ours, prompts, 18, stop={end})
    assert [ids + [0] * (len(theirs[0]) - len(ids)) for ids in ours] == theirs


@torch.no_grad()
def test_texts_that_grow_beyond_the_original_context(tmp_path: Path):
    pytest.importorskip("transformers")
    (family,) = (family for family in DECODERS if family.name == "phi3, longrope, long")
    models = pair(family, tmp_path)
    context, original = models.ours.context, models.ours.turns_anew
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in (3, 9, original, 1, 12)]
    expected = [
        models.theirs.generate(
            torch.tensor([ids]), max_new_tokens=18, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        for ids in prompts
    ]
    assert max(map(len, prompts)) + 18 <= context
    assert [generate(models.ours, [ids], 18)[0] for ids in prompts] == expected
    assert generate(models.ours, prompts, 18) == expected
    hand = [by_hand(models.ours, ids, context + 9) for ids in prompts]
    assert generate(models.ours, prompts, context + 9) == hand
