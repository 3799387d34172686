"""What leaks is written down or refused; and nothing of validation or test reaches what train produced."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtool.core.errors import DataError
from llmtool.data import DataConfig
from llmtool.data.overlap import overlap
from llmtool.data.store import Dataset
from llmtool.stages.prepare import prepare
from tests.conftest import Run, people, story
from tests.data import planted


def prepared(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    result = prepare(DataConfig.model_validate(config), 0, directory)
    return json.loads((directory / "leakage.json").read_text()) | {"notes": result.notes}


def leaky(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    text = io.StringIO()
    writer = csv.writer(text)
    for number, line in enumerate(people().splitlines()):
        income = line.rsplit(",", 1)[1]
        writer.writerow([*line.split(","), "payout" if not number else 100 if income == "high" else 0])
    (tmp_path / "people.csv").write_text(text.getvalue())
    source = {"format": "csv", "path": str(tmp_path / "people.csv")}
    return {"source": source, "encode": {"as": "features", "target": "income"}, **keys}


def test_texts_are_compared_in_the_columns_that_like_takes_over(tmp_path: Path) -> None:
    rows = "".join(f"the review number {n % 9} of a film that some people saw,{n % 2}\n" for n in range(40))
    (tmp_path / "a.csv").write_text("review,stars\n" + rows)
    source = {"format": "csv", "path": str(tmp_path / "a.csv")}
    encode = {"as": "text", "text": "review", "target": "stars"}
    first = prepared({"source": source, "encode": encode}, tmp_path / "first")
    encode = {"as": "text", "target": "stars", "like": str(tmp_path / "first")}
    assert prepared({"source": source, "encode": encode}, tmp_path / "second")["rows"] == first["rows"]


def test_a_leak_is_reported_or_refused(tmp_path: Path) -> None:
    found = prepared(leaky(tmp_path), tmp_path / "a")
    assert [finding["kind"] for finding in found["findings"]] == ["gives_target_away"]
    assert found["findings"][0]["columns"] == ["payout"]
    assert any("'payout' alone gives 'income' away" in note for note in found["notes"])
    with pytest.raises(DataError, match=r"data.leakage: 'payout' alone gives .*ignore: \[payout\]"):
        prepared(leaky(tmp_path, leakage="refuse"), tmp_path / "b")
    assert not (tmp_path / "b/card.json").exists()
    config = leaky(tmp_path, leakage="refuse")
    config["encode"]["ignore"] = ["payout"]
    assert prepared(config, tmp_path / "c")["findings"] == []


def test_documents_that_nearly_stand_in_train_are_found(tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    texts, _, _ = planted.documents(random_, 200, 20, 0.05)
    (tmp_path / "text.txt").write_text("\n".join(texts))
    config = {
        "source": {"format": "text", "path": str(tmp_path / "text.txt"), "documents": "line"},
        "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}},
        "leakage": "refuse",
    }
    with pytest.raises(DataError, match=r"documents of (validation|test) looked at are nearly the same"):
        prepared(config, tmp_path / "a")


def test_runs_shared_with_the_training_text_are_counted(tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    train = [" ".join(planted.document(random_, 60)) for _ in range(60)]
    test = [" ".join(planted.document(random_, 60)) for _ in range(40)]
    for row in range(0, 40, 4):  # ten of forty quote a train document
        test[row] = f"{test[row]} {train[row][20:90]} and more"
    for name, texts in (("train", train), ("test", test)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    files = {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
    source = {"format": "text", "path": files, "documents": "line"}
    config = {"source": source, "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}}}
    prepared(config, tmp_path / "a")
    found = overlap(Dataset.open(tmp_path / "a"), "test")
    assert (found["run"], found["units"], found["shared"]) == (50, 40, 10)
    assert {unit % 4 for unit, _, _ in found["examples"]} == {0}
    unit, first, end = found["examples"][0]
    assert (unit, end - first) == (0, 50)
    everything = overlap(Dataset.open(tmp_path / "a"), "train")
    assert (everything["share"], everything["runs_shared"]) == (1.0, 1.0)


# --- the proof ---

TABLE = """\
seed: 3
data:
  source: {format: csv, path: {train: train.csv, validation: validation.csv, test: test.csv}}
  encode: {as: features, target: income}
