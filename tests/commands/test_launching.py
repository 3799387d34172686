"""Trainings of two processes: started and joined, signalled, and ended as one when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from llmtool.commands import Options, launching
from llmtool.core.errors import ConfigError
from llmtool.core.ranks import Ranks
from llmtool.core.watch import Failure
from tests.conftest import Run, _environment

Start = Callable[..., subprocess.Popen[str]]
TWO = ["--set", "devices=cpu:2", "--set", "finetune=null"]
# What befalls one rank at one of its steps: FAULT=rank:step:kind.
FAULTS = """\
import os
if "RANK" in os.environ and os.environ.get("FAULT", "").startswith(os.environ["RANK"] + ":"):
    import signal, time
    from llmtool.core import watch
    from llmtool.core.errors import DataError
    _, at, kind = os.environ["FAULT"].split(":")
    began = watch.step
    def step(number):
        began(number)
        if number != int(at):
            return
        if kind == "data":
            raise DataError("people.csv:7: not what it was")
        if kind == "bug":
            raise TypeError("a bug")
        if kind == "sleep":
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, kind))
    watch.step = step
"""


@pytest.fixture
def prepared(fresh: Path, llmtool: Run) -> Path:
    """Both projects, the table's data prepared; the place where faults are planted."""
    assert llmtool("prepare", "table.yaml", cwd=fresh).code == 0
    (fresh / "faults").mkdir()
    (fresh / "faults/sitecustomize.py").write_text(FAULTS)
    return fresh


