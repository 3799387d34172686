"""The text encoding: rows as tokens, what stands around them, what is cut, refused and counted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.batches import open_batches
from llmtool.data.decoding import columns_of, decoded_batch, texts_of
from llmtool.data.encoding import Given
from llmtool.data.labelled import TextEncode, TextEncoder, chunked, cut
from llmtool.data.sources import Chunk
from llmtool.data.store import Dataset, make_card
from tests.conftest import REVIEWS, Run, reviews

CONFIG = TypeAdapter(TextEncode)
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "f"]


def rows(texts: list[Any], targets: list[Any], size: int = 3, **columns: list) -> Iterator[Chunk]:
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "y": targets, **columns})
    for start in range(0, len(frame), size):
        part = frame.iloc[start : start + size]
        at = part.index.to_numpy()
        yield Chunk(part, at.astype(np.int64), np.zeros(len(at), dtype=np.int64), at + 1)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A tokenizer of words, with BERT's tokens around a text."""
    directory = tmp_path / "model"
    directory.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(4)  # whoever saved it may have
    tokenizer.enable_padding()
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "unk")}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return directory


def encoder(texts: list[Any], targets: list[Any], **keys: Any) -> TextEncoder:
    made = CONFIG.validate_python(
        {"as": "text", "target": "y", "tokenizer": {"kind": "bytes"}, **keys}
    ).build(0)
    made.columns(["text", "y", "title"])
    made.fit(Given(list(rows(texts, targets))))
    return made


def write(made: TextEncoder, directory: Path, chunks: Iterator[Chunk]) -> tuple[Dataset, dict[int, str]]:
    refused: dict[int, str] = {}
    writer = made.writer(directory, "train")
    for chunk in chunks:
        refused.update(writer.add(chunk))
    meta = {"train": writer.close()}
    card = make_card("text", made.inputs, made.targets, made.state(), meta, made.notes, ["in.csv"])
    (directory / "card.json").write_text(json.dumps(card))
    dataset = Dataset.open(directory)
    dataset.verify()
    return dataset, refused


def stored(dataset: Dataset) -> list[list[int]]:
    arrays = dataset.split("train").arrays
    ends = arrays["documents"].tolist()
    return [arrays["tokens"][a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)]


TEXTS, TARGETS = ["a b c", "d", "a b c d e f a b", "f e"], ["x", "y", "x", "y"]


def file_encoder(words: Path, **keys: Any) -> TextEncoder:
    return encoder(TEXTS, TARGETS, tokenizer={"kind": "file", "path": str(words)}, **keys)


def test_a_models_own_tokens_stand_around_each_text(words: Path, tmp_path: Path) -> None:
    made = file_encoder(words)
    dataset, refused = write(made, tmp_path, rows(TEXTS, TARGETS))
    assert refused == {}
    assert stored(dataset) == [[1, 4, 5, 6, 2], [1, 7, 2], [1, 4, 5, 6, 7, 8, 9, 4, 5, 2], [1, 9, 8, 2]]
    assert dataset.split("train").arrays["targets"].tolist() == [0, 1, 0, 1]
    assert dataset.split("train").arrays["origin"].tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert dataset.inputs == Tokens(10, 256)
    assert dataset.targets["names"] == ["x", "y"]
    assert made.notes == []


def test_text_never_forges_them(words: Path, tmp_path: Path) -> None:
    dataset, _ = write(file_encoder(words), tmp_path, rows(["[SEP] a"], ["x"]))
    assert stored(dataset) == [[1, 3, 3, 3, 4, 2]]  # "[", "SEP", "]": unknown words


@pytest.mark.parametrize(
    ("long", "kept"),
    [("head", "a b c d"), ("tail", "e f a b"), ("head_tail", "a f a b")],
)
def test_long_texts_are_cut_as_asked_and_counted(long: str, kept: str, words: Path, tmp_path: Path) -> None:
    made = file_encoder(words, length=6, long=long)
    dataset, _ = write(made, tmp_path, rows(TEXTS, TARGETS))
    assert texts_of(dataset, "train", np.array([2]), around=False)[0].split() == kept.split()
    assert [len(row) for row in stored(dataset)] == [5, 3, 6, 4]
    assert dataset.card["splits"]["train"]["cut"] == 1
    assert "train: 1 of 4 texts have more than 6 tokens" in made.notes[0]
    assert "4 of 22 tokens were left out" in made.notes[0]


def test_head_and_tail_of_bert_are_the_papers() -> None:
    """510 tokens: the first 128 and the last 382, https://arxiv.org/abs/1905.05583, up to a token."""
    kept = cut(np.arange(2000), 510, "head_tail")
    assert len(kept) == 510
    assert kept[:127].tolist() == list(range(127))
    assert kept[127:].tolist() == list(range(2000 - 383, 2000))
    assert cut(np.arange(3), 3, "tail").tolist() == [0, 1, 2]


