"""`--profile` as a user meets it: the same weights, a trace, a table, and words where nothing is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run

FILE = """\
data:
  source: {format: csv, path: rows.csv}
  split: {by: order, train: 0.8, validation: 0.2, test: 0}
  encode: {as: features, target: answer}
model: {family: mlp, hidden: [8]}
train: {budget: {steps: 20}, batch: 8}
finetune: {start: runs/few/train, method: {kind: head}, budget: {steps: 20}, batch: 8}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "few.yaml").write_text(FILE)
    rows = [f"{n},{n % 5},{'yes' if n % 7 > 3 else 'no'}" for n in range(100)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,answer", *rows]) + "\n")
    return tmp_path


def test_the_same_weights_and_where_time_went(llmtool: Run, place: Path) -> None:
    plain = llmtool("train", "few.yaml", "--set", "run=runs/plain", "--json", cwd=place)
    assert plain.code == 0, plain.err
    ended = llmtool("train", "few.yaml", "--profile", cwd=place)
    assert ended.code == 0, ended.err
    said = " ".join((ended.out + ended.err).split())
    for word in (
        "forward",
        "backward",
        "optimizer",
        "rest",
        "waiting for data",
        "runs/few/train/trace.json.gz",
    ):
        assert word in said, said
    result = json.loads((place / "runs/few/train/result.json").read_text())
    assert result["fingerprints"]["weights"] == json.loads(plain.out)["fingerprints"]["weights"]
    found = json.loads((place / "runs/few/train/profile.json").read_text())
    assert found["steps"] == 8
    assert found["parts"].keys() == {"data", "forward", "backward", "clip", "optimizer", "rest"}

    assert llmtool("report", "runs/few", cwd=place).code == 0
    page = next((place / "runs/few").rglob("report.html"))
    assert "Where the time of a step goes" in page.read_text()

    again = llmtool("train", "few.yaml", "--profile", cwd=place)
    assert again.code == 0
    assert "nothing was recorded" in again.err
    tuned = llmtool("finetune", "few.yaml", "--profile", "--set", "finetune.budget={steps: 4}", cwd=place)
    assert tuned.code == 0, tuned.err
    assert "no profile: only 4 steps were made" in tuned.err
    anew = llmtool("train", "few.yaml", "--force", cwd=place)
    assert anew.code == 0
    assert not (place / "runs/few/train/profile.json").exists()
    (place / "runs/few/finetune/profile.json").write_text('{"steps": 8, "parts": [], "top": 3}')
    assert llmtool("report", "runs/few", cwd=place).code == 0
    assert "Where the time of a step goes" not in page.read_text()


def test_it_records_real_trainings_only(llmtool: Run, place: Path) -> None:
    ended = llmtool("train", "few.yaml", "--profile", "--rehearse", cwd=place)
    assert ended.code == 2
    assert "--profile records a real training: --rehearse runs aside" in ended.err
