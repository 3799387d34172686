"""llmtool report: a page of one run, several side by side, from files alone; never a crash on others'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands.test_freshness import tree
from tests.conftest import Run


def test_evaluate_writes_the_page(finished: Path) -> None:
    for project, words in (
        ("table", ("income", "baselines", "Confidence", "city")),
        ("text", ("What it writes", "n-gram")),
    ):
        page = (finished / f"runs/{project}/evaluate/report.html").read_text()
        for word in words:
            assert word.lower() in page.lower(), word
        assert "http" not in page.replace("http-equiv", "")


def test_a_run_is_reported_again_and_nothing_else_changes(copy: Path, llmtool: Run) -> None:
    page = copy / "runs/table/evaluate/report.html"
    page.unlink()
    before = tree(copy)
    ended = llmtool("report", "runs/table", cwd=copy)
    assert (ended.code, ended.out.strip()) == (0, "report: runs/table/evaluate/report.html")
    page.unlink()
    assert set(tree(copy)) == set(before)
    found = llmtool("report", "runs/table/train", "--json", cwd=copy).json
    assert found["runs"][0]["metrics"]["test"]["accuracy"] > 0
    assert found["runs"][0]["stages"]["evaluate"] == "done"


def test_runs_side_by_side(copy: Path, llmtool: Run) -> None:
    text = (copy / "table.yaml").read_text().replace("steps: 12", "steps: 4").replace("finetune:", "#")
    (copy / "other.yaml").write_text(text)
    for command in ("train", "evaluate"):
        assert llmtool(command, "other.yaml", cwd=copy).code == 0
    ended = llmtool("report", "runs/table", "runs/other", "--html", "both.html", cwd=copy)
    assert ended.code == 0, ended.err
    assert "test accuracy" in ended.out
    assert "train.budget.steps" in ended.out
    assert "runs/other beside runs/table: test accuracy:" in ended.out
    assert "runs/other" in (copy / "both.html").read_text()
    found = llmtool("report", "runs/table", "runs/other", "--json", cwd=copy).json
    assert found["differs"]["config"]["train.budget.steps"] == ["12", "4"]
    other = llmtool("report", "runs/table", "runs/text", cwd=copy)
    assert other.code == 0
    assert "it was scored on another dataset" in other.out


def test_unfinished_failed_and_damaged_runs_are_reported(copy: Path, llmtool: Run) -> None:
    root = copy / "runs/table"
    for stage in ("evaluate", "finetune"):
        shutil.rmtree(root / stage)
    assert llmtool("report", "runs/table", cwd=copy).out.strip() == "report: runs/table/report.html"
    (root / "train/metrics.jsonl").write_bytes(
        b'{"step": 1, "loss": NaN}\nnot json\n{"step": "x"}\n[1]\n\xff\xfe'
    )
    (root / "train/experiment.yaml").write_text("a: &a [*a, *a]\n\tb")
    (root / "prepare/ledger.json").write_text("{")
    (root / "train/result.json").write_text(json.dumps({"status": "failed", "error": "<b>no</b>"}))
    assert llmtool("report", "runs/table", cwd=copy).code == 0
    assert "&lt;b&gt;no&lt;/b&gt;" in (root / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["."], "no run here"),
        (["runs/table", "runs/table"], "a run stands twice"),
        (["runs/table", "--html", "no/where.html"], "there is no directory no"),
        (["table.yaml"], "no such directory; give a run's"),
    ],
)
def test_mistakes_are_named(copy: Path, llmtool: Run, arguments: list[str], says: str) -> None:
    ended = llmtool("report", *arguments, cwd=copy)
    assert ended.code == 2
    assert says in ended.error


def test_curves_as_tensorboard_events(copy: Path, llmtool: Run) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    assert llmtool("report", "runs/table", "--tensorboard", "events", cwd=copy).code == 0
    (path,) = (copy / "events/table/train").iterdir()
    events = list(loader.EventFileLoader(str(path)).Load())
    rows = [json.loads(line) for line in (copy / "runs/table/train/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    found = {e.step: v.tensor.float_val[0] for e in events for v in e.summary.value if v.tag == "loss"}
    assert found == pytest.approx(losses)


def test_events_of_runs_of_one_name_stand_apart_and_are_written_once(copy: Path, llmtool: Run) -> None:
    pytest.importorskip("tensorboard")
    shutil.copytree(copy / "runs/table", copy / "other/table", symlinks=True)
    (copy / "events/runs/table/train").mkdir(parents=True)
    (copy / "events/runs/table/train/events.out.tfevents.of.others").write_text("theirs")
    arguments = ("--tensorboard", copy / "events")
    for _ in range(2):
        ended = llmtool("report", "runs/table", "other/table", *arguments, cwd=copy)
        assert ended.code == 0, ended.err
        found = sorted(path.parent for path in (copy / "events").rglob("*tfevents*.llmtool"))
        stages = [
            Path(run, stage) for run in ("other/table", "runs/table") for stage in ("finetune", "train")
        ]
        assert found == [copy / "events" / stage for stage in stages]
    assert (copy / "events/runs/table/train/events.out.tfevents.of.others").read_text() == "theirs"
    assert llmtool("report", ".", *arguments, cwd=copy / "runs/table").code == 0
    assert list((copy / "events/table/train").iterdir())
    twice = ("report", "runs/table", "other/../runs/table", "--tensorboard", "none")
    assert "a run stands twice" in llmtool(*twice, cwd=copy).error
    assert not (copy / "none").exists()