model: {family: mlp, hidden: [8], dropout: 0.1}
train: {budget: {steps: 12}, batch: 16, log_every: 1, validate_every: 4}
"""
TEXT = """\
data:
  source:
    format: text
    path: {train: train.txt, validation: validation.txt, test: test.txt}
    documents: blank
  encode: {as: tokens, tokenizer: {kind: bpe, vocabulary: 300}}
model: {family: transformer, architecture: llama, depth: 1, heads: 2, width: 16, context: 16}
train: {budget: {steps: 8}, batch: 4, log_every: 1, validate_every: 4}
"""


def of_train(root: Path) -> dict[str, Any]:
    """Everything that train produced from train rows: arrays, encoder, weights, optimizer, losses.

    Left out: validation figures, and which checkpoint they chose as the best.
    """
    card = json.loads((root / "prepare/card.json").read_text())
    found: dict[str, Any] = {key: card[key] for key in ("inputs", "targets", "encoder")}
    found |= {path.name: path.read_bytes() for path in sorted((root / "prepare").glob("train.*.bin"))}
    found |= {path.name: path.read_bytes() for path in (root / "prepare").glob("tokenizer*")}
    last = root / "train/last"
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        found[name] = (last / name).read_bytes()
    rows = [json.loads(line) for line in (root / "train/metrics.jsonl").read_text().splitlines()]
    found["losses"] = [{k: v for k, v in row.items() if k != "time"} for row in rows if "loss" in row]
    assert len(found["losses"]) >= 8
    return found


def run(llmtool: Run, directory: Path) -> dict[str, Any]:
    for command in ("prepare", "train"):
        ended = llmtool(command, "c.yaml", "--force", cwd=directory)
        assert ended.code == 0, ended.err
    return of_train(directory / "runs/c")


def changed_cell(chance: random.Random, rows: list[list[str]]) -> None:
    row, column = chance.randrange(1, len(rows)), chance.randrange(5)
    rows[row][column] = chance.choice(
        [
            ["1e6", "-3", "", "18"],
            ["99.9", "", "-1e5"],
            ["Genf", "", "?"],
            ["yes", "perhaps"],
            ["high", "low"],
        ][column]
    )


def test_no_cell_of_validation_or_test_reaches_what_train_produced(tmp_path: Path, llmtool: Run) -> None:
    lines = people(200).splitlines()
    parts = {"train": lines[1:141], "validation": lines[141:171], "test": lines[171:]}
    cells = {name: [line.split(",") for line in [lines[0], *part]] for name, part in parts.items()}
    (tmp_path / "c.yaml").write_text(TABLE)

    def write() -> None:
        for name, rows in cells.items():
            (tmp_path / f"{name}.csv").write_text("\n".join(",".join(row) for row in rows))

    write()
    before = run(llmtool, tmp_path)
    chance = random.Random(0)
    for name in ("validation", "test", "validation", "test"):
        for _ in range(15):
            changed_cell(chance, cells[name])
        write()
        assert run(llmtool, tmp_path) == before
    cells["train"][5][0] = "80"  # and the proof can fail
    write()
    assert run(llmtool, tmp_path) != before


def test_no_word_of_validation_or_test_reaches_what_train_produced(tmp_path: Path, llmtool: Run) -> None:
    parts = {name: story(30, seed) for seed, name in enumerate(("train", "validation", "test"))}
    (tmp_path / "c.yaml").write_text(TEXT)
    for name, text in parts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    before = run(llmtool, tmp_path)
    for name in ("validation", "test"):
        (tmp_path / f"{name}.txt").write_text(parts[name].replace("king", "Kaiser ⚑ zzz zzz zzz"))
        assert run(llmtool, tmp_path) == before
    (tmp_path / "train.txt").write_text(parts["train"].replace("king", "emperor", 1))
    assert run(llmtool, tmp_path) != before
