"""A mixture as a source: its parts one after the other, each row with its part; split each by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtool.core.errors import ConfigError
from llmtool.data import DataConfig
from llmtool.data.mixture import MixtureSource
from llmtool.data.reading import Reading
from llmtool.data.sampling import sampled
from llmtool.data.splitting import RowTable
from llmtool.stages.prepare import prepare


@pytest.fixture
def mixture(tmp_path: Path) -> MixtureSource:
    (tmp_path / "a.csv").write_text("text,kind\n" + "".join(f"alpha {n},x\n" for n in range(10)))
    (tmp_path / "b.jsonl").write_text(
        "".join(f'{{"text": "beta {n}", "more": {n}}}\n' for n in range(5)) + "{\n"
    )
    (tmp_path / "c.txt").write_text("one\ntwo\n" * 800)
    parts = {
        "a": {"format": "csv", "path": str(tmp_path / "a.csv")},
        "b": {"format": "jsonl", "path": str(tmp_path / "b.jsonl")},
        "c": {"format": "text", "path": str(tmp_path / "c.txt")},
        "games": {"format": "othello_random", "games": 3},
    }
    return MixtureSource.model_validate({"format": "mixture", "parts": parts})


def test_ordinals_units_and_files_are_counted_on(mixture: MixtureSource) -> None:
    chunks = list(mixture.read(rows=4))
    ordinals = np.concatenate([chunk.frame.index.to_numpy() for chunk in chunks])
    assert ordinals.tolist() == list(range(len(ordinals)))
    names, of_file = mixture.names(), mixture.part_of_files()
    assert len(names) == len(of_file) == 4
    for chunk in chunks:
        assert chunk.part is not None
        assert set(of_file[chunk.file]) <= {chunk.part}
    rows = Counter(chunk.part for chunk in chunks for _ in range(len(chunk)))
    assert [rows[0], rows[1], rows[3]] == [10, 5, 3]
    assert [(row.reason[:8], chunk.part) for chunk in chunks for row in chunk.bad] == [("not JSON", 1)]
    units = np.concatenate([chunk.unit for chunk in chunks if chunk.part == 2])
    assert set(units.tolist()) == {15}  # the text is one document, which begins at row 15
    assert mixture.columns() == ["text", "kind", "more", "moves"]


def test_each_row_is_known_by_its_part_when_it_is_taken(mixture: MixtureSource) -> None:
    chunk = next(mixture.read())
    assert chunk.take(np.arange(len(chunk)) % 2 == 0).part == 0


def test_a_file_may_stand_in_one_part(mixture: MixtureSource, tmp_path: Path) -> None:
    parts = dict.fromkeys(("a", "again"), mixture.parts["a"])
    with pytest.raises(ConfigError, match=r"parts\.again\.path: .*a\.csv is read in the part a too"):
        MixtureSource(format="mixture", parts=parts).files()


def test_a_rehearsal_takes_some_of_each_part(tmp_path: Path) -> None:
    for name, lines in (("a", 90_000), ("b", 1000)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} line {n}\n" for n in range(lines)))
    parts = {
        name: {"format": "text", "documents": "line", "path": str(tmp_path / f"{name}.txt")} for name in "ab"
    }
    whole = MixtureSource.model_validate({"format": "mixture", "parts": parts})
    some = sampled(whole, 100_000)
    assert not some._sample.whole
    rows = Counter(chunk.part for chunk in some.read() for _ in range(len(chunk)))
    assert rows[1] == 1000
    assert 10_000 < rows[0] < 60_000
    share = (rows[0] / 90_000 * 90 + 1) / 91
    assert abs(some._sample.share() - share) < 0.05
    assert some._sample.bytes == sum(path.stat().st_size for path in whole.files())
    assert sampled(whole, 10**7)._sample.whole


def test_a_card_tells_how_it_was_read_and_no_paths(mixture: MixtureSource, tmp_path: Path) -> None:
    state = Reading(mixture, []).state()
    assert str(tmp_path) not in str(state)
    again = Reading.from_state(state, tmp_path).source
    assert isinstance(again, MixtureSource)
    assert list(again.parts) == ["a", "b", "c", "games"]


# --- splits ---


def table(counts: list[int], value: list[int] | None = None) -> RowTable:
    part = np.repeat(np.arange(len(counts)), counts)
    content = np.stack([np.arange(len(part)), np.arange(len(part))], axis=1).astype(np.uint64)
    found = None if value is None else np.array(value)
    names = [] if value is None else [f"class {n}" for n in range(max(value) + 1)]
    size = np.ones(len(part), np.int64)
    return RowTable(content, None, size, None, found, names, part, [f"part {n}" for n in range(len(counts))])


def data(split: dict[str, Any]) -> Any:
    source = {"format": "text", "path": "x.txt", "documents": "line"}
    return DataConfig.model_validate({"source": source, "split": split, "encode": {"as": "tokens"}}).split


@pytest.mark.parametrize("by", ["random", "order", "stratified"])
def test_every_part_has_its_share_of_every_split(by: str) -> None:
    rows = table([100, 20, 10], [n % 2 for n in range(130)])
    assigned = data({"by": by, "train": 0.8, "validation": 0.1, "test": 0.1}).assign(rows, 3)
    for inside, expected in zip(rows.by_part(), ([80, 10, 10], [16, 2, 2], [8, 1, 1]), strict=True):
        counts = np.bincount(assigned.split[inside], minlength=3)
        assert np.abs(counts - expected).max() <= 1, (by, counts)


def test_copies_in_two_parts_stay_in_one_split() -> None:
    rows = table([40, 40])
    rows.content[40:60] = rows.content[:20]  # the second part repeats half of the first
    for by in ("random", "order"):
        split = data({"by": by, "train": 0.5, "validation": 0.25, "test": 0.25}).assign(rows, 1).split
        assert split[40:60].tolist() == split[:20].tolist(), by


@pytest.mark.parametrize(
    ("parts", "by"),
    [
        ([{"format": "text", "path": "a"}, {"format": "text", "path": "b"}], "order"),
        ([{"format": "text", "path": "a"}, {"format": "jsonl", "path": "b"}], "random"),
        ([{"format": "csv", "path": {"train": "a"}}, {"format": "csv", "path": {"train": "b"}}], "files"),
    ],
)
def test_the_usual_split_follows_from_all_parts(parts: list[dict[str, Any]], by: str) -> None:
    source = {"format": "mixture", "parts": dict(zip("ab", parts, strict=True))}
    assert DataConfig.model_validate({"source": source, "encode": {"as": "tokens"}}).split.by == by


def test_files_named_for_each_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for split, rows in (("train", 6), ("test", 2)):
            text = "".join(f"{name} {split} {n}\n" for n in range(rows))
            (tmp_path / f"{name}.{split}.txt").write_text(text)
    parts = {
        name: {"format": "text", "documents": "line", "path": {
            split: str(tmp_path / f"{name}.{split}.txt") for split in ("train", "test")}}
        for name in ("a", "b")
    }  # fmt: skip
    encode = {"as": "tokens", "tokenizer": {"kind": "characters"}}
    config = DataConfig.model_validate({"source": {"format": "mixture", "parts": parts}, "encode": encode})
    (tmp_path / "out").mkdir()
    result = prepare(config, 0, tmp_path / "out")
    assert {name: part["kept"] for name, part in result.ledger["parts"].items()} == {
        name: {"train": 6, "validation": 0, "test": 2} for name in ("a", "b")
    }
    about = result.card["splits"]["train"]["parts"]
    assert [one["rows"] for one in about.values()] == [6, 6]
    assert result.card["sources"] == [str(tmp_path / f"{n}.{s}.txt") for n in "ab" for s in ("train", "test")]