@given(st.integers(0, 3000), st.integers(1, 60), st.integers(2, 9))
def test_chunks_cover_a_text_with_as_few_as_can(size: int, room: int, most: int) -> None:
    parts = chunked(np.arange(size), room, most)
    assert len(parts) == min(max(1, -(-size // room)), most)
    assert len(parts) == 1 or {len(part) for part in parts} == {room}
    assert parts[0][:1].tolist() == [0][:size]
    assert parts[-1][-1:].tolist() == [size - 1][:size]
    if size <= room * most:
        assert set(np.concatenate(parts).tolist()) == set(range(size))


def test_a_long_text_is_one_row_of_chunks(words: Path, tmp_path: Path) -> None:
    texts = [*TEXTS, "", "a " * 100_000]
    made = encoder(texts[:4], TARGETS, length=5, long="chunks", chunks=3,
                   tokenizer={"kind": "file", "path": str(words)})  # fmt: skip
    dataset, refused = write(made, tmp_path, rows(texts, [*TARGETS, "x", "y"]))
    assert refused == {4: "text is empty"}
    # three tokens and BERT's own around them a chunk; the second begins before the first ends
    assert stored(dataset)[2] == [1, 4, 5, 6, 2, 1, 6, 7, 8, 2, 1, 9, 4, 5, 2]
    assert [len(row) for row in stored(dataset)] == [5, 3, 15, 4, 15]
    meta = dataset.card["splits"]["train"]
    assert (meta["rows"], meta["chunks"], meta["cut"]) == (5, 9, 1)
    assert "train: 1 of 5 texts have more than 15 tokens; chunks evenly taken" in made.notes[0]
    assert "99,991 of" in made.notes[0]
    assert made.notes[1] == "train: 5 texts are 9 chunks of up to 5 tokens"
    again = TextEncoder.from_state(dataset.card["encoder"], tmp_path)
    assert again.encode(texts[:4])[0][2].tolist() == stored(dataset)[2]
    assert texts_of(dataset, "train", np.array([2, 1]), around=False) == ["a b c c d e f a b", "d"]
    batches = open_batches(dataset, "train", 0)
    shapes = [tuple(batch.inputs.shape) for batch in batches.in_order(3)]
    assert shapes == [(3, 5), (2, 3, 5)]  # short ones as ever
    whole = next(iter(batches.in_order(5)))
    assert whole.segments is not None
    assert whole.segments.sum(dim=(1, 2)).tolist() == [3, 4, 5, 15, 15]
    assert len(batches.batch(0, 5)) == 5  # rows are texts


def test_without_such_tokens_the_end_token_stands_in_front(tmp_path: Path) -> None:
    dataset, _ = write(encoder(["ab", "c"], ["x", "y"]), tmp_path, rows(["ab"], ["x"]))
    assert stored(dataset) == [[256, 97, 98]]
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))  # others read the same ids from the file
    assert saved.encode("ab").ids == [256, 97, 98]
    assert saved.encode("T", "ab").ids == [256, ord("T"), 256, 97, 98]
    again = TextEncoder.from_state(dataset.card["encoder"], tmp_path)  # not twice here
    taken = encoder(["ab", "c"], ["x", "y"], tokenizer={"kind": "file", "path": str(tmp_path)})
    for made in (again, taken):
        assert made.encode(["ab"])[0][0].tolist() == [256, 97, 98]
    assert taken.fitted.state()["hash"] == again.fitted.state()["hash"]


def test_several_columns_are_one_text_with_a_token_between_them(words: Path, tmp_path: Path) -> None:
    texts, titles = ["a b", "c", None, 7], ["d", None, None, "e f"]
    made = encoder(
        ["a", "b"], ["x", "y"], text=["title", "text"], tokenizer={"kind": "file", "path": str(words)}
    )
    dataset, refused = write(made, tmp_path, rows(texts, ["x", "x", "x", "x"], title=titles))
    # [CLS] title [SEP] text [SEP]; a column that is empty leaves its place, a number is text (unknown here)
    assert stored(dataset) == [[1, 7, 2, 4, 5, 2], [1, 2, 6, 2], [1, 8, 9, 2, 3, 2]]
    assert refused == {2: "title + text is empty"}
    assert "columns title + text are kept apart by '[SEP]'" in dataset.card["notes"]
    again = TextEncoder.from_state(dataset.card["encoder"], tmp_path)
    assert again.encode([["d", "a b"]])[0][0].tolist() == stored(dataset)[0]
    plain = encoder(["ab", "c"], ["x", "y"], text=["title", "text"])  # bytes: the end token is between them
    assert plain.encode([["T", "ab"]])[0][0].tolist() == [256, ord("T"), 256, ord("a"), ord("b")]


def beside(**keys: Any) -> TextEncoder:
    made = CONFIG.validate_python(
        {"as": "text", "target": "y", "tokenizer": {"kind": "bytes"}, "features": keys}
    ).build(0)
    made.columns(["text", "age", "place", "y"])
    made.fit(
        Given(list(rows(["a", "b", "c", "d"], list("xyxy"), age=["1", "2", None, "3"], place=list("uvuv"))))
    )
    return made


def test_columns_of_a_table_stand_beside_the_text(tmp_path: Path) -> None:
    made = beside()
    dataset, refused = write(
        made,
        tmp_path,
        rows(["a", "b", "", "c"], list("xyxy"), age=["2", None, "3", "old"], place=list("uwuu")),
    )
    assert refused == {2: "text is empty", 3: "age is not a number"}
    assert isinstance(dataset.inputs, Tokens)
    names = dataset.card["inputs"]["names"]
    assert dataset.inputs.features == len(names) == 4  # age, whether it is missing, u, v
    batch = open_batches(dataset, "train", 0).batch(0, 2)
    assert batch.features is not None
    found = {tuple(np.round(row, 3).tolist()) for row in batch.features.numpy()}
    assert batch.arguments[2] is batch.features
    again = TextEncoder.from_state(dataset.card["encoder"], tmp_path)
    assert again.features is not None
    assert again.features.features == names
    wanted, _ = again.features.encode(pd.DataFrame({"age": ["2", None], "place": ["u", "w"]}))
    assert found == {tuple(np.round(row, 3).tolist()) for row in wanted}
    like = CONFIG.validate_python({"as": "text", "like": str(tmp_path), "target": "age"}).build(0)
    with pytest.raises(ConfigError, match="'age' is an input"):
        like.columns(["text", "age", "place", "y"])
    with pytest.raises(ValidationError, match="features: column 'y' stands in both target and numbers"):
        beside(numbers=["y"])


def test_keys_of_texts_and_of_what_is_beside_them_are_named_in_full(project: Path, llmtool: Run) -> None:
    for key, value, words in (
        ("chunks", "1", "data.encode.chunks: input should be greater than or equal to 2"),
        ("text", "3", "data.encode.text: "),
        ("features", "{columns: [nn]}", "data.encode.features.columns: the data has no column 'nn'"),
        ("features", "{columns: [sentiment]}", "column 'sentiment' stands in both target and columns"),
    ):
        more = ["--set", f"data.encode.{key}={value}", "--set", "run=other"]
        ended = llmtool("prepare", "reviews.yaml", *more, cwd=project)
        assert (ended.code, words in ended.error) == (2, True), ended.error


def test_a_text_column_may_be_a_category_too() -> None:
    assert beside(columns=["place", "text"], categories=["text"], scale="none").columns(
        ["text", "age", "place", "y"]
    ) == ["text", "place", "y"]


def test_rows_that_cannot_be_encoded_are_refused_with_a_reason(words: Path, tmp_path: Path) -> None:
    texts = ["", None, "a\ud800", "  ", "a", 3]
    dataset, refused = write(file_encoder(words), tmp_path, rows(texts, ["x"] * 4 + ["z", "x"]))
    assert dataset.split("train").rows == 0
    assert refused == {
        0: "text is empty",
        1: "text is missing",
        2: "text is not valid Unicode (half a surrogate pair)",
        3: "text gives no token",
        4: "target class not in train",
        5: "text is not text",
    }


def test_what_was_learned_is_restored_and_taken_over(words: Path, tmp_path: Path) -> None:
    made = file_encoder(words, length=6, long="tail")
    dataset, _ = write(made, tmp_path, rows(TEXTS, TARGETS))
    again = TextEncoder.from_state(dataset.card["encoder"], tmp_path)
    assert again.state() == made.state()
    assert (again.inputs, again.targets) == (made.inputs, made.targets)
    other = CONFIG.validate_python({"as": "text", "like": str(tmp_path), "target": "label"}).build(0)
    assert other.columns(["text", "y", "label"]) == ["text", "label"]
    other.fit(Given(list(rows(TEXTS, TARGETS, label=["p", "q", "r", "p"]))))
    assert other.targets["names"] == ["p", "q", "r"]
    assert {k: v for k, v in other.state().items() if "target" not in k} == {
        k: v for k, v in made.state().items() if "target" not in k
    }


def test_transformers_reads_the_tokenizer_with_its_roles(words: Path, tmp_path: Path) -> None:
    import transformers

    write(file_encoder(words), tmp_path, rows(TEXTS, TARGETS))
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("a b")["input_ids"] == [1, 4, 5, 2]
    assert (read.cls_token, read.sep_token, read.pad_token, read.unk_token) == (
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "needs a target"),
        ({"target": "y", "text": ["a", "y"]}, "column 'y' stands in both text and target"),
        ({"target": "y", "text": ["a", "a"]}, "a column of text stands twice"),
        ({"target": ["y", "y"]}, "a target stands twice"),
        ({"target": ["y", "z"], "target_kind": "classes"}, "needs a single one"),
        ({"like": "old", "length": 9}, "like takes the encoder as it is; length cannot"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"as": "text", **keys})


