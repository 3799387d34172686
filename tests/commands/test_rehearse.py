"""`--rehearse`: planted faults are found aside, in seconds; the run is not touched; sound files pass."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool.commands import rehearse
from llmtool.core.run import Run as Stage
from llmtool.data import sampling
from llmtool.stages import subject
from tests.conftest import Run, people

CSV = people()
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@dataclass
class Fault:
    """What is wrong, and how the rehearsal ends: exit code, stage ("" for the file itself), message."""

    code: int
    stage: str
    said: str
    sets: list[str] = field(default_factory=list)
    files: dict[str, str | bytes] = field(default_factory=dict)
    project: str = "table"


# Every command would meet these, some after hours.
CAUGHT: dict[str, Fault] = {
    # the file
    "misspelt key": Fault(2, "", r'wieght_decay: unknown key; did you mean "weight_decay"',
                          ["train.optimizer={name: adamw, wieght_decay: 1}"]),
    "heads do not divide the width": Fault(2, "", r"width 16 is not a multiple of heads 3",
                                           ["model.heads=3"], project="text"),
    "model takes other data": Fault(2, "", r"'transformer' takes tokens; data.encode gives features",
                                    ["model={family: transformer, depth: 1, heads: 1, width: 8}"]),
    "family of other data": Fault(2, "", r"'vit' takes images; data\.encode gives features",
                                       ["model={family: vit}"]),
    # the place
    "run directory cannot be": Fault(2, "run directory", r"run: people\.csv/x: not a directory",
                                     ["run=people.csv/x"]),
    # the data
    "column that is not there": Fault(2, "prepare", r'table\.yaml:5:\d+: .*incme.*did you mean "income"',
                                      files={"table.yaml": "incme"}),
    "file that is not there": Fault(4, "prepare", r"none\.csv: no such file", ["data.source.path=none.csv"]),
    "file that is no file": Fault(4, "prepare", r"/dev/null: not a regular file",
                                  ["data.source.path=/dev/null"]),
    "wrong encoding": Fault(4, "prepare", r"people\.csv, line \d+: not valid utf-8",
                            files={"people.csv": CSV.replace("Zug", "Z\u00fcrich").encode("latin-1")}),
    "damaged gz": Fault(4, "prepare", r"people\.csv\.gz: .*(ends in the middle|CRC|invalid)",
                        ["data.source.path=people.csv.gz"],
                        {"people.csv.gz": gzip.compress(CSV.encode())[:-300]}),
    "one class": Fault(4, "prepare", r"every train row is of one class, 'low'",
                       files={"people.csv": CSV.replace("high", "low")}),
    "every row is bad": Fault(4, "prepare", r"300 of 300 rows are bad.*line 2: 6 fields",
                              files={"people.csv": CSV.replace(",low", ",low,").replace(",high", ",high,")
                                     .replace("member,income", "member,income")}),
    "words where numbers are to be learned": Fault(4, "prepare", r"income",
                                                   ["data.encode.target_kind=values",
                                                    "data.split={by: random}"]),
    "split column that is not there": Fault(2, "prepare", r"data\.split\.on: .*'incme'",
                                            ["data.split={by: grouped, on: incme, train: 0.8, test: 0.2}"]),
    # the model and the machine
    "no such device": Fault(2, "describe", r"device: cuda was asked for, but", ["device=cuda"]),
    "no such precision": Fault(2, "describe", r"precision: tf32 is a format of NVIDIA GPUs",
                               ["device=cpu", "precision=tf32"]),
    "regression on classes": Fault(2, "describe", r"task\.kind: regression", ["task={kind: regression}"]),
    "too large a batch": Fault(6, "train: plan", r"train: 200 rows at once, with .* does not fit in 20\.0 MB "
                               r"\(needs .*; smallest change that does: .* \(needs .*: --set train\.\w+=\w+$",
                               ["model.hidden=[8192]", "train.batch=200", "train.micro_batch=200",
                                "train.activation_checkpointing=none"]),
    "text too short for the context": Fault(4, "train: plan", r"too short: the model's context needs 90001",
                                            ["model.context=90000"], project="text"),
    "budget in tokens of a table": Fault(2, "describe", r"budget\.tokens counts tokens",
                                         ["train.budget={tokens: 1000}"]),
    # training
    "rate at which the loss is not finite": Fault(5, "train", r"not finite.*this update was not made",
                                                  ["train.optimizer={name: adamw, lr: 1e30}"]),
    "early stopping without validation": Fault(2, "train", r"stop: needs validation scores",
                                               ["data.split={by: random, train: 0.8, test: 0.2}",
                                                "train.stop={patience: 2}", "finetune=null"]),
    "figure to select by that is not there": Fault(2, "train", r"select\.metric: 'f11' is not a figure",
                                                   ["train.select={metric: f11, mode: max}"]),
    "nothing for the optimizer": Fault(2, "train", r"optimizer muon: this model trains no hidden matrix",
                                       ["model.hidden=[]", "train.optimizer={name: muon}", "finetune=null"]),
    # fine-tuning and scoring
    "start that is not there": Fault(2, "finetune: plan", r"finetune\.start: runs/none: no checkpoint here",
                                     ["finetune.start=runs/none", "train=null"]),
    "layer for LoRA that is not there": Fault(2, "finetune", r"finetune\.method\.targets: .*'qproj'",
                                              ["finetune.method={kind: lora, rank: 2, targets: [qproj]}"]),
    "required figure that is not there": Fault(2, "train", r"evaluate\.require: .*'f11'.*mean \"f1\"",
                                               ["evaluate.require={test.f11: '>0'}", "finetune=null"]),
    "texts of a model of tables": Fault(2, "evaluate", r"evaluate\.samples: is for language models",
                                        ["evaluate.samples={prompts: [a]}", "finetune=null"]),
    "disk full soon": Fault(1, "disk", r"the disk would be full: the run needs about [\d.]+ TB .*are free",
                            ["train.budget={steps: 2000000000}", "train.checkpoint_every=1",
                             "train.keep=1000000000", "finetune=null"]),
}  # fmt: skip

# What no minute on a sample can know: why, and how the real command then ends. (Rows between the stretches
# of a sampled source are a third case: test_a_large_source_is_sampled_with_its_end.)
MISSED: dict[str, tuple[str, list[str], str, int]] = {
    "a requirement that will not be reached": (
        "figures after six steps say nothing about those after the whole training",
        ["evaluate.require={test.accuracy: '>=1'}", "finetune=null"],
        "evaluate", 3,
    ),
    "a rate that diverges late": (
        "decay beyond 2 doubles the weights at every step: after six steps they are still finite",
        ["train.optimizer={name: sgd, lr: 1, momentum: 0, weight_decay: 3.5}", "train.budget.steps=300",
         "train.schedule={name: constant}", "finetune=null"],
        "train", 5,
    ),
}  # fmt: skip


def plant(directory: Path, fault: Fault) -> None:
    for name, content in fault.files.items():
        path = directory / name
        if name.endswith(".yaml"):  # a word in the place of the target
            content = path.read_text().replace("target: income", f"target: {content!s}")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def everything(directory: Path) -> dict[str, tuple[int, int]]:
    """Every path with its size and time of change."""
    found = [directory, *directory.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rehearsals work; nothing may be left there."""
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def rehearsed(llmtool: Run, cwd: Path, command: str, project: str, *sets: str) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and stderr."""
    more = [part for item in sets for part in ("--set", item)]
    ended = llmtool(command, f"{project}.yaml", "--rehearse", "--json", *more, cwd=cwd)
    return ended.code, ended.json, ended.err


@pytest.mark.parametrize("name", CAUGHT)
def test_a_planted_fault_is_caught(
    fresh: Path, llmtool: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault = CAUGHT[name]
    if name == "no such device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if name == "too large a batch":
        monkeypatch.setattr(subject, "memory_bytes", lambda device: 20_000_000)
    plant(fresh, fault)
    before = everything(fresh)
    code, document, err = rehearsed(llmtool, fresh, "prepare", fault.project, *fault.sets)
    assert code == fault.code == document["exit_code"], err
    assert re.search(fault.said, document["error"]), document["error"]
    assert document["error"].splitlines()[0] in err
    assert str(scratch) not in err
    if fault.stage:
        failed = [step for step in document["rehearsal"]["steps"] if step["status"] == "failed"]
        assert failed[0]["name"] == fault.stage, failed
        assert document["error"].startswith(f"{fault.stage} failed: ")
        assert re.search(fault.said, failed[0]["said"])
    assert everything(fresh) == before
    assert not list(scratch.glob("llmtool*"))


def test_enough_faults_are_planted_and_caught() -> None:
    planted = len(CAUGHT) + len(MISSED) + 2  # a locked run, and rows that no stretch of the sample reaches
    assert planted >= 25
    assert len(CAUGHT) + 1 >= planted * 22 / 25


@pytest.mark.parametrize("name", MISSED)
def test_what_a_rehearsal_cannot_know(fresh: Path, llmtool: Run, name: str) -> None:
    _, sets, command, code = MISSED[name]
    ended, document, err = rehearsed(llmtool, fresh, "train", "table", *sets)
    assert ended == 0, err
    assert {step["status"] for step in document["rehearsal"]["steps"]} == {"ok"}
    more = [part for item in sets for part in ("--set", item)]
    codes = [llmtool(name, "table.yaml", *more, cwd=fresh).code for name in dict.fromkeys(["train", command])]
    assert codes[-1] == code


@pytest.mark.parametrize("project", ["table", "text"])
def test_a_sound_file_passes_and_says_what_the_run_will_take(
    fresh: Path, llmtool: Run, scratch: Path, project: str
) -> None:
    before = everything(fresh)
    code, document, err = rehearsed(llmtool, fresh, "evaluate", project)
    assert code == 0, err
    assert everything(fresh) == before
    assert not list(scratch.glob("llmtool*"))
    steps = {step["name"]: step for step in document["rehearsal"]["steps"]}
    assert list(steps) == [
        "run directory", "prepare", "describe", "train: plan", "finetune: plan", "train", "train: resume",
        "finetune", "finetune: resume", "evaluate", "disk",
    ]  # fmt: skip
    assert {step["status"] for step in steps.values()} == {"ok"}
    assert steps["train"]["said"] == "6 steps, saved at 5, killed (SIGKILL) at 6"
    assert steps["finetune: resume"]["said"] == "from step 5"
    forecast = document["rehearsal"]["forecast"]
    assert document["rehearsal"]["sample"]["share"] == 1
    assert forecast["time"]["train"]["steps"] == 12
    assert forecast["time"]["train"]["batch"] == (16 if project == "table" else 4)
    assert forecast["time"]["train"]["measured"]
    assert 0 < forecast["time"]["train"]["step_seconds"] < 5
    assert forecast["memory"]["train"]["device_bytes"] > forecast["memory"]["train"]["needed"] > 1000
    # the real run writes no more than was said
    assert llmtool("train", f"{project}.yaml", cwd=fresh).code == 0
    checkpoints = sum(path.stat().st_size for path in (fresh / "runs" / project).rglob("*") if path.is_file())
    assert checkpoints < 1.2 * forecast["disk"]["needed"] + 100_000


def test_a_person_sees_a_table_and_the_first_failure(fresh: Path, llmtool: Run) -> None:
    ended = llmtool("train", "table.yaml", "--rehearse", "--set", "finetune=null", cwd=fresh)
    assert ended.code == 0, ended.err
    assert re.search(r"^train: resume\s+ok\s+\S+\s+from step 5$", ended.out, re.MULTILINE)
    assert re.search(r"^  train: about \S+, 12 steps of ", ended.out, re.MULTILINE)
    ended = llmtool("train", "table.yaml", "--rehearse", "--set", "data.encode.target=agee", cwd=fresh)
    assert ended.code == 2
    assert re.search(r"^describe\s+left out\s+\S+\s+needs prepare$", ended.out, re.MULTILINE)
    assert ended.error.startswith("prepare failed: --set data.encode.target=agee: data.encode.target: ")


def test_every_stage_that_fails_is_told_of_and_the_first_one_counts(fresh: Path, llmtool: Run) -> None:
    sets = ["evaluate.samples={prompts: [a]}", "train.budget={steps: 2000000000}", "train.checkpoint_every=1"]
    sets += ["train.keep=1000000000", "finetune=null", "run=people.csv/x"]
    code, document, _ = rehearsed(llmtool, fresh, "train", "table", *sets)
    failed = [step["name"] for step in document["rehearsal"]["steps"] if step["status"] == "failed"]
    assert failed == ["run directory", "evaluate", "disk"]
    assert code == 2


def test_a_run_that_another_process_works_on(fresh: Path, llmtool: Run) -> None:
    with Stage.open(fresh / "runs/table", "describe", {"config": {}}) as run:
        code, document, _ = rehearsed(
            llmtool, fresh, "prepare", "table", "model=null", "train=null", "finetune=null"
        )
        run.finish()
    assert code == 1
    assert f"process {os.getpid()} on " in document["error"]
    code, document, _ = rehearsed(
        llmtool, fresh, "prepare", "table", "model=null", "train=null", "finetune=null"
    )
    assert code == 0
    assert [step["name"] for step in document["rehearsal"]["steps"]] == ["run directory", "prepare", "disk"]


@pytest.mark.parametrize("command", ["prepare", "describe", "train", "finetune", "evaluate"])
def test_any_command_and_what_makes_no_sense(fresh: Path, llmtool: Run, command: str) -> None:
    ended = llmtool(command, "table.yaml", "--rehearse", "--force", cwd=fresh)
    assert ended.code == 2
    assert "--force" in ended.error
    if command in ("train", "finetune"):
        ended = llmtool(command, "table.yaml", "--rehearse", "--set", f"{command}=null", cwd=fresh)
        assert ended.code == 2
        assert f"needs the section `{command}:`" in ended.error
        assert llmtool(command, "table.yaml", "--rehearse", "--verify", "resume", cwd=fresh).code == 2


def test_a_model_that_is_too_large_for_a_minute_is_left_out_and_said_so(fresh: Path, llmtool: Run) -> None:
    huge = ["model={family: mlp, hidden: [20000, 20000]}", "finetune=null", "device=cpu"]
    code, document, err = rehearsed(llmtool, fresh, "train", "table", *huge)
    steps = {step["name"]: step for step in document["rehearsal"]["steps"]}
    assert steps["train"]["status"] == "left out"
    assert "more than can be written and read again in a minute" in steps["train"]["said"]
    assert not document["rehearsal"]["forecast"]["time"]["train"]["measured"]
    assert code == (0 if steps["train: plan"]["status"] == "ok" else 6), err


def test_a_large_source_is_sampled_with_its_end(
    fresh: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{i % 97},{i % 31}.5,Bern,yes,{'low' if i < 15000 else 'high'}" for i in range(16_000)]
    rows[15_990] = "1,2"
    (fresh / "people.csv").write_text("\n".join(["age,hours,city,member,income", *rows]) + "\n")
    monkeypatch.setattr(rehearse, "CHARACTERS", 100_000)
    monkeypatch.setattr(sampling, "SLICE", 1000)
    only = ["model=null", "train=null", "finetune=null"]
    code, document, _ = rehearsed(llmtool, fresh, "prepare", "table", *only, "data.max_bad=0")
    assert code == 4  # the bad row near the end is seen, with its true line
    assert "people.csv, line 15992: 2 fields" in document["error"]
    assert "% of the source were read" in document["error"]
    rows[15_990], rows[9_000] = rows[0], "1,2"
    (fresh / "people.csv").write_text("\n".join(["age,hours,city,member,income", *rows]) + "\n")
    code, document, _ = rehearsed(llmtool, fresh, "prepare", "table", *only, "data.max_bad=0")
    assert code == 0  # both classes are in the sample; one bad row between its stretches is not
    assert 0.1 < document["rehearsal"]["sample"]["share"] < 0.9


def test_the_start_may_be_an_earlier_run(fresh: Path, llmtool: Run, process: Callable[..., Any]) -> None:
    assert llmtool("train", "table.yaml", cwd=fresh).code == 0
    tuned = (fresh / "table.yaml").read_text()
    tuned = re.sub(r"(?m)^(model|train):.*\n", "", tuned).replace(
        "target: income", "target: income, like: runs/table/prepare"
    )
    (fresh / "tuned.yaml").write_text(tuned)
    before = everything(fresh)
    code, document, err = rehearsed(llmtool, fresh, "finetune", "tuned")
    assert code == 0, err
    assert [step["name"] for step in document["rehearsal"]["steps"]][-3:] == [
        "finetune: resume",
        "evaluate",
        "disk",
    ]
    # classes that the model of evaluate.of does not give
    (fresh / "people.csv").write_text(CSV.replace("high", "rich").replace("low", "poor"))
    code, document, _ = rehearsed(
        llmtool, fresh, "evaluate", "tuned", "finetune=null", "evaluate.of=runs/table"
    )
    assert code == 2
    assert re.search(r"gives 2 classes \(\w+, \w+\); .* has 2 classes \(\w+, \w+\)", document["error"])
    (fresh / "people.csv").write_text(CSV)
    assert json.dumps(sorted(everything(fresh))) == json.dumps(sorted(before))


def test_a_model_without_matrix_products_can_be_rehearsed(llmtool: Run, tmp_path: Path) -> None:
    lines = [f"text {n} of kind {n % 2},{'ab'[n % 2]}" for n in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["text,y", *lines]))
    (tmp_path / "a.yaml").write_text(
        "data:\n  source: {format: csv, path: a.csv}\n"
        "  encode: {as: text, target: y, tokenizer: {kind: words}}\n"
        "model: {family: bag, buckets: 64}\n"
        "train: {budget: {steps: 8}, batch: 8}\n"
    )
    ended = llmtool("train", "a.yaml", "--rehearse", cwd=tmp_path)
    assert ended.code == 0, ended.err
