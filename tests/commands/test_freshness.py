"""A command whose inputs have not changed does nothing; one that runs again says what changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COMMANDS, Run

Tree = dict[str, tuple[int, int, str]]


def tree(directory: Path) -> Tree:
    """Every file below, with its times and what it holds; locks are touched by whoever looks for one."""
    found = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        held = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (about.st_mtime_ns, about.st_ino, held)
    return found


def changed(before: Tree, after: Tree) -> set[str]:
    """The stages in which anything differs."""
    paths = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return {Path(path).parts[0] for path in paths} - {".lock", ".previous", ".cache"}


def run_all(llmtool: Run, cwd: Path, *more: str, config: str = "table.yaml") -> str:
    """Run all five commands; what they said on stderr."""
    said = ""
    for command in COMMANDS:
        ended = llmtool(command, config, *more, cwd=cwd)
        assert ended.code == 0, ended.err
        said += ended.err
    return said


@pytest.mark.parametrize("project", ["table", "text"])
def test_a_second_time_nothing_is_touched(copy: Path, llmtool: Run, project: str) -> None:
    before = tree(copy)
    assert run_all(llmtool, copy, config=f"{project}.yaml") == ""
    assert tree(copy) == before
    ended = llmtool("train", f"{project}.yaml", cwd=copy)
    assert f"train: nothing has changed; runs/{project}/train stands" in ended.out
    assert "accuracy" in llmtool("evaluate", f"{project}.yaml", cwd=copy).out  # figures are shown again


def test_a_touched_file_with_the_same_bytes_is_no_change(copy: Path, llmtool: Run) -> None:
    before = tree(copy / "runs")
    os.utime(copy / "people.csv")
    text = (copy / "table.yaml").read_text()
    (copy / "table.yaml").write_text(
        "# a comment\n" + text.replace("budget: {steps: 12}", "budget:  {steps: 12}")
    )
    run_all(llmtool, copy)
    assert tree(copy / "runs") == before


def test_a_changed_byte_of_the_input_reruns_everything_that_saw_it(copy: Path, llmtool: Run) -> None:
    text = (copy / "people.csv").read_text().splitlines()
    text[5] = text[5].replace(text[5].split(",")[0], "81", 1)
    (copy / "people.csv").write_text("\n".join(text) + "\n")
    before = tree(copy / "runs/table")
    ended = llmtool("train", "table.yaml", cwd=copy)  # must not train on rows that are not the file's
    assert ended.code == 4
    assert "runs/table/prepare is not the dataset of this file (people.csv: contents changed)" in ended.error
    assert "run `llmtool prepare table.yaml` first" in ended.error
    said = run_all(llmtool, copy)
    assert "prepare: people.csv: contents changed" in said
    assert "train: dataset: contents changed" in said
    assert changed(before, tree(copy / "runs/table")) == set(COMMANDS)
    assert (copy / "runs/table/.previous/train/best/model.safetensors").is_file()
    assert run_all(llmtool, copy) == ""


@pytest.mark.parametrize(
    ("override", "stages", "line"),
    [
        ("evaluate.require={test.accuracy: '>=0.2'}", {"evaluate"}, "require.test.accuracy: >=0.1 -> >=0.2"),
        ("finetune.budget.steps=4", {"describe", "finetune", "evaluate"}, "finetune.budget.steps: 3 -> 4"),
        ("train.optimizer={name: sgd, lr: 0.01}",
         {"describe", "train", "finetune", "evaluate"}, "train: train.optimizer.name: adamw -> sgd"),
        ("model.hidden=[9]",
         {"describe", "train", "finetune", "evaluate"}, "train: model.hidden: [8] -> [9]"),
        ("data.encode.scale=quantile", set(COMMANDS), "prepare: data.encode.scale: standard -> quantile"),
        ("seed=4", set(COMMANDS), "prepare: seed: 3 -> 4"),
    ],
)  # fmt: skip
def test_a_changed_key_reruns_just_what_reads_it(
    copy: Path, llmtool: Run, override: str, stages: set[str], line: str
) -> None:
    before = tree(copy / "runs/table")
    said = run_all(llmtool, copy, "--set", override)
    assert changed(before, tree(copy / "runs/table")) == stages
    assert line in said
    assert run_all(llmtool, copy, "--set", override) == ""


def test_force_runs_again_and_gives_the_same(copy: Path, llmtool: Run) -> None:
    for command, file in (("prepare", "train.inputs.bin"), ("train", "best/model.safetensors")):
        path = copy / "runs/table" / command / file
        before, bytes_before = path.stat().st_ino, path.read_bytes()
        ended = llmtool(command, "table.yaml", "--force", cwd=copy)
        assert ended.code == 0
        assert f"{command}: --force" in ended.err
        assert path.stat().st_ino != before
        assert path.read_bytes() == bytes_before
        assert (copy / "runs/table/.previous" / command / file).read_bytes() == bytes_before
    assert llmtool("evaluate", "table.yaml", cwd=copy).err == ""  # the same weights: still fresh
    ended = llmtool("train", "table.yaml", "--force", "--resume", cwd=copy)
    assert ended.code == 2
    assert "give one of them" in ended.error


def test_a_mistake_costs_no_finished_work(copy: Path, llmtool: Run) -> None:
    """A wrong option writes a failed result.json; the right one brings the old one back, with its time."""
    path = copy / "runs/table/train/result.json"
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    assert llmtool("train", "table.yaml", "--set", "train.batch=0", cwd=copy).code == 2
    assert json.loads(path.read_text())["exit_code"] == 2
    assert llmtool("train", "table.yaml", cwd=copy).code == 0
    assert path.read_bytes() == content
    assert (
        before - 1e9 < path.stat().st_mtime_ns <= before
    )  # no newer: nothing after it in a chain runs again
    path.unlink()  # as Make does with the target of a rule that failed
    assert llmtool("train", "table.yaml", cwd=copy).err == ""
    assert path.read_bytes() == content
    assert before - 1e9 < path.stat().st_mtime_ns <= before
    # tried with other settings, which fail, and gone back to the old ones: the finished run is still there
    assert llmtool("train", "table.yaml", "--set", "train.select={metric: f9, mode: max}", cwd=copy).code == 2
    assert llmtool("train", "table.yaml", cwd=copy).err == ""
    assert path.read_bytes() == content


def test_after_an_unmet_requirement_the_met_one_is_still_good(copy: Path, llmtool: Run) -> None:
    path = copy / "runs/table/evaluate/result.json"
    content = path.read_bytes()
    unmet = ["--set", "evaluate.require={test.accuracy: '>1'}"]
    for _ in range(2):  # what is not met is asked again each time
        ended = llmtool("evaluate", "table.yaml", *unmet, cwd=copy)
        assert ended.code == 3
        assert "test.accuracy is " in ended.error
    path.unlink()
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert ended.code == 0
    assert "nothing has changed" in ended.out
    assert path.read_bytes() == content


def test_a_missing_output_is_made_again(copy: Path, llmtool: Run) -> None:
    (copy / "runs/table/evaluate/report.json").unlink()
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert "report.json: missing" in ended.err
    assert (copy / "runs/table/evaluate/report.json").is_file()
    (copy / "runs/table/prepare/card.json").unlink()
    ended = llmtool("train", "table.yaml", cwd=copy)
    assert ended.code == 0
    assert (copy / "runs/table/prepare/card.json").is_file()


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "time"}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize("project", ["table", "text"])
def test_resume_goes_on_although_the_budget_grew(copy: Path, llmtool: Run, project: str) -> None:
    """With a constant rate 12 steps and then 8 more are the same as 20."""
    common = ["train", f"{project}.yaml", "--set", "train.schedule={name: constant, warmup: 0}"]
    longer = [*common, "--set", "train.budget.steps=20", "--set", "train.checkpoint_every=5"]
    assert llmtool(*common, "--set", "train.checkpoint_every=5", cwd=copy).code == 0
    ended = llmtool(*longer, "--resume", cwd=copy)
    assert ended.code == 0, ended.err
    assert "train.budget.steps: 12 -> 20" in ended.err
    assert "goes on from step 12" in ended.err
    root = copy / "runs" / project
    resumed = (root / "train/last/model.safetensors").read_bytes()
    assert llmtool(*longer, "--force", cwd=copy).code == 0
    assert (root / "train/last/model.safetensors").read_bytes() == resumed
    old, new = (root / stage / "train/metrics.jsonl" for stage in (".previous", "."))
    assert [row["loss"] for row in rows(new) if "loss" in row] == [
        r["loss"] for r in rows(old) if "loss" in r
    ]


def test_without_resume_a_changed_budget_starts_over(copy: Path, llmtool: Run) -> None:
    ended = llmtool("train", "table.yaml", "--set", "train.budget.steps=14", cwd=copy)
    assert ended.code == 0
    assert "goes on" not in ended.err
    assert rows(copy / "runs/table/train/metrics.jsonl")[0]["step"] == 2
    assert (copy / "runs/table/.previous/train/result.json").is_file()
