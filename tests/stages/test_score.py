"""Scoring prepared splits with real batches, tasks and models: figures, bits per byte, origins, samples."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from llmtool.core.contracts import Batch, OutputSpec, Task
from llmtool.core.errors import ConfigError, DataError, MemoryLimitError
from llmtool.data.batches import Batches, open_batches
from llmtool.data.store import ArrayWriter, Dataset, make_card
from llmtool.data.tokenizers import BytesTokenizer, CharactersTokenizer, FittedTokenizer
from llmtool.evaluation import EvaluateConfig, SamplesConfig
from llmtool.evaluation.report import write_predictions
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import score as stage
from llmtool.stages.score import first_token, origin, samples, score, splits_to_score
from llmtool.tasks import default_task

CPU = torch.device("cpu")


@dataclass
class Full:
    """float32."""

    name: str = "fp32"

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass
class Assembled:
    """What scoring needs of stages.assemble.Assembled."""

    model: nn.Module
    dataset: Dataset
    task_config: Any
    task: Task
    seed: int = 3
    device: torch.device = CPU
    precision: Full = field(default_factory=Full)

    def batches(self, split: str) -> Batches:
        return open_batches(self.dataset, split, self.seed, context=getattr(self.model, "context", None))


def outputs(dataset: Dataset) -> OutputSpec:
    return default_task(dataset.card["targets"]).outputs(dataset.card["targets"])


def assembled(dataset: Dataset, model: nn.Module) -> Any:
    task = default_task(dataset.card["targets"])
    return Assembled(model.eval(), dataset, task, task.build(dataset.card))


def arrays(directory: Path, split: str, named: dict[str, np.ndarray]) -> dict[str, Any]:
    result = {}
    for name, values in named.items():
        writer = ArrayWriter(directory / f"{split}.{name}.bin", values.dtype.str, values.shape[1:])
        writer.append(values)
        result[name] = writer.close()
    return result


def table(directory: Path, targets: dict[str, Any], rows: dict[str, int]) -> Dataset:
    """A dataset of 4 random features a row; sources a.csv and b.csv."""
    random = np.random.default_rng(0)
    splits = {}
    for split, count in rows.items():
        classes = targets["kind"] == "classes"
        wanted = (
            random.integers(len(targets["names"]), size=count) if classes else random.normal(5, 2, (count, 1))
        )
        named = {
            "inputs": random.normal(size=(count, 4)).astype("<f4"),
            "targets": wanted.astype("<i8" if classes else "<f4"),
            "origin": np.stack([np.arange(count) % 2, np.arange(count) + 2], axis=1).astype("<i8"),
        }
        splits[split] = {"rows": count, "arrays": arrays(directory, split, named)}
    card = make_card(
        "features", {"kind": "features", "width": 4}, targets, {}, splits, [], ["a.csv", "b.csv"]
    )
    return opened(directory, card)


def opened(directory: Path, card: dict[str, Any]) -> Dataset:
    (directory / "card.json").write_text(json.dumps(card))
    return Dataset.open(directory)


def text(directory: Path, tokenizer: FittedTokenizer, documents: list[str]) -> Dataset:
    """A dataset of documents, each closed by the end token; train and test are the same."""
    ids: list[int] = []
    ends = []
    for document in documents:
        ids += [*tokenizer.ids(tokenizer.encode([document]))[0].tolist(), tokenizer.end]
        ends.append(len(ids))
    splits = {}
    for split in ("train", "test"):
        named = {"tokens": np.array(ids, "<u2"), "documents": np.array(ends, "<i8")}
        size = sum(len(document.encode()) for document in documents)
        meta = {"rows": len(documents), "tokens": len(ids), "documents": len(ends), "bytes": size}
        splits[split] = meta | {"arrays": arrays(directory, split, named)}
    tokenizer.save(directory)
    targets = {"kind": "next_token", "vocabulary": tokenizer.vocabulary}
    inputs = {"kind": "tokens", "vocabulary": tokenizer.vocabulary}
    encoder = {"tokenizer": tokenizer.state()}
    return opened(directory, make_card("tokens", inputs, targets, encoder, splits, [], ["a.txt"]))


CLASSES = {"kind": "classes", "names": ["no", "yes", "maybe"], "counts": [1, 1, 1]}
VALUES = {"kind": "values", "names": ["price"], "mean": [5.0], "scale": [2.0]}


class Head(nn.Linear):
    def forward(self, inputs: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(inputs)


def test_every_row_of_a_table_is_scored_once_in_order(tmp_path: Path) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 5, "validation": 70, "test": 33})
    whole = assembled(dataset, Head(4, 3))
    tallies = score(whole, ["validation", "test"], batch=8)
    assert list(tallies) == ["validation", "test"]
    split = dataset.split("test")
    with torch.no_grad():
        predicted = whole.model(torch.from_numpy(np.array(split.arrays["inputs"]))).argmax(1).numpy()
    truth = np.asarray(split.arrays["targets"])
    names = np.array(CLASSES["names"])
    columns = tallies["test"].predictions()
    assert columns is not None
    assert columns["target"].tolist() == names[truth].tolist()
    assert columns["prediction"].tolist() == names[predicted].tolist()
    assert tallies["test"].metrics()["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    auto = score(whole, ["test"])["test"].metrics()
    assert auto == pytest.approx(tallies["test"].metrics(), rel=1e-6)


def test_predictions_say_where_their_rows_came_from(tmp_path: Path) -> None:
    dataset = table(tmp_path, VALUES, {"train": 5, "test": 3})
    tallies = score(assembled(dataset, Head(4, 1)), ["test"])
    assert tallies["test"].metrics().keys() == {"mae", "rmse", "r2"}
    assert write_predictions(tmp_path / "p.csv", tallies, origin(dataset, ["test"])) == 3
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == '"split","file","line","target","prediction"'
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ['"test"', '"a.csv"', "2"],
        ['"test"', '"b.csv"', "3"],
        ['"test"', '"a.csv"', "4"],
    ]


def test_a_split_without_rows_is_named(tmp_path: Path) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 5, "test": 0})
    with pytest.raises(DataError, match="test: there are no rows"):
        score(assembled(dataset, Head(4, 3)), ["test"])


class Greedy(Head):
    """Runs out of memory above so many rows."""

    most = 3

    def forward(self, inputs: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("too much")
        return super().forward(inputs)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 5, "test": 40})
    model = Greedy(4, 3)
    tally = score(assembled(dataset, model), ["test"])["test"]
    assert len(tally.predictions()["target"]) == 40  # type: ignore[index]
    with pytest.raises(MemoryLimitError, match="scoring test: 16 rows at once do not fit"):
        score(assembled(dataset, model), ["test"], batch=16)
    model.most = 0
    with pytest.raises(MemoryLimitError, match="1 rows"):
        score(assembled(dataset, model), ["test"])


# --- which splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "has", "wanted"),
    [
        ({}, ["train", "validation", "test"], ["validation", "test"]),
        ({}, ["train", "test"], ["test"]),
        ({"splits": ["train"]}, ["train", "test"], ["train"]),
        ({"require": {"train.f1": ">0", "test.f1": ">0"}}, ["train", "test"], ["test", "train"]),
    ],
)
def test_splits(tmp_path: Path, keys: dict[str, Any], has: list[str], wanted: list[str]) -> None:
    dataset = table(tmp_path, CLASSES, dict.fromkeys(has, 2))
    assert splits_to_score(EvaluateConfig(**keys), dataset) == wanted


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"splits": ["test"]}, "evaluate.splits: the dataset has no split 'test' .it has: train"),
        ({"require": {"test.f1": ">0"}}, "evaluate.require: the dataset has no split 'test'"),
        ({}, "neither validation nor test"),
    ],
)
def test_a_split_that_is_not_there_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 2})
    with pytest.raises(ConfigError, match=message):
        splits_to_score(EvaluateConfig(**keys), dataset)


# --- language ----------------------------------------------------------------------------------------------

DOCUMENTS = ["To be, or not to be", "ab", "é – that is the question: " * 3, "x"]


def transformer(dataset: Dataset, **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    config = TransformerConfig(architecture="llama", depth=1, heads=2, width=16, context=12, **keys)
    return config.build(dataset.inputs, outputs(dataset))


def test_every_token_but_the_first_of_a_document_is_scored_and_bytes_follow(tmp_path: Path) -> None:
    dataset = text(tmp_path, BytesTokenizer().fit(lambda: iter([])), DOCUMENTS)
    model = transformer(dataset)
    tally = score(assembled(dataset, model), ["test"], batch=2)["test"]
    size = sum(len(document.encode()) for document in DOCUMENTS)
    assert tally.tokens == size  # a byte is a token, one end a document, the first of each is not scored
    assert tally.bytes == pytest.approx(size * size / (size + len(DOCUMENTS)))
    found = tally.metrics()
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * tally.tokens / math.log(2) / tally.bytes)
    other = score(assembled(dataset, model), ["test"])["test"].metrics()
    assert other == pytest.approx(found, rel=1e-5)


def test_scored_alone_each_document_costs_the_same(tmp_path: Path) -> None:
    tokenizer = BytesTokenizer().fit(lambda: iter([]))
    (tmp_path / "all").mkdir()
    together = text(tmp_path / "all", tokenizer, DOCUMENTS)
    model = transformer(together)
    nats = 0.0
    for at, document in enumerate(DOCUMENTS):
        (tmp_path / str(at)).mkdir()
        alone = text(tmp_path / str(at), tokenizer, [document])
        nats += score(assembled(alone, model), ["test"])["test"].nats
    assert score(assembled(together, model), ["test"])["test"].nats == pytest.approx(nats, rel=1e-5)


def test_documents_in_which_nothing_is_scored_are_units_too(tmp_path: Path) -> None:
    """What else is said of each document (its length, a baseline's evidence) stands beside these rows."""
    documents = [*DOCUMENTS * 6, "", ""]  # an empty one is its end-of-text token alone
    dataset = text(tmp_path, BytesTokenizer().fit(lambda: iter([])), documents)
    tally = score(assembled(dataset, transformer(dataset)), ["test"])["test"]
    assert tally.units == len(documents)
    assert tally.predictions()["tokens"][-2:].tolist() == [0, 0]


def test_the_automatic_batch_of_a_large_vocabulary_keeps_its_logits_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = text(tmp_path, BytesTokenizer().fit(lambda: iter([])), DOCUMENTS)
    whole = assembled(dataset, transformer(dataset))
    monkeypatch.setitem(stage.LOGIT_BYTES, "cpu", 3 * 12 * 257 * 4)
    assert stage.auto_batch(whole, 12) == 3
    monkeypatch.setitem(stage.LOGIT_BYTES, "cpu", 1)
    assert stage.auto_batch(whole, 12) == 1


def test_samples_continue_their_prompts_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    dataset = text(tmp_path, CharactersTokenizer().fit(lambda: iter(DOCUMENTS)), DOCUMENTS)
    whole = assembled(dataset, transformer(dataset))
    config = SamplesConfig(prompts=["To be", ""], tokens=9, temperature=1.0, count=2)
    written = samples(whole, config)
    assert [sample["prompt"] for sample in written] == ["To be", "To be", "", ""]
    assert all(sample["text"].startswith("To be") for sample in written[:2])
    assert all(sample["text"][:1] in {document[0] for document in DOCUMENTS} for sample in written[2:])
    assert not any("<|endoftext|>" in sample["text"][-13:] for sample in written)
    assert written[0] != written[1]
    torch.manual_seed(99)
    assert samples(whole, config) == written
    whole.seed = 4
    assert samples(whole, config) != written


def test_samples_keep_to_the_likeliest_where_they_are_told_to(tmp_path: Path) -> None:
    dataset = text(tmp_path, CharactersTokenizer().fit(lambda: iter(DOCUMENTS)), DOCUMENTS)
    whole = assembled(dataset, transformer(dataset))
    greedy = samples(whole, SamplesConfig(prompts=["To be"], tokens=9, temperature=0))
    for keys in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert samples(whole, SamplesConfig(prompts=["To be"], tokens=9, temperature=1.0, **keys)) == greedy
    assert samples(whole, SamplesConfig(prompts=["To be"], tokens=9, temperature=1.0)) != greedy


def test_an_empty_prompt_begins_as_one_of_the_documents(tmp_path: Path) -> None:
    dataset = text(tmp_path, BytesTokenizer().fit(lambda: iter([])), DOCUMENTS)
    assert [first_token(dataset, seed) for seed in range(5)] == [*b"Ta", 0xC3, *b"xT"]


def test_samples_are_for_language_models(tmp_path: Path) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 2})
    with pytest.raises(ConfigError, match="for language models"):
        samples(assembled(dataset, Head(4, 3)), SamplesConfig())


def test_batches_are_what_scoring_expects(tmp_path: Path) -> None:
    dataset = table(tmp_path, CLASSES, {"train": 2})
    assert isinstance(next(iter(assembled(dataset, Head(4, 3)).batches("train").in_order(2))), Batch)
