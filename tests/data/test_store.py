"""The store: what is written comes back, and what is broken is named."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from llmtool.core.contracts import Features, Images, Tokens
from llmtool.core.errors import DataError
from llmtool.data.store import CARD, ArrayWriter, Dataset, fingerprint, make_card

PICTURES = {"kind": "images", "channels": 1, "height": 2, "width": 3, "mean": [1.0], "std": [2.0]}


def dataset(directory: Path, rows: int = 5) -> dict:
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    writer = ArrayWriter(directory / "train.inputs.bin", "<f4", (3,))
    writer.append(values[:2])
    writer.append(values[2:])
    splits = {"train": {"rows": rows, "arrays": {"inputs": writer.close()}}}
    inputs = {"kind": "features", "width": 3}
    card = make_card(
        "features", inputs, {"kind": "classes"}, {"as": "features"}, splits, ["a note"], ["t.csv"]
    )
    (directory / CARD).write_text(json.dumps(card))
    return card


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_array_that_a_full_disk_has_ended_goes_in_silence() -> None:
    writer = ArrayWriter(Path("/dev/full"), "|u1")
    writer.append(np.zeros(1000, dtype=np.uint8))
    del writer
    gc.collect()


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    card = dataset(tmp_path)
    found = Dataset.open(tmp_path)
    found.verify()
    split = found.split("train")
    assert (found.inputs, found.splits, split.rows, split.sources) == (Features(3), ["train"], 5, ["t.csv"])
    np.testing.assert_array_equal(split.arrays["inputs"], np.arange(15).reshape(5, 3))
    assert isinstance(split.arrays["inputs"], np.memmap)
    assert found.fingerprint == card["fingerprint"] == fingerprint(card)


def test_an_empty_split_is_an_empty_array(tmp_path: Path) -> None:
    dataset(tmp_path, rows=0)
    assert Dataset.open(tmp_path).split("train").arrays["inputs"].shape == (0, 3)


def test_types_are_little_endian_and_hashes_follow_the_content(tmp_path: Path) -> None:
    metas = []
    for name, order in (("a", "<"), ("b", ">"), ("c", "<")):
        writer = ArrayWriter(tmp_path / name, "u2")
        writer.append(np.array([1, 258 + (name == "c")], dtype=f"{order}u2"))
        metas.append(writer.close())
    assert (tmp_path / "a").read_bytes() == b"\x01\x00\x02\x01" == (tmp_path / "b").read_bytes()
    assert metas[0]["dtype"] == metas[1]["dtype"] == "<u2"
    assert metas[0]["hash"] == metas[1]["hash"] != metas[2]["hash"]


def test_rows_of_another_shape_are_our_own_mistake(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a", "<f4", (3,))
    with pytest.raises(AssertionError, match="rows of shape"):
        writer.append(np.zeros((2, 4)))
    writer.close()


def test_a_missing_directory_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no prepared dataset here .*llmtool prepare"):
        Dataset.open(tmp_path / "nowhere")


def test_a_missing_split_names_those_there_are(tmp_path: Path) -> None:
    dataset(tmp_path)
    with pytest.raises(DataError, match=r"no split 'test' \(it has: train\)"):
        Dataset.open(tmp_path).split("test")


@pytest.mark.parametrize(("size", "word"), [(59, "truncated"), (0, "truncated"), (61, "too long")])
def test_a_file_of_another_size_is_named_at_open(tmp_path: Path, size: int, word: str) -> None:
    dataset(tmp_path)
    path = tmp_path / "train.inputs.bin"
    path.write_bytes((path.read_bytes() + b"\0")[:size])
    with pytest.raises(DataError, match=rf"train.inputs.bin: {word}, {size} bytes where 60 belong"):
        Dataset.open(tmp_path)


def test_a_missing_file_is_named_at_open(tmp_path: Path) -> None:
    dataset(tmp_path)
    (tmp_path / "train.inputs.bin").unlink()
    with pytest.raises(DataError, match=r"train.inputs.bin: No such file .*belongs to train"):
        Dataset.open(tmp_path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    dataset(tmp_path)
    path = tmp_path / "train.inputs.bin"
    data = bytearray(path.read_bytes())
    data[17] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train.inputs.bin: the content has changed"):
        Dataset.open(tmp_path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format=2), "format 2, this version reads format 1"),
        (lambda card: card.pop("inputs"), "inputs say neither"),
        (lambda card: card.update(inputs={"kind": "images"}), "inputs say neither"),
        (lambda card: card.update(inputs=PICTURES | {"height": 0}), "without channels, height and width"),
        (lambda card: card.update(inputs=PICTURES | {"mean": [1.0, 2.0]}), "whose mean is no number"),
        (lambda card: card.update(inputs=PICTURES | {"std": [0.0]}), "whose std is not above 0"),
        (lambda card: card.pop("encoder"), "targets or encoder"),
        (lambda card: card.update(splits={}), "no splits"),
        (lambda card: card["splits"].update(train=7), "split train has no rows"),
        (lambda card: card["splits"]["train"]["arrays"]["inputs"].update(shape=[-1]), "not described"),
        (lambda card: card["splits"]["train"]["arrays"]["inputs"].update(dtype="|O"), "not described"),
        (lambda card: card["splits"]["train"]["arrays"]["inputs"].update(file="../secret"), "not described"),
        (lambda card: card.update(targets={"kind": "values"}), "fingerprint"),
    ],
)
def test_a_damaged_card_is_refused(tmp_path: Path, change, message: str) -> None:
    card = dataset(tmp_path)
    change(card)
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(DataError, match=rf"card.json: .*{message}"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1', "\udcff", "[" * 100_000])
def test_a_card_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"card.json"):
        Dataset.open(tmp_path)


def test_the_fingerprint_is_of_what_can_be_learned(tmp_path: Path) -> None:
    card = dataset(tmp_path)
    assert fingerprint({**card, "notes": ["other"], "sources": ["moved.csv"]}) == card["fingerprint"]
    assert fingerprint({**card, "encoder": {"as": "features", "more": 1}}) != card["fingerprint"]


def test_images_have_channels_and_sides(tmp_path: Path) -> None:
    card = {**dataset(tmp_path), "inputs": PICTURES}
    (tmp_path / CARD).write_text(json.dumps({**card, "fingerprint": fingerprint(card)}))
    assert Dataset.open(tmp_path).inputs == Images(1, 2, 3)


def test_tokens_have_a_vocabulary(tmp_path: Path) -> None:
    card = {**dataset(tmp_path), "inputs": {"kind": "tokens", "vocabulary": 66}}
    (tmp_path / CARD).write_text(json.dumps({**card, "fingerprint": fingerprint(card)}))
    assert Dataset.open(tmp_path).inputs == Tokens(66)
