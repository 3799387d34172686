"""n-grams: a normalised probability, the same as a slow reference, blind to other documents."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmtool.evaluation.ngrams import NGrams, Stream, best_order

VOCABULARY = 5


def text(tokens: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    found = [0]
    for _ in range(tokens - 1):  # the next token depends on the last one
        found.append(int(random.choice(VOCABULARY, p=np.roll([0.7, 0.2, 0.1, 0.0, 0.0], found[-1]))))
    return np.array(found), np.array([90, 91, tokens])


def probability(model: NGrams, context: list[int], token: int, order: int) -> float:
    stream = Stream.of(np.array([*context, token]), np.array([len(context) + 1]))
    return float(np.exp(-model.score(stream, [order])[order][0][-1]))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_add_up_to_one(order: int) -> None:
    model = NGrams(Stream.of(*text()), VOCABULARY, 5)
    random = np.random.default_rng(1)
    for length in (0, 1, 4, 7):
        for _ in range(5):
            context = random.integers(VOCABULARY, size=length).tolist()
            total = sum(probability(model, context, token, order) for token in range(VOCABULARY))
            assert total == pytest.approx(1.0, abs=1e-12)


def slow(tokens: np.ndarray, ends: np.ndarray, context: list[int], token: int, order: int) -> float:
    """Kneser-Ney written out, with the discounts of `_discounts` for few counts and for many."""
    documents = np.split(tokens, ends[:-1])
    grams = {n: Counter(tuple(d[i : i + n].tolist()) for d in documents for i in range(len(d) - n + 1))
             for n in range(1, order + 1)}  # fmt: skip

    def counts(n: int) -> Counter[tuple[int, ...]]:
        return grams[n] if n == order else Counter(gram[1:] for gram in grams[n + 1])

    def discount(found: Counter[tuple[int, ...]], count: int) -> float:
        of = [sum(value == k for value in found.values()) for k in (1, 2, 3, 4)]
        if not all(of) or not count:
            return 0.75 if count else 0.0
        y = of[0] / (of[0] + 2 * of[1])
        k = min(count, 3)
        return float(np.clip(k - (k + 1) * y * of[k] / of[k - 1], 0.05, k - 0.05))

    def share(n: int, context: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / VOCABULARY
        found = counts(n)
        h = context[len(context) - n + 1 :]
        after = {gram: value for gram, value in found.items() if gram[:-1] == h}
        if not after or len(context) < n - 1:
            return share(n - 1, context)
        count = found[(*h, token)]
        taken = sum(discount(found, value) for value in after.values())
        return (count - discount(found, count) + taken * share(n - 1, context)) / sum(after.values())

    return share(order, tuple(context))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_is_kneser_ney(order: int) -> None:
    tokens, ends = text()
    model = NGrams(Stream.of(tokens, ends), VOCABULARY, order)
    random = np.random.default_rng(2)
    for _ in range(20):
        context = random.integers(VOCABULARY, size=4).tolist()
        token = int(random.integers(VOCABULARY))
        expected = slow(tokens, ends, context, token, order)
        assert probability(model, context, token, order) == pytest.approx(expected, rel=1e-9)


def test_contexts_end_with_their_document() -> None:
    tokens = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0, 1])
    model = NGrams(Stream.of(tokens, np.array([9, 12])), VOCABULARY, 3)
    apart = model.score(Stream.of(np.array([0, 1, 2]), np.array([2, 3])), [3])[3][0]
    together = model.score(Stream.of(np.array([0, 1, 2]), np.array([3])), [3])[3][0]
    assert apart[:2].tolist() == together[:2].tolist()
    assert together[2] < apart[2]


def test_what_is_foreseen_followed_most_often() -> None:
    tokens = np.array([0, 1, 2, 0, 1, 2, 0, 1, 3])
    model = NGrams(Stream.of(tokens, np.array([9])), VOCABULARY, 3)
    _, guess = model.score(Stream.of(np.array([0, 1, 2]), np.array([3])), [3])[3]
    assert guess[1:].tolist() == [1, 2]
    _, guess = model.score(Stream.of(np.array([0, 1, 3]), np.array([3])), [3])[3]
    assert guess[1:].tolist() == [1, 2]


def test_the_order_is_chosen_on_training_text_alone_and_tiny_texts_work() -> None:
    stream = Stream.of(*text(5000))
    assert best_order(stream, VOCABULARY) in (2, 3)  # the text has a memory of one token
    for tokens in ([1], [1, 1], [0, 1, 2]):
        tiny = Stream.of(np.array(tokens), np.array([len(tokens)]))
        model = NGrams(tiny, VOCABULARY, best_order(tiny, VOCABULARY))
        nats, _ = model.score(tiny, [model.highest])[model.highest]
        assert np.isfinite(nats).all()