def begin(cwd: Path, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    base = _environment()
    path = os.pathsep.join([str(cwd / "faults"), base["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "llmtool", *map(str, arguments)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**base, "PYTHONPATH": path, **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end(running: subprocess.Popen[str], within: float = 120) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=within)
    assert "Traceback" not in err, err
    assert "internal error" not in err, err
    return running.returncode, out, err


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "runs/table/train/result.json").read_text())  # type: ignore[no-any-return]


def log(directory: Path, rank: int) -> str:
    return (directory / f"runs/table/ranks/train/rank-{rank}.log").read_text()


def children(process: subprocess.Popen[str]) -> dict[int, int]:
    """rank -> process that this one has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0") if parent == process.pid else []
        except OSError:
            continue
        found |= {int(one[5:]): int(path.name) for one in variables if one.startswith(b"RANK=")}
    return found


def wait_for_steps(directory: Path, running: subprocess.Popen[str]) -> None:
    path = directory / "runs/table/train/metrics.jsonl"
    for _ in range(12000):
        if path.is_file() and path.stat().st_size:
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError("no step was made")


def test_one_command_trains_on_two_and_says_what_one_would(
    fresh: Path, process: Run, llmtool: Run, tmp_path: Path
) -> None:
    """From nothing: the data is prepared once, one rank speaks, the second time nothing is to do."""
    ended = process("train", "table.yaml", "--json", *TWO, cwd=fresh)
    assert ended.code == 0, ended.err
    assert ended.json == result(fresh)
    assert ended.json["status"] == "done"
    assert ended.json["metrics"]["validation"].keys() >= {"accuracy", "log_loss"}
    assert ended.json["versions"]["variables"]["WORLD_SIZE"] == "2"
    assert log(fresh, 1) == ""  # it had nothing to complain of
    assert not (fresh / "runs/table/ranks/train/rank-0.log").exists()
    again = llmtool("train", "table.yaml", *TWO, cwd=fresh)  # in this process: no other is started
    assert "train: nothing has changed" in again.out


@pytest.mark.parametrize(
    ("fault", "code", "status", "said"),
    [
        (
            "1:6:data",
            4,
            "data_refused",
            "rank 1 of 2 on {host} failed at step 6 (fit): people.csv:7: not what",
        ),
        (
            "1:6:bug",
            1,
            "failed",
            "rank 1 of 2 on {host} failed at step 6 (fit): TypeError: a bug; more: runs/",
        ),
        ("1:6:SIGKILL", 1, "failed", "rank 1 of 2 on {host} was killed by SIGKILL, last seen "),
        ("0:6:SIGKILL", 1, "failed", "rank 0 of 2 on {host} was killed by SIGKILL, last seen "),
        ("1:6:sleep", 1, "failed", "rank 1 of 2 on {host} has not moved for "),
    ],
)
def test_what_befalls_one_rank_ends_both_and_is_told(
    prepared: Path, fault: str, code: int, status: str, said: str
) -> None:
    running = begin(
        prepared, "train", "table.yaml", "--json", *TWO, "--set", "parallel.deadline=4s", FAULT=fault
    )
    train = prepared / "runs/table/train/.record.json"
    while not train.is_file() and running.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()  # about the time of the first step
    ended, out, err = end(running)
    assert time.monotonic() - began < (4 + 15 if "sleep" in fault else 30)
    document = result(prepared)
    assert (ended, document["exit_code"], document["status"]) == (code, code, status), err
    expected = said.format(host=socket.gethostname())
    assert expected in err
    assert document["error"].startswith(expected)
    assert json.loads(out) == document
    assert document["rank"]["rank"] == int(fault[0])
    if "bug" in fault:
        assert 'raise TypeError("a bug")' in log(prepared, 1)
    if "sleep" in fault:
        assert "at step 6 (fit)" in err
        assert "stacks of its threads: runs/table/ranks/train/rank-1.log" in err
        assert 'sitecustomize.py", line' in log(prepared, 1)  # where it slept


def test_a_signal_to_the_one_saves_on_all_and_the_same_command_finishes(prepared: Path, process: Run) -> None:
    command = ["train", "table.yaml", "--json", *TWO, "--set", "train.log_every=5"]
    command += ["--set", "train.validate_every=2000", "--set", "train.budget.steps=2000"]
    running = begin(prepared, *command)
    wait_for_steps(prepared, running)
    running.send_signal(signal.SIGTERM)
    ended, out, err = end(running)
    assert ended == 75, err
    assert json.loads(out) == result(prepared)
    assert "the same command goes on from the checkpoint" in err
    saved = sorted(path.name for path in (prepared / "runs/table/train/checkpoints").iterdir())
    assert len(saved) == 1
    done = process(
        *command, "--set", f"train.budget.steps={int(saved[0][5:]) + 10}", "--resume", cwd=prepared
    )
    assert done.code == 0, done.err
    assert done.json["resumed_from"] == int(saved[0][5:])


def test_ranks_whose_launcher_was_killed_end_too(prepared: Path) -> None:
    steps = ["--set", "train.budget.steps=1000000", "--set", "train.log_every=5"]
    running = begin(prepared, "train", "table.yaml", *TWO, *steps, "--set", "train.validate_every=1000000")
    wait_for_steps(prepared, running)
    left = children(running)
    assert sorted(left) == [0, 1]
    running.kill()
    running.communicate()
    limit = time.monotonic() + 30
    while time.monotonic() < limit and any(Path(f"/proc/{pid}").exists() for pid in left.values()):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left.values())
    said = result(prepared)["error"]  # or how it heard of it: the other rank, which saw it first, broke off
    assert "the launcher of rank 0 of 2 on " in said or "Connection closed by peer" in said or "gloo" in said


def joined(directories: list[Path], *sets: list[str]) -> list[tuple[int, str, str]]:
    """One rank in each directory, as torchrun or srun would start them; sets: of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [
        begin(
            directory, "train", "table.yaml", "--json", *more,
            RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", MASTER_PORT=port,
        )
        for rank, (directory, more) in enumerate(zip(directories, sets, strict=True))
    ]  # fmt: skip
    return [end(one) for one in running]


def test_a_rank_with_another_file_is_refused(prepared: Path) -> None:
    first, second = joined([prepared] * 2, ["--set", "train.batch=16"], ["--set", "train.batch=8"])
    said = (
        f"rank 1 of 2 on {socket.gethostname()} has another configuration than rank 0: train.batch: 16 -> 8"
    )
    assert (first[0], second[0]) == (2, 2), first
    assert first[2] == f"llmtool: {said}\n"
    assert json.loads(first[1])["error"] == result(prepared)["error"] == said
    assert (second[1], second[2]) == ("", "")
    assert said in log(prepared, 1)


def test_a_rank_with_other_data_is_refused(prepared: Path, tmp_path: Path, llmtool: Run) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("table.yaml", "people.csv"):
        (other / name).write_text((prepared / name).read_text())
    (other / "people.csv").write_text((prepared / "people.csv").read_text() + "30,40.0,Bern,yes,low\n")
    assert llmtool("prepare", "table.yaml", cwd=other).code == 0
    first, second = joined([prepared, other], [], [])
    assert (first[0], second[0]) == (4, 4), first
    assert "rank 1 of 2 on" in first[2]
    assert "has another version of the data than rank 0" in first[2]
    assert result(prepared)["exit_code"] == 4


GONE = Failure(0, 4, "n1", "fit", 7, "gone", "is gone without a word (killed?)")
SPEAKS = Failure(0, 4, "n1", "fit", 7, "late", "has not moved for 9 s", log="ranks/rank-0.log")


@pytest.mark.parametrize(
    ("rank", "apart", "failure", "tells"),
    [
        (1, False, GONE, True), (2, False, GONE, False), (1, True, GONE, False), (2, True, GONE, True),
        (1, False, SPEAKS, False), (1, False, replace(SPEAKS, log=None), True),
    ],
)  # fmt: skip
def test_where_the_first_is_lost_another_tells(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: int, apart: bool,
    failure: Failure, tells: bool,
) -> None:  # fmt: skip
    """As ranks of srun, two on each machine: nobody of ours has started them, their output goes to files."""
    monkeypatch.chdir(fresh)
    monkeypatch.setattr(launching, "Watch", mock.Mock())
    before = os.dup(1), os.dup(2)
    me = launching._Rank(Ranks(rank, 4, 0, 2), Options("table.yaml"), "train")
    me.watch.apart = apart
    me._cut_off(failure)
    for number, descriptor in zip((1, 2), before, strict=True):
        os.dup2(descriptor, number)
    assert capfd.readouterr() == ("", f"llmtool: {failure}\n")  # of others it goes to their logs
    assert (fresh / "runs/table/train/result.json").is_file() == tells
    if tells:
        assert (result(fresh)["error"], result(fresh)["rank"]["host"]) == (str(failure), "n1")


def test_what_the_first_has_told_stands(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh)
    monkeypatch.setattr(launching, "Watch", mock.Mock())
    before = os.dup(1), os.dup(2)
    ranks_ = [Ranks(rank, 2, 0, 1) for rank in (0, 1)]
    first, second = (launching._Rank(rank, Options("table.yaml"), "train") for rank in ranks_)
    for number, descriptor in zip((1, 2), before, strict=True):
        os.dup2(descriptor, number)
    first._record(Failure(1, 2, "n2", "fit", 7, "gone", "is gone without a word"))
    second._record(GONE)
    assert result(fresh)["rank"]["host"] == "n2"
    assert second.result["rank"]["host"] == "n2"


def test_a_rank_whose_main_thread_hangs_writes_why_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Its machine may be cut off from the first one's, which tells of it."""
    rank: Any = SimpleNamespace(me=Ranks(2, 3, 0, 1), started_here=None, _stands_in=lambda failure: False)
    launching._Rank._cut_off(rank, Failure(0, 3, "a", "fit", 7, "gone", "has not answered for 20 s"))
    said = "llmtool: rank 0 of 3 on a has not answered for 20 s, last seen at step 7 (fit)\n"
    assert capsys.readouterr() == ("", said)


def test_more_processes_than_the_machine_carries(prepared: Path, llmtool: Run) -> None:
    ended = llmtool("train", "table.yaml", "--set", "devices=cpu:1000", cwd=prepared)
    assert ended.code == 2
    assert "--set devices=cpu:1000: devices: cpu:1000: at most " in ended.err
    assert result(prepared)["exit_code"] == 2
    ended = llmtool(
        "train", "table.yaml", "--set", "devices=cpu:3", "--set", "parallel.context=2", cwd=prepared
    )
    assert ended.code == 2
    assert "parallel.context: 2 does not divide 3 ranks" in ended.err


def test_ranks_of_a_launcher_that_lack_their_gpus_say_so(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they meet: there is no device that a rank could take."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = Options(str(fresh / "table.yaml"), ["devices=cuda:2"])
    rank: Any = SimpleNamespace(options=options, me=Ranks(0, 2, 0, 2), watch=SimpleNamespace())
    with pytest.raises(ConfigError, match=r"^devices: cuda:2: "):
        launching._Rank._meet(rank)
