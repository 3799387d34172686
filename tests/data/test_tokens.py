"""The tokens encoding: documents, their ends, pieces joined without a trace, and counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import tokens
from llmtool.data.encoding import Given
from llmtool.data.sources import Chunk
from llmtool.data.store import Dataset, Split, make_card
from llmtool.data.tokens import TokenEncoder, TokensEncode, cut

CONFIG = TypeAdapter(TokensEncode)
PROSE = "The quick brown fox, it's said, jumps over 1234 lazy dogs.\nIt does so\n\n  twice a day!  "


def rows(texts: list[Any], units: list[int] | None = None, size: int = 3, **columns: list) -> Iterator[Chunk]:
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), **columns})
    unit = np.array(units if units is not None else range(len(texts)), dtype=np.int64)
    for start in range(0, len(frame), size):
        part = frame.iloc[start : start + size]
        at = part.index.to_numpy()
        yield Chunk(part, unit[at], np.zeros(len(at), dtype=np.int64), at + 1)


def encoder(texts: list[str], **keys: Any) -> TokenEncoder:
    made = CONFIG.validate_python({"as": "tokens", "tokenizer": {"kind": "bytes"}, **keys}).build(0)
    made.columns(["text"])
    made.fit(Given(list(rows(texts))))
    return made


def write(
    made: TokenEncoder, directory: Path, **splits: Iterator[Chunk]
) -> tuple[dict[str, Split], dict[int, str]]:
    refused: dict[int, str] = {}
    writers = {name: made.writer(directory, name) for name in splits}
    for name, chunks in splits.items():
        for chunk in chunks:
            refused.update(writers[name].add(chunk))
    metas = {name: writer.close() for name, writer in writers.items()}
    card = make_card("tokens", made.inputs, made.targets, made.state(), metas, made.notes, ["in.txt"])
    (directory / "card.json").write_text(json.dumps(card))
    dataset = Dataset.open(directory)
    dataset.verify()
    return {name: dataset.split(name) for name in splits}, refused


def documents(made: TokenEncoder, split: Split) -> list[str]:
    ends = split.arrays["documents"].tolist()
    starts = [0, *ends][: len(ends)]
    stream = split.arrays["tokens"]
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(stream)
    return [made.fitted.decode(stream[a:b]) for a, b in zip(starts, ends, strict=True)]


END = "<|endoftext|>"


def test_every_row_is_a_document_that_ends(tmp_path: Path) -> None:
    texts = ["one", "zwei 😀", "三\r\n", "4"]
    made = encoder(texts)
    splits, refused = write(made, tmp_path, train=rows(texts))
    split = splits["train"]
    assert refused == {}
    assert documents(made, split) == [text + END for text in texts]
    assert split.rows == 4
    assert split.meta["documents"] == 4
    assert split.meta["bytes"] == len("".join(texts).encode())
    assert split.meta["tokens"] == split.meta["bytes"] + 4
    assert split.arrays["origin"].tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert made.inputs == {"kind": "tokens", "vocabulary": 257}
    assert made.targets == {"kind": "next_token", "vocabulary": 257}


def test_without_ends_documents_still_have_borders(tmp_path: Path) -> None:
    made = encoder(["ab", "c"], end_of_document=False)
    splits, _ = write(made, tmp_path, train=rows(["ab", "c"]))
    assert documents(made, splits["train"]) == ["ab", "c"]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces_of_a_unit_are_one_document(tmp_path: Path, size: int) -> None:
    texts, units = ["a1", "a2", "b1", "c1", "c2", "c3"], [0, 0, 2, 3, 3, 3]
    made = encoder(texts)
    splits, _ = write(made, tmp_path, train=rows(texts, units, size))
    assert documents(made, splits["train"]) == [f"a1a2{END}", f"b1{END}", f"c1c2c3{END}"]
    assert splits["train"].arrays["origin"].tolist() == [[0, 1], [0, 3], [0, 4]]
    assert splits["train"].rows == 6


@pytest.mark.parametrize("order", [["train", "validation"], ["validation", "train"]])
@pytest.mark.parametrize("at", [1, 2, 4, 5])
def test_a_document_cut_by_the_split_has_no_end_in_its_first_part(
    tmp_path: Path, order: list[str], at: int
) -> None:
    texts, units = ["a1", "a2", "a3", "b1", "b2", "b3"], [0, 0, 0, 3, 3, 3]
    made = encoder(texts)
    writers = {name: made.writer(tmp_path, name) for name in order}
    for chunk in rows(texts, units, 4):
        train = chunk.frame.index.to_numpy() < at
        for name in order:
            writers[name].add(chunk.take(train if name == "train" else ~train))
    metas = {name: writer.close() for name, writer in writers.items()}
    card = make_card("tokens", made.inputs, made.targets, made.state(), metas, [], [])
    (tmp_path / "card.json").write_text(json.dumps(card))
    found = [documents(made, Dataset.open(tmp_path).split(name)) for name in ("train", "validation")]
    whole = [f"a1a2a3{END}", f"b1b2b3{END}"]
    assert "".join(found[0] + found[1]) == "".join(whole)
    assert not found[0][-1].endswith(END)


def test_a_gap_in_a_document_is_a_border(tmp_path: Path) -> None:
    texts, units = ["a1", "a2", "a3", "b1"], [0, 0, 0, 3]
    made = encoder(texts)
    chunk = next(rows(texts, units, 4))
    splits, _ = write(made, tmp_path, train=iter([chunk.take(np.array([True, False, True, True]))]))
    assert documents(made, splits["train"]) == ["a1", f"a3{END}", f"b1{END}"]


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_pieces_and_blocks_leave_no_trace(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "BLOCK", 500)
    monkeypatch.setattr(tokens, "TAILS", (30, 120))
    monkeypatch.setattr(tokens, "BATCH", 2000)
    text = "".join(PROSE.replace("1234", str(i)) for i in range(200))
    pieces = [text[i : i + 37] for i in range(0, len(text), 37)]
    tokenizer: dict[str, Any] = {"kind": kind, **({"vocabulary": 500} if kind == "bpe" else {})}
    made = encoder([text], tokenizer=tokenizer)
    splits, _ = write(made, tmp_path, train=rows(pieces, [0] * len(pieces), 50))
    whole = made.fitted.tokenizer.encode(text, add_special_tokens=False).ids
    assert splits["train"].arrays["tokens"].tolist() == [*whole, made.fitted.end]
    assert splits["train"].meta["bytes"] == len(text.encode())


def test_text_without_a_place_to_cut_is_cut_anywhere(tmp_path: Path) -> None:
    text = "漢字" * 80_000
    made = encoder([text[:1000]], tokenizer={"kind": "bpe", "vocabulary": 300})
    splits, _ = write(made, tmp_path, train=rows([text]))
    assert documents(made, splits["train"]) == [text + END]
    assert cut("ab cd ef") == 5
    assert cut("ab\ncd\ne") == 6
    assert cut("abc") == 3
    assert cut("a\r\n") == 3


def test_many_short_and_one_long_document_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "BATCH", 300)
    monkeypatch.setattr(tokens, "BATCH_TEXTS", 7)
    generator = np.random.default_rng(0)
    texts = ["x" * int(n) + str(i) for i, n in enumerate(generator.integers(0, 50, 300))]
    texts[100] = "y" * 200_000
    made = encoder(texts)
    splits, _ = write(made, tmp_path, train=rows(texts, size=64))
    assert documents(made, splits["train"]) == [text + END for text in texts]


def test_the_ids_take_two_bytes_while_they_fit(tmp_path: Path) -> None:
    made = encoder(["ab"])
    splits, _ = write(made, tmp_path, train=rows(["ab"]))
    assert splits["train"].arrays["tokens"].dtype == np.uint16
    made.fitted.vocabulary = 65536
    splits, _ = write(made, tmp_path, train=rows(["ab"]))
    assert splits["train"].arrays["tokens"].dtype == np.uint32


def test_rows_without_text_are_refused_with_a_reason(tmp_path: Path) -> None:
    texts = ["good", None, "", 7, "\ud800", float("nan"), "None"]
    made = encoder(["good"])
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    reasons = {reason: np.flatnonzero(mask).tolist() for reason, mask in made.refuse(frame).dropped.items()}
    assert reasons == {
        "text is missing": [1, 5],
        "text is empty": [2],
        "text is not text": [3],
        "text is not valid Unicode (half a surrogate pair)": [4],
    }
    splits, refused = write(made, tmp_path, train=rows(texts))
    assert sorted(refused) == [1, 2, 3, 4, 5]
    assert documents(made, splits["train"]) == [f"good{END}", f"None{END}"]
    assert splits["train"].rows == 2


def test_unknown_characters_are_counted_in_a_note(tmp_path: Path) -> None:
    made = encoder(["abc"], tokenizer={"kind": "characters"})
    write(made, tmp_path, train=rows(["abc"]), validation=rows(["abx", "yz"]))
    assert made.notes == ["validation: 3 of 7 tokens are unknown ones"]


def test_an_empty_split_has_no_documents(tmp_path: Path) -> None:
    made = encoder(["abc"])
    splits, _ = write(made, tmp_path, train=rows(["abc"]), test=iter([]))
    assert documents(made, splits["test"]) == []
    assert splits["test"].meta["tokens"] == 0


def test_fit_sees_the_text_in_pieces_and_needs_some() -> None:
    made = encoder(["ab", "cd"], tokenizer={"kind": "characters"})
    assert made.inputs["vocabulary"] == 6
    with pytest.raises(DataError, match="train split has no rows"):
        encoder([], tokenizer={"kind": "bpe"})


def test_state_comes_back(tmp_path: Path) -> None:
    texts = [PROSE]
    made = encoder(texts, tokenizer={"kind": "bpe", "vocabulary": 300})
    write(made, tmp_path, train=rows(texts))
    back = TokenEncoder.from_state(json.loads(json.dumps(made.state())), tmp_path)
    assert back.state() == made.state()
    assert back.inputs == made.inputs
    for broken in ({}, {"text": "t", "end_of_document": True, "tokenizer": {}}):
        with pytest.raises(DataError):
            TokenEncoder.from_state(broken, tmp_path)


def test_a_second_run_in_the_same_directory_replaces_the_tokenizer(tmp_path: Path) -> None:
    write(encoder(["ab"], tokenizer={"kind": "characters"}), tmp_path, train=rows(["ab"]))
    made = encoder(["xyz"], tokenizer={"kind": "characters"})
    write(made, tmp_path, train=rows(["xyz"]))
    assert TokenEncoder.from_state(made.state(), tmp_path).inputs == made.inputs


def test_like_takes_the_tokenizer(tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    base.mkdir()
    other.mkdir()
    first = encoder([PROSE], tokenizer={"kind": "bpe", "vocabulary": 300}, end_of_document=False)
    write(first, base, train=rows([PROSE]))
    config = TokensEncode(like=str(base), text="body")
    assert [path.name for path in config.files()] == ["card.json", "tokenizer.json", "tokenizer_config.json"]
    made = config.build()
    assert made.columns(["id", "body"]) == ["body"]
    made.fit(Given([]))
    assert made.state()["tokenizer"] == first.state()["tokenizer"]
    assert not made.end_of_document
    made.config = TokensEncode(like=str(base))
    splits, _ = write(made, other, train=rows(["The fox"]))
    assert documents(made, splits["train"]) == ["The fox"]
    with pytest.raises(ConfigError, match=r"data.encode.like: .*no prepared dataset"):
        TokensEncode(like=str(tmp_path / "no")).build()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"like": "x", "tokenizer": {"kind": "bytes"}}, "tokenizer cannot stand beside it"),
        ({"tokenizer": {"kind": "wordpiece"}}, "wordpiece"),
        ({"tokenizer": {"kind": "bpe", "vocabulary": 100}}, "257"),
        ({"tokenizer": {"kind": "bytes", "vocabulary": 300}}, "vocabulary"),
        ({"tokenizer": {"kind": "file"}}, "path"),
        ({"txt": "a"}, "txt"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"as": "tokens", **keys})


def test_a_missing_column_or_target_is_said() -> None:
    with pytest.raises(ConfigError, match=r"data.encode.text: .*no column 'text'; did you mean \"texts\"\?"):
        TokensEncode().build().columns(["texts", "id"])
    with pytest.raises(ConfigError, match="stratified"):
        TokensEncode().build().stratum(pd.DataFrame({"text": ["a"]}))