def test_missing_columns_and_too_short_rows_are_named(words: Path, tmp_path: Path) -> None:
    made = CONFIG.validate_python({"as": "text", "text": "reviw", "target": "y"}).build(0)
    with pytest.raises(
        ConfigError, match=r"data\.encode\.text: the data has no column 'reviw'; did you mean"
    ):
        made.columns(["review", "y"])
    with pytest.raises(ConfigError, match=r"data\.encode\.target: the data has no column 'y'"):
        made.columns(["reviw"])
    write(file_encoder(words), tmp_path, rows(TEXTS, TARGETS))
    state = json.loads((tmp_path / "card.json").read_text())["encoder"]
    del state["prefix"]
    with pytest.raises(DataError, match="incomplete"):
        TextEncoder.from_state(state, tmp_path)
    with pytest.raises(ConfigError, match="nowhere: no prepared dataset"):
        CONFIG.validate_python({"as": "text", "like": "nowhere"}).build(0)


# --- through the commands ---


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    """Short reviews, an encoder trained on them, fine-tuned, scored."""
    directory = tmp_path_factory.mktemp("reviews")
    (directory / "reviews.csv").write_text(reviews() + ",good\n")
    (directory / "reviews.yaml").write_text(REVIEWS)
    for command in ("prepare", "describe", "train", "evaluate"):
        ended = llmtool(command, "reviews.yaml", cwd=directory)
        assert ended.code == 0, ended.err
    return directory


