"""Steps over the whole source, through `prepare`: the account of each row that leaves, and of why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import DataConfig, data_files, data_hashes
from llmtool.stages.prepare import PrepareResult, prepare
from tests.data import planted

NEAR = {"step": "drop_near_duplicates", "column": "text"}


def put(path: Path, texts: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps({"id": row, "text": text}) for row, text in enumerate(texts)))
    return path


def config(path: Any, *steps: dict[str, Any], **keys: Any) -> DataConfig:
    path = {name: str(one) for name, one in path.items()} if isinstance(path, dict) else str(path)
    encode = {"as": "tokens", "text": "text", "tokenizer": {"kind": "characters"}}
    data = {"source": {"format": "jsonl", "path": path}, "clean": list(steps), "encode": encode, **keys}
    return DataConfig.model_validate(data)


def run(data: DataConfig, tmp_path: Path) -> tuple[PrepareResult, list[dict[str, Any]]]:
    directory = tmp_path / "prepare"
    directory.mkdir(exist_ok=True)
    result = prepare(data, 0, directory)
    lines = [json.loads(line) for line in (directory / "removed.jsonl").read_text().splitlines()]
    return result, lines


def texts(count: int, words: int = 60) -> list[str]:
    random = np.random.default_rng(7)
    return [" ".join(planted.document(random, words)) for _ in range(count)]


def test_each_removal_is_named_with_its_reason(tmp_path: Path) -> None:
    some = texts(40)
    near = some[3].split()
    near[-1] = "changed"
    against = tmp_path / "eval.txt"
    against.write_text(f"too short\n\nNow:\n{some[5][:200]}")
    rows = [*some, some[3], " ".join(near), some[4].title(), some[5], "..."]
    steps = [
        {"step": "require", "columns": ["id"]},
        {"step": "drop_duplicates", "columns": ["text"]},
        {"step": "decontaminate", "column": "text", "against": [str(against)]},
        NEAR,
    ]
    data = config(put(tmp_path / "a.jsonl", rows), *steps, max_bad=0.1)
    result, lines = run(data, tmp_path)
    assert result.ledger["dropped"] == {"duplicate": 2, "near-duplicate": 2, "contaminated": 1}
    assert [(one["step"], one["reason"], one["line"]) for one in lines] == [
        ("data.clean.2", "contaminated", 6),
        ("data.clean.3", "near-duplicate", 42),
        ("data.clean.3", "near-duplicate", 43),
    ]
    assert lines[0]["against"] == {"file": str(against), "line": 3}
    assert lines[0]["ngram"] == " ".join(some[5].split()[:13])
    source = str(tmp_path / "a.jsonl")
    assert lines[1]["of"] == {"file": source, "line": 4}
    assert lines[1]["jaccard"] == round(planted.jaccard(some[3], " ".join(near)), 4)
    assert (lines[2]["of"], lines[2]["jaccard"]) == ({"file": source, "line": 5}, 1.0)
    clusters = json.loads((tmp_path / "prepare/near_duplicates.json").read_text())
    assert [(one["step"], one["removed"], one["sizes"]) for one in clusters] == [
        ("data.clean.3", 2, {"2": 2})
    ]
    assert result.ledger["contaminated"][0]["rows"] == {str(against): 1}
    assert result.ledger["near_duplicates"][0]["removed"] == 2
    notes = "\n".join(result.notes)
    assert "data.clean.2: dropped 1 row for 13 words in a row that stand in evaluation text" in notes
    assert "1 of 2 texts of" in notes
    assert "data.clean.3: dropped 2 of 41 texts as nearly the same" in notes
    again = config(tmp_path / "a.jsonl", {"step": "drop_duplicates", "columns": ["text"]}, max_bad=0.1)
    result = prepare(again, 0, tmp_path / "prepare")
    assert not (tmp_path / "prepare/removed.jsonl").exists()  # of the run before
    assert not (tmp_path / "prepare/near_duplicates.json").exists()
    assert result.ledger["dropped"] == {"duplicate": 2}


def test_large_sources_read_in_chunks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtool.data.json_sources import JsonlSource
    from llmtool.stages import rows

    made, _ = planted.near_texts(np.random.default_rng(3), texts(150), 100)
    join = {"step": "normalize", "columns": ["text"], "lower": True}
    data = config(put(tmp_path / "a.jsonl", made), join, NEAR)
    whole, lines = run(data, tmp_path)
    assert len(lines) > 30
    read = JsonlSource.read
    monkeypatch.setattr(JsonlSource, "read", lambda self, rows=7: read(self, 7))
    monkeypatch.setattr(rows, "SMALL", 0)
    parts, again = run(data, tmp_path)
    assert again == lines
    assert (parts.ledger, parts.card["splits"]) == (whole.ledger, whole.card["splits"])


def test_quarantined_rows_stay_quarantined(tmp_path: Path) -> None:
    some = texts(30)
    rows = [*some, some[0], some[1]]
    path = put(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text().replace('"id": 30,', '"id": "x",'))
    number = {"step": "types", "columns": {"id": "number"}}
    result, lines = run(config(path, NEAR, number, max_bad=0.1), tmp_path)
    assert result.ledger["dropped"] == {"near-duplicate": 1}
    assert result.ledger["quarantined"] == {"id is not a number": 1}
    assert [one["line"] for one in lines] == [32]


def test_train_is_compared_with_the_files_of_test(tmp_path: Path) -> None:
    some = texts(60)
    seen = f"as I read somewhere {some[40][:120]} and so on"
    train = put(tmp_path / "train.jsonl", [*some[:40], seen])
    test = put(tmp_path / "test.jsonl", [*some[40:], some[41]])
    step = {"step": "decontaminate", "column": "text"}
    lower = {"step": "normalize", "columns": ["text"], "lower": True}
    result, lines = run(config({"train": train, "test": test}, lower, step), tmp_path)
    assert result.ledger["dropped"] == {"contaminated": 1}
    assert result.ledger["kept"]["test"] == 21  # what stands there twice is no matter of this step
    assert (lines[0]["file"], lines[0]["line"]) == (str(train), 41)
    assert lines[0]["against"] == {"file": str(test), "line": 1}
    put(tmp_path / "other.jsonl", [f"so {some[50]}", f"so {some[3]}"])
    step |= {"against": [str(tmp_path / "other.jsonl")]}
    result, lines = run(config({"train": train, "test": test}, lower, step), tmp_path)
    assert [(one["file"], one["line"]) for one in lines] == [(str(train), 4), (str(train), 41)]


def test_evaluation_files_are_inputs_of_prepare(tmp_path: Path) -> None:
    against = tmp_path / "eval.txt"
    against.write_text("a b c")
    step = {"step": "decontaminate", "column": "text", "against": [str(against)]}
    data = config(put(tmp_path / "a.jsonl", texts(3)), step)
    assert data_files(data) == [tmp_path / "a.jsonl", against]
    before = data_hashes(data)
    against.write_text("a b d")
    after = data_hashes(data)
    assert {path for path in before if before[path] != after[path]} == {str(against)}
    against.unlink()
    with pytest.raises(DataError, match=r"against: .*eval\.txt: no such file"):
        data_hashes(data)


@pytest.mark.parametrize("step", ["drop_near_duplicates", "decontaminate"])
def test_a_column_without_text_is_refused(tmp_path: Path, step: str) -> None:
    (tmp_path / "eval.txt").write_text("some words")
    more = {"against": [str(tmp_path / "eval.txt")]} if step == "decontaminate" else {}
    data = config(put(tmp_path / "a.jsonl", texts(3)), {"step": step, "column": "id", **more})
    with pytest.raises(ConfigError, match=rf"data\.clean\.0: {step}: no text in column 'id'"):
        run(data, tmp_path)


def test_reports_hide_what_personal_data_looks_for(tmp_path: Path) -> None:
    some = [f"Write to anna.{number}@example.org now. {text}" for number, text in enumerate(texts(30))]
    against = tmp_path / "eval.txt"
    against.write_text(some[9])
    steps = [
        {"step": "decontaminate", "column": "text", "against": [str(against)]},
        NEAR,
        {"step": "personal_data", "do": "redact", "kinds": ["email"]},
    ]
    result, lines = run(config(put(tmp_path / "a.jsonl", [*some, some[3]]), *steps), tmp_path)
    assert result.ledger["dropped"] == {"near-duplicate": 1, "contaminated": 1}
    assert lines[0]["ngram"].startswith("write to <EMAIL> now")
    shown = (tmp_path / "prepare/near_duplicates.json").read_text()
    assert "Write to <EMAIL> now" in shown
    assert "example" not in shown
