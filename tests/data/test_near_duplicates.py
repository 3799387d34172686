"""Near-duplicates: which texts leave, counted again in plain Python; chunks and hash seeds do not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import CleanStep
from llmtool.data.cleaning import clean, on_new_rows
from llmtool.data.near_duplicates import FOUND, HASHES, bands, jaccard, leaving, report
from llmtool.data.shingles import bare_words, numbered, padded, runs, spoken
from llmtool.data.sources import Chunk, frame
from tests.data import planted

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
ROOT = Path(__file__).parents[2]


def step(**keys: Any) -> Any:
    return STEP.validate_python({"step": "drop_near_duplicates", "column": "text", **keys})


def chunks(texts: list[Any], size: int) -> Iterator[Chunk]:
    for start in range(0, len(texts), size):
        part = np.arange(start, min(start + size, len(texts)))
        rows = frame(["text"], [[texts[row]] for row in part], part)
        yield Chunk(rows, part, np.zeros(len(part), np.int32), part + 1)


def reader(texts: list[Any], size: int) -> Any:
    return lambda wanted: (one.take(np.isin(one.frame.index, wanted)) for one in chunks(texts, size))


def left(directory: Path, texts: list[Any], size: int = 1000, **keys: Any) -> dict[int, tuple[int, float]]:
    """Row that leaves -> the row that it is like, and their index."""
    about = step(**keys)
    parts = [about.keys(chunk.frame) for chunk in chunks(texts, size)]

    with leaving(about, parts, reader(texts, size), directory) as found:
        document = report(about, found, ["a.jsonl"])
        assert document["removed"] == len(found.rows)
        assert sum((int(size) - 1) * count for size, count in document["sizes"].items()) == len(found.rows)
        for cluster in document["largest"]:
            for one in [cluster["first"], *cluster["like"]]:
                assert one["text"] == spoken(texts[one["line"] - 1])[:160]
        pairs = zip(found.of.tolist(), found.index.tolist(), strict=True)
        return dict(zip(found.rows.tolist(), pairs, strict=True))


def speeches() -> list[str]:
    text = (ROOT / "configs/data/tinyshakespeare.txt").read_text(encoding="utf-8")
    parts = text.split("\n\n")
    blocks = ["\n".join(parts[at : at + 8]) for at in range(0, len(parts), 8)]
    return [block for block in blocks if len(block.split()) >= 100][:400]


def test_planted_copies_leave_and_nothing_else(tmp_path: Path) -> None:
    """Recall at least 0.99 of the copies at the threshold or above, and no text that is less alike leaves."""
    texts, of = planted.near_texts(np.random.default_rng(0), speeches(), 300)
    found = left(tmp_path, texts)
    alike = {row: planted.jaccard(texts[row], texts[first]) for row, first in enumerate(of) if first >= 0}
    wanted = {row for row, index in alike.items() if index >= 0.8}
    assert 100 < len(wanted) < 250  # near the threshold on either side
    stays = [row for row in range(len(texts)) if row not in found]
    missed = [
        row for row in wanted - found.keys()
        # whose original left for another text may stay
        if of[row] not in found or planted.jaccard(texts[row], texts[found[of[row]][0]]) >= 0.8
    ]  # fmt: skip
    assert len(missed) <= 0.01 * len(wanted)
    for row, (first, index) in found.items():
        assert first < row
        assert first in stays
        assert index == pytest.approx(planted.jaccard(texts[row], texts[first]))
        assert index >= 0.8


def test_chunks_and_hash_seeds_do_not_matter(tmp_path: Path) -> None:
    texts, _ = planted.near_texts(np.random.default_rng(1), speeches()[:80], 80)
    whole = left(tmp_path, texts)
    assert len(whole) > 20
    assert left(tmp_path, texts, size=7) == whole
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.data.test_near_duplicates import left\n"
        "here = Path(sys.argv[1]); texts = json.loads((here / 'texts.json').read_text())\n"
        "print(json.dumps(sorted([row, *like] for row, like in left(here, texts, 50).items())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[row, *like] for row, like in sorted(whole.items())]


def test_a_text_leaves_only_for_one_that_is_like_it_itself(tmp_path: Path) -> None:
    """No chain: the third is like the second, which left for the first, and unlike the first."""
    words = [f"w{number}" for number in range(200)]
    second, third = list(words), list(words)
    for at in (20, 60):
        second[at] = third[at] = "x"
    for at in (100, 150):
        third[at] = "y"
    texts = [" ".join(part) for part in (words, second, third)]
    assert planted.jaccard(texts[0], texts[1]) > 0.85 < planted.jaccard(texts[1], texts[2])
    assert planted.jaccard(texts[0], texts[2]) < 0.85
    assert list(left(tmp_path, texts, threshold=0.85)) == [1]
    found = left(tmp_path, [*texts, texts[1].upper(), texts[2]], threshold=0.85)
    index = planted.jaccard(texts[0], texts[1])
    assert found == {1: (0, pytest.approx(index)), 3: (0, pytest.approx(index)), 4: (2, 1.0)}


def test_short_texts_scripts_without_blanks_and_cells_that_are_no_text(tmp_path: Path) -> None:
    poem = "床前明月光疑是地上霜举头望明月低头思故乡" * 2
    other = "红豆生南国春来发几枝愿君多采撷此物最相思白日依山尽黄河入海流"
    texts = [poem, other, poem[:-1] + "鄉", "Yes!", "yes", "No", None, 7, "", "...", "—", "", poem]
    assert {row: like[0] for row, like in left(tmp_path, texts).items()} == {2: 0, 4: 3, 12: 0}
    assert left(tmp_path, ["...", None, "one text"]) == {}
    lists = [
        '["One, two", {"a": "three four five six"}]',
        "one two\nThree four five six",
        "[not json",
        "not JSON",
    ]
    assert {row: like[0] for row, like in left(tmp_path, lists).items()} == {1: 0, 3: 2}


def test_runs_are_those_of_plain_python() -> None:
    texts = ["", "a b c d", "a b c", "x a b c", "a", "Grüße an ALLE", "grüsse an alle", "c d a b c"]
    words, counts = numbered(texts)
    assert counts.tolist() == [len(bare_words(text)) for text in texts]
    for length in (1, 2, 3, 4):
        values, many = runs(words, counts, length)
        expected = [
            tuple(bare_words(text)[at : at + length])
            for text in texts
            for at in range(max(0, len(bare_words(text)) - length + 1))
        ]
        assert many.sum() == len(values) == len(expected)
        numbers = dict(zip(expected, values.tolist(), strict=True))
        assert [numbers[run] for run in expected] == values.tolist()
        assert len(set(numbers.values())) == len(numbers)
    filled = padded(words, counts, 3)
    assert filled[1].tolist() == [0, 4, 3, 4, 3, 3, 3, 5]
    assert runs(*filled, 3)[1].tolist() == [0, 2, 1, 2, 1, 1, 1, 3]
    assert runs(np.zeros(0, np.uint64), np.zeros(0, np.int64), 5)[0].tolist() == []
    assert spoken('{"a": ["x", {"b": "y", "c": 3}]}') == "x\ny"


def test_the_index_is_that_of_sets() -> None:
    random = np.random.default_rng(0)
    one, *others = [np.unique(random.integers(0, 60, int(size)).astype(np.uint64)) for size in (40, 1, 50, 9)]
    sets = [set(other.tolist()) for other in others]
    expected = [len(set(one.tolist()) & other) / len(set(one.tolist()) | other) for other in sets]
    assert jaccard(one, others).tolist() == expected


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    count, size = bands(threshold)
    assert count * size <= HASHES
    chance = 1 - (1 - threshold**size) ** count
    assert chance >= FOUND
    assert size == HASHES or 1 - (1 - threshold ** (size + 1)) ** (HASHES // (size + 1)) < FOUND


def test_wrong_settings_are_errors_that_say_what(monkeypatch: pytest.MonkeyPatch) -> None:
    for keys in ({"threshold": 0.0}, {"threshold": 1.01}, {"threshold": float("nan")}, {"ngram": 0}):
        with pytest.raises(ValidationError, match=next(iter(keys))):
            step(**keys)
    data = next(chunks(["a b c"], 1)).frame
    with pytest.raises(
        ConfigError, match=r"data\.clean\.0: drop_near_duplicates: no column 'txt'; did you mean"
    ):
        clean([step(column="txt")], data)
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match=r"rensa is not installed.*pip install 'llmtool\[corpus\]'"):
        clean([step()], data)


def test_new_rows_and_rows_read_again_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    data = next(chunks(["a b c"], 1)).frame
    assert clean([step()], data, again=True).keys == {}
    assert on_new_rows([step()], ["text"], [], ["text"]) == ([], [])


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    texts = speeches()[:3]
    parts = [step().keys(chunk.frame) for chunk in chunks([*texts, texts[0]], 9)]
    with (
        pytest.raises(DataError, match="changed while it was being prepared"),
        leaving(step(), parts, lambda wanted: chunks(texts, 9), tmp_path),
    ):
        pass


def test_pages_of_one_template_are_told_apart_without_counting_each_pair(tmp_path: Path) -> None:
    """Pages with three fifths of their runs in common all meet; few pairs are left to be counted."""
    random = np.random.default_rng(0)
    template = planted.document(random, 160)
    pages = [
        " ".join([*template, *(f"x{number}" for number in random.integers(10**6, size=50))])
        for _ in range(150)
    ]
    assert 0.55 < planted.jaccard(pages[0], pages[1]) < 0.65
    about = step()
    parts = [about.keys(chunk.frame) for chunk in chunks(pages, 1000)]
    with leaving(about, parts, reader(pages, 1000), tmp_path) as found:
        assert len(found.rows) == 0
        assert found.texts == 150
        assert found.compared < 0.1 * 150 * 149 / 2
