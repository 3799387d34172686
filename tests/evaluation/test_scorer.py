"""Likelihoods and written texts of a model, against a plain loop over one text at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.errors import ConfigError, MemoryLimitError
from llmtool.data.prompts import PromptTokenizer
from llmtool.data.tokenizers import BytesTokenizer
from llmtool.evaluation import scorer as module
from llmtool.evaluation.scorer import Scorer
from llmtool.models.generation import generate
from llmtool.models.transformer import TransformerConfig


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    BytesTokenizer(kind="bytes").fit(lambda: iter(())).save(tmp_path)
    torch.manual_seed(0)
    config = TransformerConfig(depth=2, heads=2, width=16, context=24, tie_embeddings=False)
    model = config.build(Tokens(257), NextToken(257))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Scorer(model, PromptTokenizer.read(tmp_path), torch.device("cpu"))


@torch.no_grad()
def alone(scorer: Scorer, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """What one text gets, token after token."""
    total, first = 0.0, True
    for at, token in enumerate(continuation):
        seen = (context + continuation[:at])[-24:]
        cut = max(0, len(context + continuation) - 25)
        seen = (context + continuation[:at])[cut:]
        logits = scorer.model.eval()(torch.tensor([seen]))[0, -1].double()
        total += float(logits.log_softmax(0)[token])
        first = first and int(logits.argmax()) == token
    return total, first


def test_likelihoods_are_those_of_each_text_alone(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    draw = lambda n: [chance.randrange(257) for _ in range(n)]  # noqa: E731
    pairs = [(draw(chance.randint(1, 40)), draw(chance.randint(0, 12))) for _ in range(40)]
    greedy = [5]
    for _ in range(4):
        greedy.append(int(scorer.model.eval()(torch.tensor([greedy]))[0, -1].argmax()))
    pairs.append((greedy[:2], greedy[2:]))
    scorer.model.train()
    monkeypatch.setitem(module.TOKENS, "cpu", 100)
    done: list[int] = []
    nats, first = scorer.likelihoods(pairs, done.append)
    assert scorer.model.training
    assert sum(done) == len(pairs)
    expected = [alone(scorer, *pair) for pair in pairs]
    assert nats == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert first.tolist() == [value for _, value in expected]
    assert first[-1]
    assert scorer.cut == sum(len(a) + len(b) > 25 for a, b in pairs) > 0


def test_what_does_not_fit_is_scored_in_parts(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [([1, 2], [at]) for at in range(9)]  # of one context
    pairs += [([at], [7, 8]) for at in range(9)]
    expected, hidden, most = scorer.likelihoods(pairs), scorer.model.hidden, 2

    def small(inputs: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if len(inputs) > most or given:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return hidden(inputs, *given, **more)

    monkeypatch.setattr(scorer.model, "hidden", small)
    nats, first = scorer.likelihoods(pairs)
    assert nats == pytest.approx(expected[0], abs=1e-5)
    assert (first == expected[1]).all()
    most = 0
    with pytest.raises(MemoryLimitError, match="one text of 2 tokens does not fit"):
        scorer.likelihoods(pairs)
    most = 9

    def broken(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(scorer.model, "hidden", broken)
    with pytest.raises(RuntimeError, match="something else"):
        scorer.likelihoods(pairs[9:])


def test_choices_after_one_context_are_scored_as_each_alone(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(1)
    draw = lambda n: [chance.randrange(257) for _ in range(n)]  # noqa: E731
    contexts = [draw(n) for n in (3, 12, 1, 20, 7, 23, 7)]
    pairs = [(ids, draw(chance.randint(1, 5))) for ids in contexts for _ in range(chance.randint(1, 5))]
    pairs += [(contexts[0], draw(1)), (contexts[0], draw(1)), (contexts[1], []), (contexts[1], draw(2))]
    greedy = int(scorer.model.eval()(torch.tensor([contexts[4]]))[0, -1].argmax())
    pairs += [(contexts[4], [greedy]), (contexts[4], [greedy - 1])]
    shared = scorer._with_one_context(pairs)
    assert [
        [pairs[at][0] for at in group] for group in shared if len({str(pairs[at][0]) for at in group}) > 1
    ] == []
    assert len(shared) >= 4
    expected = [alone(scorer, *pair) for pair in pairs]
    for size in (40, 4096):
        monkeypatch.setitem(module.TOKENS, "cpu", size)
        done: list[int] = []
        nats, first = scorer.likelihoods(pairs, done.append)
        assert nats == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert first.tolist() == [value for _, value in expected]
        assert sum(done) == len(pairs)
    assert first[-2:].tolist() == [True, False]


@torch.no_grad()
def test_choices_that_reach_beyond_the_original_context(scorer: Scorer) -> None:
    long = {"kind": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "original_context": 8}
    config = TransformerConfig(architecture="phi3", depth=2, heads=2, width=16, context=24, rope_scaling=long)
    scorer.model = config.build(Tokens(257), NextToken(257)).eval()
    pairs = [(list(range(6)), [n, n + 1, n + 2, n + 3]) for n in (50, 90)]
    for (context, answer), nats in zip(pairs, scorer.likelihoods(pairs)[0], strict=True):
        logits = scorer.model(torch.tensor([context + answer[:-1]]))[0, 5:]
        chosen = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])
        assert nats == pytest.approx(float(chosen.sum()), abs=1e-4)


def test_contexts_and_continuations_are_split_where_the_tokens_of_the_context_end(scorer: Scorer) -> None:
    ids = lambda text: list(text.encode())  # noqa: E731
    texts = [("ab", " c"), ("ab  ", "c"), ("", "abc"), (" ", "x"), ("", "")]
    assert scorer.pairs(texts) == [
        (ids("ab"), ids(" c")),
        (ids("ab"), ids("  c")),
        ([256], ids("abc")),
        ([256], ids(" x")),
        ([256], []),
    ]


def test_chat_models_answer_a_turn(scorer: Scorer) -> None:
    scorer.chat = lambda text: [1, *text.encode(), 2]
    ids = lambda text: list(text.encode())  # noqa: E731
    asked = [("q ", " yes"), ("q ", " no")]
    assert scorer.pairs(asked) == [([1, *ids("q "), 2], ids("yes")), ([1, *ids("q "), 2], ids("no"))]
    (made,) = generate(scorer.model, [[1, *ids("q"), 2]], 6)
    scorer.stops = frozenset(made[3:4])
    expected = bytes(made[: made.index(made[3])]).decode("utf-8", "replace")
    assert scorer.write(["q"], 6, []) == [expected]


def test_rolling_windows_predict_every_token_once(scorer: Scorer) -> None:
    text = "".join(chr(97 + number % 26) for number in range(60))
    windows, ids = scorer.rolling(text), list(text.encode())
    assert [token for _, scored in windows for token in scored] == ids
    assert windows[0] == ([256], ids[:24])
    assert windows[1] == ([ids[23]], ids[24:48])
    assert windows[2] == (ids[35:48], ids[48:])  # the last one is as long as the others
    assert scorer.rolling("abc") == [([256], ids[:3])]
    assert scorer.rolling("") == []


def test_writing_is_greedy_and_ends_before_a_stop(scorer: Scorer) -> None:
    (written,) = scorer.write(["abc"], 9, [])
    ids = list(b"abc")
    for _ in range(9):
        ids.append(int(scorer.model.eval()(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == 256:
            break
    assert written == bytes(i for i in ids[3:] if i < 256).decode("utf-8", "replace")
    stop = written[3:5]
    assert scorer.write(["abc"], 9, ["nowhere", stop]) == [written[: written.index(stop)]]
    assert scorer.cut == 0
    assert scorer.write(["x" * 40, "abc"], 9, []) == [*scorer.write(["x" * 15], 9, []), written]
    assert scorer.cut == 1
    with pytest.raises(ConfigError, match="leave no room for a prompt"):
        scorer.write(["a"], 24, [])