def test_every_command_knows_texts_with_targets(project: Path) -> None:
    ledger = json.loads((project / "runs/reviews/prepare/ledger.json").read_text())
    assert ledger["quarantined"] == {"review is missing": 1} or ledger["quarantined"] == {
        "review is empty": 1
    }
    about = json.loads((project / "runs/reviews/describe/describe.json").read_text())
    assert about["inputs"] == {"kind": "tokens", "vocabulary": 300, "length": 24}
    assert about["flops"]["tokens_per_row"] == 24
    report = json.loads((project / "runs/reviews/evaluate/report.json").read_text())
    assert report["bootstrap"]["unit"]["test"] == "text"
    names = [one["name"] for one in report["baselines"]]
    assert names == ["majority", "stratified", "TF-IDF, logistic regression"]
    assert report["baselines"][2]["metrics"]["test"]["accuracy"] > 0.9  # the class stands in one word


def test_predictions_stand_in_the_order_of_the_rows(project: Path) -> None:
    frame = pd.read_csv(project / "runs/reviews/evaluate/predictions.csv")
    test = frame[frame["split"] == "test"]
    dataset = Dataset.open(project / "runs/reviews/prepare")
    split = dataset.split("test")
    names = np.array(dataset.targets["names"])
    assert test["target"].tolist() == names[split.arrays["targets"]].tolist()
    assert test["line"].tolist() == split.arrays["origin"][:, 1].tolist()
    rows = pd.read_csv(project / "reviews.csv")
    assert (rows["sentiment"].to_numpy()[test["line"] - 2] == test["target"]).all()


def test_rows_are_shown_as_text_with_their_target(project: Path) -> None:
    dataset = Dataset.open(project / "runs/reviews/prepare")
    batches = open_batches(dataset, "train", 0)
    shown = decoded_batch(dataset, "train", batches, 5, 1)[0]
    place = int(batches.where(5, 1)[0].split(":")[1].split()[0])
    text, sentiment = (project / "reviews.csv").read_text().splitlines()[place - 1].rsplit(",", 1)
    assert shown == {"text": f"<|endoftext|>{text}", "target": sentiment}
    lengths = columns_of(dataset, "train")["tokens"]
    assert lengths.sum() == dataset.card["splits"]["train"]["tokens"]


def test_a_missing_column_is_one_line(project: Path, llmtool: Run) -> None:
    ended = llmtool(
        "prepare", "reviews.yaml", "--set", "data.encode.text=reviw", "--set", "run=other", cwd=project
    )
    assert ended.code == 2
    assert "the data has no column 'reviw'; did you mean \"review\"?" in ended.error
