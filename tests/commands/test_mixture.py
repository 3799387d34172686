"""A mixture of sources through all commands: counted, split, mixed, resumed and scored by part."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtool.data.batches import open_batches
from llmtool.data.store import Dataset
from llmtool.data.tokenizers import FittedTokenizer
from llmtool.stages.forecast import rows_of
from tests.conftest import Run, story

FILE = """\
seed: 2
data:
  source:
    format: mixture
    parts:
      tales: {format: text, path: story.txt, documents: blank}
      sums: {format: jsonl, path: sums.jsonl}
  encode: {as: tokens, tokenizer: {kind: characters}}
model: {family: transformer, architecture: llama, depth: 1, heads: 2, width: 16, context: 16, dropout: 0.1}
train:
  budget: {epochs: 2}
  mixture: {tales: 1, sums: 3}
  batch: 8
  log_every: 5
"""


def sums(rows: int = 60) -> str:
    chance = random.Random(3)
    lines = []
    for _ in range(rows):
        a, b = chance.randint(100, 999), chance.randint(100, 999)
        lines.append(json.dumps({"text": f"{a} + {b} = {a + b}; {b} + {a} = {a + b}", "level": a % 3}))
    return "\n".join([*lines, lines[0], "{broken"]) + "\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "story.txt").write_text(story(120))
    (tmp_path / "sums.jsonl").write_text(sums())
    (tmp_path / "mix.yaml").write_text(FILE)
    return tmp_path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_the_sources_to_the_figures_of_each_part(place: Path, llmtool: Run) -> None:
    drop = ["--set", "data.clean=[{step: drop_duplicates}]", "--set", "data.max_bad=0.1"]
    ended = llmtool("train", "mix.yaml", *drop, cwd=place)
    assert ended.code == 0, ended.err
    ledger = read(place / "runs/mix/prepare/ledger.json")
    tales, parts = ledger["parts"]["tales"], ledger["parts"]
    assert tales == {
        "read": 120,
        "kept": {"train": 96, "validation": 12, "test": 12},
        "dropped": {},
        "quarantined": {},
    }
    assert parts["sums"]["read"] == 62
    assert parts["sums"]["kept"] == {"train": 48, "validation": 6, "test": 6}
    assert parts["sums"]["dropped"] == {"duplicate": 1}
    assert sum(parts["sums"]["quarantined"].values()) == 1
    for kind in ("kept", "dropped", "quarantined"):
        for name, count in ledger[kind].items():
            assert count == sum(part[kind].get(name, 0) for part in parts.values()), (kind, name)

    card = read(place / "runs/mix/prepare/card.json")
    about = card["splits"]["train"]["parts"]
    assert [about[name]["rows"] for name in ("tales", "sums")] == [96, 48]
    assert sum(one["tokens"] for one in about.values()) == card["splits"]["train"]["tokens"]
    assert math.isclose(sum(one["share"] for one in about.values()), 1)

    # what was learned from is three quarters sums, though the tales are longer
    assert about["tales"]["tokens"] > about["sums"]["tokens"]
    batches = open_batches(Dataset.open(place / "runs/mix/prepare"), "train", 2, 16, {"tales": 1, "sums": 3})
    weights = {"tales": 1, "sums": 0}
    alone = open_batches(Dataset.open(place / "runs/mix/prepare"), "train", 2, 16, weights)
    assert rows_of(card, "train", 1.0, 16, weights) == alone.rows < batches.rows
    assert rows_of(card, "train", 1.0, 16, {"tales": 1, "sums": 3}) == batches.rows
    digits = [bool(set("0123456789") & set(text)) for text in _texts(place, batches.batch(0, 400).inputs)]
    assert sum(digits) == 300
    steps = lines_of(place / "runs/mix/train/metrics.jsonl")
    last = [row for row in steps if "seen" in row][-1]
    assert last["seen"] == batches.seen(last["step"] * 8)  # type: ignore[attr-defined]
    assert last["seen"]["sums"] > 2 > last["seen"]["tales"]
    assert math.isclose(last["epoch"], 2, rel_tol=0.1)
    result = read(place / "runs/mix/train/result.json")
    assert result["seen"] == batches.seen(result["steps"] * 8)  # type: ignore[attr-defined]
    validated = next(row["validation"] for row in steps if "validation" in row)
    assert {"loss", "tales.loss", "sums.loss"} <= set(validated)

    ended = llmtool(
        "evaluate", "mix.yaml", *drop, "--set", "evaluate.require={test.sums.loss: <5}", cwd=place
    )
    assert ended.code == 0, ended.err
    assert "parts of test" in ended.out
    report = read(place / "runs/mix/evaluate/report.json")
    for split, whole in report["metrics"].items():
        parts = report["parts"][split]
        tokens = {name: one["tokens"] - one["rows"] for name, one in card["splits"][split]["parts"].items()}
        mean = sum(parts[name]["metrics"]["loss"] * tokens[name] for name in tokens) / sum(tokens.values())
        assert math.isclose(mean, whole["loss"], rel_tol=1e-6)
    again = llmtool(
        "evaluate", "mix.yaml", *drop, "--set", "evaluate.require={test.sums.loss: <0.01}", cwd=place
    )
    assert again.code == 3
    unknown = llmtool(
        "evaluate", "mix.yaml", *drop, "--set", "evaluate.require={test.sums.f1: <1}", cwd=place
    )
    assert unknown.code == 2
    assert "there is no figure 'f1'" in unknown.error


def _texts(place: Path, inputs: Any) -> list[str]:
    directory = place / "runs/mix/prepare"
    tokenizer = FittedTokenizer.from_state(read(directory / "card.json")["encoder"]["tokenizer"], directory)
    return [tokenizer.decode(ids) for ids in inputs.tolist()]


def test_other_weights_train_anew_on_the_same_dataset(place: Path, llmtool: Run) -> None:
    short = ["--set", "train.budget={steps: 4}", "--set", "data.max_bad=0.1"]
    assert llmtool("train", "mix.yaml", *short, cwd=place).code == 0
    card = place / "runs/mix/prepare/card.json"
    before = card.stat().st_mtime_ns
    ended = llmtool("train", "mix.yaml", *short, "--set", "train.mixture.tales=0.5", cwd=place)
    assert ended.code == 0, ended.err
    assert "train.mixture.tales: 1.0 -> 0.5" in ended.err
    assert card.stat().st_mtime_ns == before
    ended = llmtool("train", "mix.yaml", *short, "--set", "train.mixture.tales=0.5", cwd=place)
    assert "nothing has changed" in ended.out


def test_a_resumed_run_of_other_micro_batches_sees_the_same_rows(place: Path, llmtool: Run) -> None:
    every = ["--set", "data.max_bad=0.1", "--set", "train.checkpoint_every=6", "--set", "model.dropout=0"]
    every += ["--set", "train.schedule={name: constant}", "--set", "train.log_every=3"]
    twelve, six = (["--set", f"train.budget={{steps: {steps}}}"] for steps in (12, 6))
    assert llmtool("train", "mix.yaml", *every, *twelve, cwd=place).code == 0
    whole = [row for row in lines_of(place / "runs/mix/train/metrics.jsonl") if "loss" in row]
    (place / "runs/mix/train").rename(place / "whole")
    small = [*every, "--set", "train.micro_batch=2"]
    assert llmtool("train", "mix.yaml", *small, *six, cwd=place).code == 0
    ended = llmtool("train", "mix.yaml", *small, *twelve, "--resume", cwd=place)
    assert ended.code == 0, ended.err
    assert "goes on from step 6" in ended.err
    found = [row for row in lines_of(place / "runs/mix/train/metrics.jsonl") if "loss" in row]
    assert [row["seen"] for row in found] == [row["seen"] for row in whole]
    assert np.allclose([row["loss"] for row in found], [row["loss"] for row in whole], rtol=1e-5)


def test_without_weights_every_row_counts_once(place: Path, llmtool: Run) -> None:
    plain = ["--set", "train.mixture=null", "--set", "train.budget={steps: 2}", "--set", "data.max_bad=0.1"]
    ended = llmtool("train", "mix.yaml", *plain, cwd=place)
    assert ended.code == 0, ended.err
    assert "seen" not in read(place / "runs/mix/train/result.json")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.mixture={tales: 1}", "no weight for the part sums"),
        ("train.mixture={tales: 1, sum: 1}", "did you mean"),
        ("train.mixture={tales: 0, sums: 0}", "some part needs a weight above 0"),
        ("train.mixture={tales: 1, sums: 1e-9}", "less than a row in a million"),
        ("train.mixture.tales=-1", "greater than or equal to 0"),
        ("data.source.parts.sums.pth=x", "did you mean"),
        ("data.source.parts.sums={format: jsonl, path: {train: a.jsonl}}", "all parts do, or none does"),
        ("data.source.parts={tales: {format: text, path: story.txt}}", "at least 2"),
        ("data.source.parts.sums={format: mixture, parts: {}}", "not a choice"),
        ("data.source={format: text, path: story.txt}", "mixes the parts of a mixture"),
    ],
)
def test_mistakes_are_named_where_they_stand(place: Path, llmtool: Run, override: str, said: str) -> None:
    ended = llmtool("train", "mix.yaml", "--set", override, cwd=place)
    assert ended.code == 2, ended.err
    assert said in ended.error


def test_a_file_in_two_parts_is_refused(place: Path, llmtool: Run) -> None:
    twice = "data.source.parts.sums={format: text, path: ./story.txt}"
    ended = llmtool("prepare", "mix.yaml", "--set", twice, cwd=place)
    assert ended.code == 2
    assert "story.txt is read in the part tales too" in ended.error


def test_a_part_that_a_split_has_nothing_of_is_told_of(place: Path, llmtool: Run) -> None:
    (place / "one.txt").write_text(story(800, seed=9))
    one = "data.source.parts.book={format: text, path: one.txt}"
    more = ["--set", one, "--set", "train.mixture=null", "--set", "data.max_bad=0.1"]
    ended = llmtool("prepare", "mix.yaml", *more, cwd=place)
    assert ended.code == 0, ended.err
    assert "the part book has nothing in validation and test (split: {by: order}" in ended.out
    ended = llmtool("prepare", "mix.yaml", *more, "--set", "data.split={by: order}", cwd=place)
    assert ended.code == 0, ended.err
    ledger = read(place / "runs/mix/prepare/ledger.json")
    assert all(min(part["kept"].values()) > 0 for part in ledger["parts"].values())


def test_a_table_of_two_files_learned_in_other_shares(tmp_path: Path, llmtool: Run) -> None:
    chance = random.Random(1)
    for name, rows in (("old", 120), ("new", 60)):
        lines = [f"{chance.random():.3f},{chance.random():.3f},{chance.choice('ab')}" for _ in range(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,z,y", *lines]) + "\n")
    (tmp_path / "table.yaml").write_text(
        "data:\n"
        "  source:\n    format: mixture\n"
        "    parts: {old: {format: csv, path: old.csv}, new: {format: csv, path: new.csv}}\n"
        "  split: {by: stratified}\n"
        "  encode: {as: features, target: y}\n"
        "model: {family: mlp, hidden: [4]}\n"
        "train: {budget: {steps: 20}, batch: 16, mixture: {old: 1, new: 1}}\n"
    )
    ended = llmtool("train", "table.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    seen = read(tmp_path / "runs/table/train/result.json")["seen"]
    assert math.isclose(seen["new"], 2 * seen["old"], rel_tol=0.1)
    ended = llmtool("evaluate", "table.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    report = read(tmp_path / "runs/table/evaluate/report.json")
    assert set(report["parts"]["test"]) == {"old", "new"}
    hits = sum(one["metrics"]["accuracy"] * one["units"] for one in report["parts"]["test"].values())
    assert math.isclose(hits, report["metrics"]["test"]["accuracy"] * report["rows"]["test"])
