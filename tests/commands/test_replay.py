"""A training that diverges, as a user meets it: exit 5, the guilty line, the step made again, the way on."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Ended, Run

TABLE = """\
data:
  source: {format: csv, path: wild.csv}
  split: {by: order, train: 0.9, validation: 0.1, test: 0}
  encode: {as: features, target: answer, scale: none}
model: {family: mlp, hidden: [8]}
train: {budget: {steps: 120}, batch: 8, checkpoint_every: 20}
finetune: {start: runs/wild/train, method: {kind: lora, rank: 2}, budget: {steps: 120}, batch: 8}
"""
LOWER = ("--set", "train.optimizer={name: adamw, lr: 1e-9}")
WILD = 300  # the line, of the file, with the wild number


def table(wild: str) -> str:
    chance = random.Random(3)
    lines = ["a,b,answer"]
    for line in range(2, 802):
        a, b = chance.gauss(0, 1), chance.gauss(0, 1)
        lines.append(f"{wild if line == WILD else round(a, 3)},{b:.3f},{'yes' if a + b > 0 else 'no'}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A table of which one row holds a number a million million times too large."""
    (tmp_path / "wild.yaml").write_text(TABLE)
    (tmp_path / "wild.csv").write_text(table("-3e12"))
    return tmp_path


def wrong(place: Path) -> None:
    """Give the wild row the other answer: whichever the model gives it, one of the two hurts."""
    text = (place / "wild.csv").read_text().splitlines()
    text[WILD - 1] = text[WILD - 1].replace("yes", "NO").replace("no", "yes").replace("NO", "no")
    (place / "wild.csv").write_text("\n".join(text) + "\n")


def diverged(llmtool: Run, place: Path, *more: str, command: str = "train") -> Ended:
    ended = llmtool(command, "wild.yaml", *more, cwd=place)
    if ended.code == 0:
        wrong(place)
        llmtool("prepare", "wild.yaml", cwd=place)
        ended = llmtool(command, "wild.yaml", *more, cwd=place)
    return ended


def test_the_way_of_a_user(place: Path, llmtool: Run) -> None:
    ended = diverged(llmtool, place)
    assert ended.code == 5
    first, replay, skip = (line.removeprefix("llmtool: ") for line in ended.err.splitlines()[-3:])
    assert re.match(r"step \d+: loss .*most of it is the loss of wild\.csv:300 \(row 299 of train\)", first)
    result = json.loads((place / "runs/wild/train/result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("diverged", 5)
    assert result["error"].startswith(first)

    command = shlex.split(replay.removeprefix("make this step again: "))
    assert command[:3] == ["llmtool", "train", "wild.yaml"]
    shown = llmtool(*command[1:], cwd=place)
    assert shown.code == 0, shown.err
    assert shown.out.count("the same") == 2
    assert "wild.csv:300 (row 299 of train) holds a: " in shown.out
    assert "after this update: " in shown.out
    found = llmtool(*command[1:], "--json", cwd=place).json["replay"]
    assert found["same"] is True
    assert found["rows"][0]["a"] == -3e12
    assert json.loads((place / "runs/wild/train/result.json").read_text()) == result  # nothing is written

    lower = llmtool(*command[1:], *LOWER, "--json", cwd=place).json["replay"]
    assert lower["now"] == found["now"]  # the lr decides the update alone
    assert lower["update"]["before"] == found["update"]["before"]
    assert lower["update"]["after"] != found["update"]["after"]

    command = shlex.split(skip.removeprefix("leave such updates out: "))
    done = llmtool(*command[1:], cwd=place)
    assert done.code == 0, done.err
    assert "train.guard.action: stop -> skip" in done.err
    assert re.search(r"goes on from step \d+", done.err)
    result = json.loads((place / "runs/wild/train/result.json").read_text())
    assert result["skipped"] >= 1
    assert f"{result['skipped']} updates were left out" in result["notes"][-1]


def test_finetune_too(place: Path, llmtool: Run) -> None:
    assert llmtool("train", "wild.yaml", "--set", "train.budget.steps=2", cwd=place).code == 0
    ended = diverged(llmtool, place, command="finetune")
    if ended.code == 2:  # the data was prepared anew; so is what is tuned
        assert llmtool("train", "wild.yaml", "--set", "train.budget.steps=2", cwd=place).code == 0
        ended = llmtool("finetune", "wild.yaml", cwd=place)
    assert ended.code == 5, ended.err
    replay, skip = (line.partition(": llmtool ")[2] for line in ended.err.splitlines()[-2:])
    assert skip.endswith("--set finetune.guard.action=skip")
    shown = llmtool(*shlex.split(replay), "--json", cwd=place)
    assert shown.code == 0, shown.err
    assert shown.json["replay"]["same"] is True
    assert any("lora" in name for name in shown.json["replay"]["layers"])


def test_words_for_what_cannot_be_replayed(place: Path, llmtool: Run) -> None:
    ended = llmtool("train", "wild.yaml", "--replay", "runs/nowhere", cwd=place)
    assert ended.code == 2
    assert "--replay runs/nowhere: no refused update here (no bundle.json in it)" in ended.error
    for more in (["--force"], ["--resume"]):
        ended = llmtool("train", "wild.yaml", "--replay", "runs/nowhere", *more, cwd=place)
        assert ended.code == 2
        assert "--replay writes nothing" in ended.error
    ended = llmtool("train", "wild.yaml", "--replay", "x", "--rehearse", cwd=place)
    assert ended.code == 2
    assert "--rehearse and --replay: give one of them" in ended.error


def test_the_guard_can_be_told_what_a_jump_is(place: Path, llmtool: Run) -> None:
    diverged(llmtool, place)
    ended = llmtool("train", "wild.yaml", "--set", "train.guard.spread=null", cwd=place)
    assert ended.code == 0, ended.err
    ended = llmtool("train", "wild.yaml", "--set", "train.guard.spread=0", cwd=place)
    assert ended.code == 2
    assert "train.guard.spread" in ended.error
