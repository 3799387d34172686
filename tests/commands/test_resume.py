"""Killed at any moment and started again, training ends with the same bits as one that was never stopped."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run

Start = Callable[..., "subprocess.Popen[str]"]
STEPS = {
    "table": ["--set", "train.budget.steps=900", "--set", "train.checkpoint_every=30"],
    "text": ["--set", "train.budget.steps=400", "--set", "train.checkpoint_every=20"],
}
OFTEN = ["--set", "train.log_every=7", "--set", "train.validate_every=60", "--set", "train.keep=3"]


def options(project: str) -> list[str]:
    return [f"{project}.yaml", *STEPS[project], *OFTEN]


def bits(run: Path, stage: str = "train") -> dict[str, object]:
    """Everything of a training that must not depend on how often it was stopped."""
    last = (run / stage / "last").resolve()
    state = json.loads((last / "state/loop.json").read_text())
    state.pop("time")
    rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time")
    tensors = {
        path.relative_to(last).as_posix(): path.read_bytes()
        for path in sorted(last.rglob("*")) if path.suffix in (".safetensors",) or path.name == "config.json"
    }  # fmt: skip
    best = (run / stage / "best").resolve().name
    return {"last": last.name, "best": best, "state": state, "rows": rows, "tensors": tensors}


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "train/checkpoints").iterdir())


@pytest.mark.parametrize("project", ["table", "text"])
def test_killed_again_and_again(
    copy: Path, llmtool: Run, start: Callable[..., subprocess.Popen[str]], project: str
) -> None:
    run = copy / "runs" / project
    assert llmtool("train", *options(project), cwd=copy).code == 0
    straight, names = bits(run), saved(run)
    shutil.rmtree(run / "train")
    chance, kills = random.Random(project), 0
    for _ in range(2):
        running = start("train", *options(project), cwd=copy)
        before = len(list((run / "train/checkpoints").glob("step-*"))) if (run / "train").is_dir() else 0
        first = (run / "train/last").resolve() if before else None
        while running.poll() is None and (run / "train/last").resolve() == (first or run / "train/last"):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.15)
        running.kill()  # SIGKILL: in a step, a validation, or halfway through a checkpoint
        running.communicate()
        kills += running.returncode == -9
        record = json.loads((run / "train/.record.json").read_text())
        assert record["status"] == ("running" if running.returncode == -9 else "done")
    assert kills
    ended = llmtool("train", *options(project), cwd=copy)
    assert ended.code == 0, ended.err
    assert "killed, or the machine went down" not in ended.err  # it resumes, and does not start over
    assert "goes on from step" in ended.err or kills < 2
    assert bits(run) == straight
    assert saved(run) == names  # no half-written directory is left either
    assert not [path for path in run.rglob("*") if path.name.startswith((".tmp", ".llmtool"))]


def stop_early(copy: Path, llmtool: Run, project: str) -> Path:
    """Train under a session limit of next to nothing until three checkpoints are there; the newest."""
    for _ in range(12):
        args = [*options(project), "--set", "train.budget.time=0.05s"]
        if llmtool("train", *args, cwd=copy).code == 0:
            break
        checkpoints = sorted((copy / "runs" / project / "train/checkpoints").glob("step-*"))
        if len(checkpoints) >= 3:
            return checkpoints[-1]
    raise AssertionError("it was done before it could be stopped")


@pytest.mark.parametrize("project", ["table", "text"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing file", "torn state"])
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(
    copy: Path, llmtool: Run, straight: dict[str, dict[str, object]], project: str, damage: str
) -> None:
    newest = stop_early(copy, llmtool, project)
    file = newest / ("state/optimizer.safetensors" if damage == "torn state" else "model.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "missing file":
        file.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    ended = llmtool("train", *options(project), cwd=copy)
    assert ended.code == 0, ended.err
    warned = [line for line in ended.err.splitlines() if newest.name in line and file.name in line]
    assert warned, ended.err
    torn = newest.with_name(f"{newest.name}.torn")
    assert torn.is_dir()
    shutil.rmtree(torn)
    assert f"goes on from step {int(newest.name.removeprefix('step-'))}" not in ended.err
    assert "goes on from step" in ended.err
    assert bits(copy / "runs" / project) == straight[project]


@pytest.fixture(scope="module")
def straight(
    finished: Path, llmtool: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, object]]:
    """The bits of both trainings, never stopped."""
    directory = tmp_path_factory.mktemp("straight") / "copy"
    shutil.copytree(finished, directory, symlinks=True)
    for project in STEPS:
        assert llmtool("train", *options(project), cwd=directory).code == 0
    return {project: bits(directory / "runs" / project) for project in STEPS}


def test_finetune_resumes_too(copy: Path, llmtool: Run) -> None:
    for project in ("table", "text"):
        more = [
            f"{project}.yaml",
            "--set",
            "finetune.checkpoint_every=10",
            "--set",
            "finetune.validate_every=20",
        ]
        budget = ["--set", "finetune.budget={steps: 120}"]
        assert llmtool("finetune", *more, *budget, cwd=copy).code == 0
        straight = bits(copy / "runs" / project, "finetune")
        result = json.loads((copy / "runs" / project / "finetune/result.json").read_text())
        shutil.rmtree(copy / "runs" / project / "finetune")
        limited = ["--set", "finetune.budget={steps: 120, time: 0.05s}"]
        codes = [llmtool("finetune", *more, *limited, cwd=copy).code]
        while codes[-1] == 75 and len(codes) < 120:
            codes.append(llmtool("finetune", *more, *limited, cwd=copy).code)
        assert codes[-1] == 0
        assert len(codes) > 1
        assert bits(copy / "runs" / project, "finetune") == straight
        again = json.loads((copy / "runs" / project / "finetune/result.json").read_text())
        for name in ("before", "after", "metrics", "best", "head"):
            assert again[name] == result[name]


def test_an_adapter_on_four_bits_is_killed(copy: Path, llmtool: Run, start: Start) -> None:
    """By SIGKILL; and what a library says of packages it would like to have is kept from our users."""
    method = "{kind: lora, rank: 2, quantise: nf4, lora_plus_ratio: 4}"
    run, more = copy / "runs/text", ["--set", f"finetune.method={method}", "--set", "finetune.log_every=5"]
    more += ["--set", "finetune.budget={steps: 60}", "--set", "finetune.checkpoint_every=20"]
    more += ["--set", "finetune.validate_every=30"]
    shutil.rmtree(run / "finetune")
    running = start("finetune", "text.yaml", *more, cwd=copy)
    while running.poll() is None and not (run / "finetune/last").exists():
        time.sleep(0.002)
    running.kill()
    _, said = running.communicate()
    assert running.returncode == -9
    assert "kept in four bits" in said
    assert "kernels" not in said
    ended = llmtool("finetune", "text.yaml", *more, cwd=copy)
    assert ended.code == 0, ended.err
    assert "goes on from step" in ended.err
    resumed = bits(run, "finetune")
    assert llmtool("finetune", "text.yaml", *more, "--force", cwd=copy).code == 0
    assert bits(run, "finetune") == resumed
