"""evaluate: how sure the figures are, what they are compared with, and gates on both."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtool.stages import score
from tests.conftest import Run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("project", ["table", "text"])
def test_every_figure_has_an_interval_or_a_reason(finished: Path, project: str) -> None:
    report = read(finished / f"runs/{project}/evaluate/report.json")
    for split, figures in report["metrics"].items():
        for name, value in figures.items():
            bounds = report["intervals"][split].get(name)
            if bounds is None:
                assert report["no_interval"][split][name]
            else:
                assert bounds[0] <= value <= bounds[1], name
        assert "accuracy" in report["intervals"][split] or "loss" in report["intervals"][split]


def other_run(copy: Path, llmtool: Run, project: str) -> str:
    """The same data, a shorter training, evaluated."""
    text = (copy / f"{project}.yaml").read_text().replace("steps: 12", "steps: 4").replace("finetune:", "#")
    (copy / "other.yaml").write_text(text)
    for command in ("train", "evaluate"):
        ended = llmtool(command, "other.yaml", cwd=copy)
        assert ended.code == 0, ended.err
    return "runs/other"


@pytest.mark.parametrize("project", ["table", "text"])
def test_two_runs_are_compared_row_by_row(copy: Path, llmtool: Run, project: str) -> None:
    other = other_run(copy, llmtool, project)
    ended = llmtool("evaluate", f"{project}.yaml", "--set", f"evaluate.compare={other}", cwd=copy)
    assert ended.code == 0, ended.err
    assert f"beside {other}/evaluate:" in ended.out
    found = read(copy / f"runs/{project}/evaluate/report.json")["comparison"]
    theirs = read(copy / f"{other}/evaluate/report.json")["metrics"]["test"]
    for name, figure in found["splits"]["test"].items():
        assert figure["there"] == pytest.approx(theirs[name], rel=1e-6)
        assert figure["difference"] == pytest.approx(figure["here"] - figure["there"])
    again = llmtool("evaluate", f"{project}.yaml", "--set", f"evaluate.compare={other}", cwd=copy)
    assert "nothing has changed" in again.out
    gate = f"test.{'accuracy' if project == 'table' else 'loss'}.change.high"
    set_ = ("--set", f"evaluate.compare={other}", "--set", f'evaluate.require.{gate}="<-1000"')
    ended = llmtool("evaluate", f"{project}.yaml", *set_, cwd=copy)
    assert ended.code == 3
    assert gate in ended.error


def test_a_gate_on_a_bound(copy: Path, llmtool: Run) -> None:
    low = read(copy / "runs/table/evaluate/report.json")["intervals"]["test"]["accuracy"][0]
    for bound, code in ((low - 0.01, 0), (low + 0.01, 3)):
        gate = f'evaluate.require.test.accuracy.low=">={bound}"'
        assert llmtool("evaluate", "table.yaml", "--set", gate, cwd=copy).code == code


def test_what_cannot_be_compared(copy: Path, llmtool: Run) -> None:
    def error(value: str) -> str:
        ended = llmtool("evaluate", "table.yaml", "--set", f"evaluate.compare={value}", cwd=copy)
        assert ended.code == 2
        assert "evaluate.compare" in ended.error
        return ended.error

    assert "no evaluation here" in error("runs/nowhere")
    assert "this run's own evaluation" in error("runs/table")
    shutil.copytree(copy / "runs/table", copy / "runs/torn")
    path = copy / "runs/torn/evaluate/predictions.csv"
    path.write_text(path.read_text()[:-200])
    assert "run evaluate there again" in error("runs/torn")
    path.write_text((copy / "runs/table/evaluate/predictions.csv").read_text().replace("low", "LOW"))
    assert "is not the file that was written with report.json" in error("runs/torn")
    # Other data: a word in the report, and a requirement on the change is unmet with that word.
    ended = llmtool("evaluate", "table.yaml", "--set", "evaluate.compare=runs/text", cwd=copy)
    assert ended.code == 0
    assert "not compared with runs/text/evaluate: it was scored on another dataset" in ended.out
    set_ = ("--set", "evaluate.compare=runs/text", "--set", 'evaluate.require.test.f1.change=">0"')
    ended = llmtool("evaluate", "table.yaml", *set_, cwd=copy)
    assert (ended.code, "another dataset" in ended.error) == (3, True)


@pytest.mark.parametrize(
    ("command", "override", "says"),
    [
        (
            "evaluate",
            "evaluate.metric=acuracy",
            "evaluate.metric: 'acuracy' is not a figure of this task; did",
        ),
        (
            "train",
            'evaluate.require.test.acuracy.low=">=0.1"',
            "evaluate.require: test.acuracy.low: there is no",
        ),
        ("finetune", 'evaluate.require={test.rmse: "<1"}', "evaluate.require: test.rmse: there is no figure"),
    ],
)
def test_a_figure_that_is_none_is_named_before_any_work(
    copy: Path, llmtool: Run, command: str, override: str, says: str
) -> None:
    steps = ("--set", f"{command}.budget.steps=5") if command != "evaluate" else ()
    ended = llmtool(command, "table.yaml", *steps, "--set", override, cwd=copy)
    assert (ended.code, says in ended.error) == (2, True), ended.error
    assert not any(line.startswith("step ") for line in ended.err.splitlines())


def test_finetune_says_how_sure_the_change_is(finished: Path) -> None:
    result = read(finished / "runs/table/finetune/result.json")
    for name, change in result["changes"]["new"].items():
        assert change["value"] == pytest.approx(result["after"]["new"][name] - result["before"]["new"][name])
        assert change["low"] is None or change["low"] <= change["high"]


@pytest.mark.parametrize("project", ["table", "text"])
def test_what_these_weights_scored_is_not_scored_again(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    """Another question to the same predictions does not ask the model; other weights or --force do."""
    scored: list[str] = []
    real = score._scored
    monkeypatch.setattr(score, "_scored", lambda a, split, *b: scored.append(split) or real(a, split, *b))

    def evaluated(*more: str) -> tuple[list[str], Any]:
        scored.clear()
        ended = llmtool("evaluate", f"{project}.yaml", *more, cwd=copy)
        assert ended.code == 0, ended.err
        assert "these weights scored validation and test before, which stands" in ended.err
        return list(scored), read(copy / f"runs/{project}/evaluate/report.json")

    before = read(copy / f"runs/{project}/evaluate/report.json")
    metric = "f1" if project == "table" else "perplexity"
    for change in (f"evaluate.metric={metric}", "evaluate.require={}", "evaluate.slices=false"):
        model, after = evaluated("--set", change)
        assert model == []
        for part in ("metrics", "details", "intervals"):
            assert after[part] == before[part], part
    ended = llmtool("evaluate", f"{project}.yaml", "--force", cwd=copy)
    assert (ended.code, scored) == (0, ["validation", "test"])
    assert read(copy / f"runs/{project}/evaluate/report.json") == before
    for change, again in (
        ("evaluate.splits=[train, test]", ["train"]),
        ("evaluate.batch=7", ["validation", "test"]),
        (f"evaluate.of=runs/{project}/train", ["validation", "test"]),
    ):
        scored.clear()
        ended = llmtool("evaluate", f"{project}.yaml", "--set", change, cwd=copy)
        assert (ended.code, scored) == (0, again), ended.err


@pytest.mark.parametrize("project", ["table", "text"])
def test_a_model_whose_outputs_are_not_finite(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    """Every figure that is not there has its reason: on the screen, in both reports and in the gate."""
    real = score.evaluate

    def broken(task: Any, model: Any, *rest: Any) -> Any:
        for weights in model.parameters():
            weights.data.fill_(float("nan"))
        return real(task, model, *rest)

    monkeypatch.setattr(score, "evaluate", broken)
    set_ = ("--set", "evaluate.require.beats_baseline=true", "--set", 'evaluate.require.test.loss.low="<9"')
    ended = llmtool(
        "evaluate", f"{project}.yaml", "--force", *set_[: 4 if project == "text" else 2], cwd=copy
    )
    assert ended.code == 3
    assert "beats_baseline: no " in ended.error
    assert "outputs are not finite" in ended.error
    directory = copy / f"runs/{project}/evaluate"
    assert "NaN" not in (directory / "report.json").read_text()
    report = read(directory / "report.json")
    assert report["metrics"]["test"] == {}
    assert all("not finite" in why for why in report["undefined"]["test"].values())
    for text in (ended.out, (directory / "report.html").read_text().replace("&#x27;", "'")):
        assert "the model's outputs are not finite" in text
    if project == "text":
        assert "(nothing more: the model's outputs are not finite)" in ended.out


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_that_is_ended_in_the_middle(
    copy: Path, llmtool: Run, start: Callable[..., subprocess.Popen[str]], end: signal.Signals
) -> None:
    """No half of it is taken for a whole one; the next command goes on from what the model has given."""
    root = copy / "runs/table"
    before = read(root / "evaluate/report.json")
    shutil.rmtree(root / ".cache")
    running = start("evaluate", "table.yaml", "--force", cwd=copy)
    while not (root / ".cache/model/test.safetensors").exists() and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(end)
    running.communicate(timeout=120)
    assert running.returncode == {"SIGKILL": -9, "SIGTERM": 75, "SIGINT": 130}[end.name]
    assert not (root / "evaluate/report.json").exists()
    ended = llmtool("evaluate", "text.yaml", "--set", "evaluate.compare=runs/table", cwd=copy)
    assert (ended.code, "no evaluation here" in ended.error) == (2, True)
    found = llmtool("report", "runs/table", "--json", cwd=copy).json
    assert found["runs"][0]["metrics"] is None
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert ended.code == 0, ended.err
    assert "these weights scored validation and test before" in ended.err
    assert read(root / "evaluate/report.json") == before
