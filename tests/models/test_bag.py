"""The bag of n-grams: which n-grams there are, what they are counted for, what is refused."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from llmtool.core.contracts import Batch, Classes, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models.adapters import replace_head
from llmtool.models.bag import BagConfig
from llmtool.tasks.classification import ClassificationConfig

VOCABULARY = 50


def model(outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    return BagConfig(**{"ngrams": 3, "buckets": 2**20, **keys}).build(Tokens(VOCABULARY), outputs)


def rows_of(bag, ids, segments=None):
    rows, there = bag.bag(torch.tensor([ids]), None if segments is None else torch.tensor([segments]))
    return rows[there].tolist()


def test_every_run_is_one_row_and_stands_once():
    bag = model()
    ids = [1, 2, 3, 1, 2, 3]
    runs = {tuple(ids[at : at + n]) for n in (1, 2, 3) for at in range(len(ids) - n + 1)}
    rows = rows_of(bag, ids)
    assert len(rows) == len(set(rows)) == len(runs)
    assert [row for row in rows if row < VOCABULARY] == [1, 2, 3]
    assert rows_of(bag, [1, 2]) != rows_of(bag, [2, 1])


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_padding_and_other_segments_form_no_run(length):
    bag = model()
    ids = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    alone = rows_of(bag, ids)
    assert sorted(rows_of(bag, [*ids, 0, 0], [1] * length + [0, 0])) == sorted(alone)
    assert sorted(rows_of(bag, [7, *ids], [0] + [1] * length)) == sorted(alone)
    both = rows_of(bag, [*ids, 9, 8], [1] * length + [2, 2])
    assert sorted(both) == sorted({*alone, *rows_of(bag, [9, 8])})


def test_a_text_gives_the_same_whatever_stands_beside_it():
    bag = model()
    torch.nn.init.normal_(bag.head.weight)
    ids = torch.tensor([[4, 5, 6, 0, 0], [1, 2, 3, 4, 5]])
    segments = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.int32)
    torch.testing.assert_close(bag(ids, segments)[:1], bag(ids[:1, :3]))
    assert len(set(rows_of(bag, [4, 5, 6]))) == 6
    chosen = bag.head.weight[rows_of(bag, [4, 5, 6])]
    torch.testing.assert_close(bag(ids[:1, :3])[0], chosen.sum(dim=0) / 6**0.5)


def test_counts_are_those_of_naive_bayes():
    bag = model(ngrams=1)
    ids = torch.tensor([[1, 2, 2, 0], [2, 3, 0, 0], [3, 4, 5, 0], [1, 1, 1, 1]])
    segments = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    targets = torch.tensor([0, 1, 2, 0])
    assert bag.wants_counts
    halves = [Batch(ids[part], targets[part], segments[part]) for part in (slice(0, 1), slice(1, 4))]
    bag.count(halves)
    assert not bag.wants_counts
    held = np.zeros((4, VOCABULARY))
    for row, words in enumerate(([1, 2], [2, 3], [3, 4, 5], [1])):
        held[row, words] = 1
    seen = held.sum(axis=0) > 0
    for number in range(3):
        inside = held[targets.numpy() == number].sum(axis=0)[seen] + 1
        outside = held[targets.numpy() != number].sum(axis=0)[seen] + 1
        ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
        np.testing.assert_allclose(bag.head.ratio[seen, number], ratio, rtol=1e-6)
    assert not bag.head.ratio[~seen].any()


def test_what_no_training_text_holds_says_nothing():
    bag = model()
    bag.count([Batch(torch.tensor([[1, 2, 3]]), torch.tensor([1]))])
    assert torch.equal(bag(torch.tensor([[40, 41, 42]])), torch.zeros(1, 3))


def test_texts_are_learned_by_heart():
    bag = model()
    task = ClassificationConfig().build({"targets": {"kind": "classes", "names": ["a", "b", "c"]}})
    ids = torch.randint(VOCABULARY, (12, 9), generator=torch.Generator().manual_seed(3))
    batch = Batch(ids, torch.arange(12) % 3)
    bag.count([batch])
    optimizer = torch.optim.AdamW(bag.parameters(), lr=0.1)
    for _ in range(30):
        loss = task.loss(bag, batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    assert task.measure(bag, batch).metrics()["accuracy"] == 1.0


def test_only_weights_for_classes_are_counted_for():
    assert model().wants_counts
    assert not model(weights="plain").wants_counts
    assert not model(width=4).wants_counts
    assert not model(Values(2)).wants_counts


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValidationError, match="a width makes vectors"):
        BagConfig(weights="naive_bayes", width=8)
    with pytest.raises(ConfigError, match="this target is numbers"):
        model(Values(1), weights="naive_bayes")
    with pytest.raises(
        ConfigError, match=r"model: .* outputs are more than .* model\.buckets, or a model\.width"
    ):
        model(Classes(5000), buckets=2**26)
    with pytest.raises(ConfigError, match=r"a smaller model\.buckets makes"):
        model(width=4096, buckets=2**22)


@pytest.mark.parametrize("width", [None, 4])
def test_a_new_head_starts_anew(width):
    bag = model(width=width)
    if width is None:
        bag.count([Batch(torch.tensor([[1, 2, 3]]), torch.tensor([1]))])
    replace_head(bag, Classes(5), seed=0)
    assert bag(torch.tensor([[1, 2, 3]])).shape == (1, 5)
    assert bag.wants_counts == (width is None)


def test_no_run_crosses_chunks_and_what_stands_in_two_counts_once():
    ids, segments = torch.tensor([[[5, 6, 7], [7, 8, 0]]]), torch.tensor([[[1, 1, 1], [1, 1, 0]]])
    bag = BagConfig(ngrams=2, buckets=1000, weights="plain").build(Tokens(9), Classes(2)).eval()
    _, there = bag.bag(ids, segments)
    assert there.sum() == 4 + 3  # 5 6 7 8, and the pairs 56 67 78
    torch.testing.assert_close(bag(ids, segments), bag(torch.tensor([[5, 6, 7, 8]])))
