"""How processes end: every exit code, signals, the lock; and that result.json says the same."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

Start = Callable[..., subprocess.Popen[str]]
LONG = [
    "--set",
    "train.budget.steps=4000",
    "--set",
    "train.log_every=100",
    "--set",
    "train.validate_every=2000",
]
LONG += ["--set", "train.validate_every=2000", "--set", "finetune=null"]


def result(directory: Path, stage: str, run: str = "table") -> dict[str, Any]:
    return json.loads((directory / "runs" / run / stage / "result.json").read_text())  # type: ignore[no-any-return]


def wait_for(path: Path, running: subprocess.Popen[str], holds: str = "") -> None:
    """Until `path` is there (and holds a word); fails when the process ends before."""
    for _ in range(6000):
        if path.is_file() and holds in path.read_text():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def end(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=100)
    assert "Traceback" not in err, err
    assert "internal error" not in err, err
    return running.returncode, out, err


@pytest.mark.parametrize(
    ("command", "override", "code", "status", "line"),
    [
        ("describe", "seed=3", 0, "done", ""),
        ("train", "train.batch=0", 2, "config_error", "--set train.batch=0: train.batch: "),
        ("evaluate", "evaluate.require={test.f1: '>2'}", 3, "requirement_unmet", "test.f1 is "),
        ("prepare", "data.source.path=none.csv", 4, "data_refused", "none.csv: no such file"),
        ("train", "train.optimizer={name: adamw, lr: 1e30}", 5, "diverged", "not finite"),
    ],
)
def test_the_process_ends_with_the_code_that_result_json_says(
    copy: Path, process: Run, command: str, override: str, code: int, status: str, line: str
) -> None:
    ended = process(command, "table.yaml", "--json", "--set", override, cwd=copy)
    assert ended.code == code, ended.err
    document = result(copy, command)
    assert (document["status"], document["exit_code"]) == (status, code)
    assert ended.json["exit_code"] == code
    assert ended.json["error"] == document["error"]
    assert line in ended.err
    if code == 5:
        assert re.search(r"people\.csv:\d+ \(row \d+ of train\)", ended.err)
        assert "this update was not made" in ended.err


def test_usage_errors_are_code_2_and_one_document(fresh: Path, process: Run) -> None:
    for arguments in (["trian", "table.yaml"], ["train", "table.yaml", "--bogus"], ["train"]):
        ended = process(*arguments, "--json", cwd=fresh)
        assert ended.code == ended.json["exit_code"] == 2
        assert ended.json["error"] in ended.err


def test_failures_that_are_ours_are_code_1(copy: Path, process: Run) -> None:
    weights = (copy / "runs/table/train/best/model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ended = process("evaluate", "table.yaml", "--set", "evaluate.of=runs/table/train", cwd=copy)
    assert ended.code == 1
    assert "model.safetensors: the content changed since it was written" in ended.error
    assert result(copy, "evaluate")["exit_code"] == 1


def test_out_of_memory_is_code_6(fresh: Path, start: Start) -> None:
    limit = 8 << 30

    def less_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    huge = ["--set", "model.hidden=[60000, 60000]"]
    code, _, err = end(start("train", "table.yaml", *huge, cwd=fresh, preexec_fn=less_memory))
    assert code == 6, err
    assert "out of memory" in err
    assert result(fresh, "train")["status"] == "out_of_memory"


# --- signals ---


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(signal.SIGTERM, 75, "interrupted"), (signal.SIGINT, 130, "cancelled")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_in_training_saves_and_the_same_command_finishes(
    fresh: Path, start: Start, llmtool: Run, number: int, code: int, status: str
) -> None:
    assert llmtool("prepare", "table.yaml", cwd=fresh).code == 0
    command = ["train", "table.yaml", "--json", *LONG]
    running = start(*command, cwd=fresh)
    wait_for(fresh / "runs/table/train/metrics.jsonl", running)
    # meanwhile nobody else writes here, and who does is named
    ended = llmtool(*command, cwd=fresh)
    assert ended.code == 1
    assert f"process {running.pid} on " in ended.error
    assert "is working on this run" in ended.error
    running.send_signal(number)
    ended_with, out, err = end(running)
    assert ended_with == code, err
    document = result(fresh, "train")
    assert (document["status"], document["exit_code"]) == (status, code)
    assert json.loads(out) == document
    assert "the same command goes on from the checkpoint" in document["error"]
    saved = sorted(path.name for path in (fresh / "runs/table/train/checkpoints").iterdir())
    assert saved
    again = llmtool(*command, cwd=fresh)
    assert again.code == 0, again.err
    assert f"goes on from step {int(saved[-1].removeprefix('step-'))}" in again.err
    assert again.json["resumed_from"] == int(saved[-1].removeprefix("step-"))
    assert again.json["steps"] == 4000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_prepare_leaves_no_half_dataset(
    tmp_path: Path, start: Start, llmtool: Run, number: int, code: int
) -> None:
    rows = "\n".join(f"{i % 97},{i % 31},{'ab'[i % 7 > 3]}" for i in range(300_000))
    (tmp_path / "big.csv").write_text(f"x,y,z\n{rows}\n")
    (tmp_path / "big.yaml").write_text(
        "data: {source: {format: csv, path: big.csv}, encode: {as: features, target: z}}\n"
    )
    running = start("prepare", "big.yaml", "--json", cwd=tmp_path)
    wait_for(tmp_path / "runs/big/prepare/.record.json", running, '"running"')
    running.send_signal(number)
    ended_with, out, err = end(running)
    assert ended_with == code, err
    assert json.loads(out)["exit_code"] == result(tmp_path, "prepare", "big")["exit_code"] == code
    assert not (tmp_path / "runs/big/prepare/card.json").exists()
    (tmp_path / "big.csv").write_text("\n".join(["x,y,z", *rows.splitlines()[:500]]) + "\n")
    assert llmtool("prepare", "big.yaml", cwd=tmp_path).code == 0


def test_ctrl_c_while_a_class_is_made_is_130_too(fresh: Path) -> None:
    # as when it comes while the libraries load, whose dataclasses are made by `exec`
    (fresh / "sitecustomize.py").write_text(
        "import sys\nfrom types import SimpleNamespace\n"
        "def run(options): exec('raise KeyboardInterrupt')\n"
        "sys.modules['llmtool.commands.describe'] = SimpleNamespace(run=run)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "llmtool", "describe", "table.yaml"],
        cwd=fresh, env={**os.environ, "PYTHONPATH": str(fresh)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "llmtool: cancelled\n")


def test_a_session_limit_pauses_with_75_and_goes_on(fresh: Path, llmtool: Run) -> None:
    limit = ["--set", "train.budget={steps: 300, time: 0.2s}", "--set", "train.validate_every=10", "--json"]
    codes = []
    for _ in range(100):
        ended = llmtool("train", "table.yaml", *limit, cwd=fresh)
        codes.append(ended.code)
        if ended.code == 0:
            break
        assert ended.code == 75, ended.err
        assert ended.json["error"] == "time limit reached; run again to go on"
        assert result(fresh, "train")["status"] == "interrupted"
    assert codes[0] == 75
    assert codes[-1] == 0
    assert result(fresh, "train")["steps"] == 300
    # without the limit, or with another, it is the same work
    limit = ["--set", "train.budget={steps: 300, time: 1h}", "--set", "train.validate_every=10"]
    assert "train: nothing has changed" in llmtool("train", "table.yaml", *limit, cwd=fresh).out


def test_a_reader_that_goes_away_stops_nothing(copy: Path, start: Start) -> None:
    running = start("evaluate", "table.yaml", "--force", cwd=copy, stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    running.stdout.close()  # as `| head -0` does
    assert running.wait(timeout=100) == 0
    assert running.stderr is not None
    assert "Traceback" not in running.stderr.read()
    running.stderr.close()
    assert result(copy, "evaluate")["exit_code"] == 0
