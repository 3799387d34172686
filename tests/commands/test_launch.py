"""llmtool launch --slurm: a script that bash reads as it was meant, whatever stands in the file's name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TABLE, Run

ODD = "my 'own' $HOME \"café\" & co"


def script(llmtool: Run, cwd: Path, *arguments: object) -> str:
    ended = llmtool("launch", "--slurm", *arguments, cwd=cwd)
    assert ended.code == 0, ended.err
    assert not ended.err
    return ended.out


def played(text: str, cwd: Path) -> list[Any]:
    """What the script starts, by bash itself, with a srun that only writes its arguments down."""
    tools, heard = cwd / "tools", cwd / "heard.jsonl"
    tools.mkdir()
    (tools / "srun").write_text(
        "#!/usr/bin/env python3\nimport json, os, sys\n"
        f"with open({str(heard)!r}, 'a') as file:\n"
        "    print(json.dumps([sys.argv[1:], os.environ['SRUN_CPUS_PER_TASK']]), file=file)\n"
    )
    (tools / "srun").chmod(0o755)
    variables = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_CPUS_PER_TASK": "3",
    }
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    subprocess.run(["bash", "-s"], input=text, text=True, check=True, cwd=cwd, env=variables)
    return [json.loads(line) for line in heard.read_text().splitlines()]


def test_every_word_arrives_as_it_was_given(tmp_path: Path, llmtool: Run) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    config = folder / f"{ODD}.yaml"
    config.write_text(TABLE)
    sets = [
        "--set",
        f"run={json.dumps(ODD, ensure_ascii=False)}",
        "--set",
        "train.budget={steps: 3, time: 1h}",
    ]
    text = script(llmtool, tmp_path, config, "--nodes", 2, "--gpus", 4, "--time", "1-12", *sets)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1:7] == [
        "#SBATCH --job-name=my-own-HOME-café-co", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4", "#SBATCH --time=1-12", "#SBATCH --signal=TERM@300",
    ]  # fmt: skip
    prepare, train = played(text, tmp_path)
    assert prepare == [["--nodes=1", "--ntasks=1", "llmtool", "prepare", str(config), *sets], "3"]
    ended = ["--kill-on-bad-exit=0", "--wait=60"]  # the others say why
    assert train == [[*ended, "llmtool", "train", str(config), *sets], "3"]


def test_the_file_says_the_processes_and_what_is_trained(tmp_path: Path, llmtool: Run) -> None:
    (tmp_path / "a.yaml").write_text(TABLE)
    on_cpu = script(llmtool, tmp_path, "a.yaml", "--set", "devices=cpu:2", "--set", "train=null")
    assert "--ntasks-per-node=2\n" in on_cpu
    assert "gpus" not in on_cpu
    assert "--time" not in on_cpu
    assert " llmtool finetune a.yaml " in on_cpu
    more = ["--sbatch", "partition=gpu", "--sbatch", "comment=two words", "--stage", "finetune"]
    text = script(llmtool, tmp_path, "a.yaml", "--set", "devices=8", *more)
    assert "--gpus-per-node=8\n" in text
    assert '#SBATCH --partition=gpu\n#SBATCH --comment="two words"\n' in text
    assert " llmtool finetune a.yaml " in text


@pytest.mark.parametrize(
    ("time", "signal"),
    [
        ("3", 45), ("19:40", 295), ("20", 300), ("0:03:00", 45), ("12:00:00", 300), ("0-0:04", 60),
        ("1-12", 300), ("1", 15), ("0", None),
    ],
)  # fmt: skip
def test_a_checkpoint_is_asked_for_before_the_end_but_not_at_the_beginning(
    tmp_path: Path, llmtool: Run, time: str, signal: int | None
) -> None:
    (tmp_path / "a.yaml").write_text(TABLE)
    text = script(llmtool, tmp_path, "a.yaml", "--gpus", 2, "--time", time)
    lines = [line for line in text.splitlines() if "--signal" in line]
    assert lines == ([f"#SBATCH --signal=TERM@{signal}"] if signal else [])
    assert f"#SBATCH --time={time}\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "launch: for what?"),
        (["--slurm"], "--gpus: how many has a node?"),
        (["--slurm", "--gpus", "2", "--set", "devices=cpu:2"], "this file trains on the CPU"),
        (["--slurm", "--gpus", "3"], "train.batch: 16 rows cannot be cut among 3 ranks equally"),
        (["--slurm", "--gpus", "4", "--set", "parallel.tensor=3"], "parallel.tensor: 3 does not divide 4"),
        (["--slurm", "--gpus", "2", "--time", "soon"], "--time soon: expected minutes"),
        (["--slurm", "--gpus", "2", "--sbatch", "gpu"], "--sbatch gpu: expected OPTION=VALUE"),
        (["--slurm", "--gpus", "2", "--sbatch", "comment=a\nb"], "cannot stand in a line"),
        (["--slurm", "--gpus", "2", "--stage", "evaluate"], "--stage evaluate: expected train or finetune"),
        (["--slurm", "--gpus", "2", "--set", "train=null", "--stage", "train"], "needs the section `train:`"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_and_nothing_printed(
    tmp_path: Path, llmtool: Run, arguments: list[str], said: str
) -> None:
    (tmp_path / "a.yaml").write_text(TABLE)
    ended = llmtool("launch", "a.yaml", *arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert not (tmp_path / "runs").exists()
