"""report.html: everything escaped, nothing fetched, sections that have nothing to say are left out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from llmtool.evaluation import charts, html
from llmtool.evaluation.charts import Bar, Curve, intervals, lines, reliability, thinned
from llmtool.evaluation.report import NOTHING, number

UGLY = "<script>alert(1)</script>&\"'\u202e"


def run(**parts: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("report", "experiment", "config", "card", "ledger", "leakage", "describe"))
    return (
        {"root": "runs/x", "results": {"train": {"status": "done", "seconds": 1.0}}, "metrics": {}}
        | nothing
        | parts
    )


def rows(steps: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    losses = 5 / (1 + np.arange(steps) / 100) + random.normal(0, 0.05, steps)
    found: list[dict[str, Any]] = [
        {"step": step, "loss": float(loss), "lr": 1e-3, "time": {"rows_per_second": 1e4 + step % 97}}
        for step, loss in enumerate(losses)
    ]
    return [*found, {"step": steps, "validation": {"log_loss": 0.5}, "best": True}]


def report() -> dict[str, Any]:
    names = [UGLY, "b"]
    shares = dict.fromkeys(("precision", "recall", "f1", "roc_auc"), 0.5)
    per_class = [{"class": name, **shares, "pr_auc": None, "support": 5} for name in names]
    confusion = {"names": names, "matrix": [[5, 0], [1, 4]]}
    slice_ = {"slice": f"x = {UGLY}", "column": "x", "rows": 30, "value": 0.5, "interval": [0.4, 0.6]}
    slice_ |= {"rest": 0.9, "difference": -0.4, "p": 1e-6, "p_corrected": 1e-5, "differs": True}
    bins = [{"low": 0.0, "high": 1.0, "rows": 10, "confidence": 0.8, "accuracy": 0.7}]
    baseline = {"name": "majority", "about": UGLY, "note": "", "missing": ""}
    against = {"split": "test", "metric": "accuracy", "baseline": "majority", "value": 0.9, "theirs": 0.5}
    return {
        **NOTHING,
        "model": {"path": UGLY, "hash": "xxh3:1"},
        "rows": {"test": 10},
        "metrics": {"test": {"accuracy": 0.9, "f1": 0.8, "f1_macro": 0.8}},
        "undefined": {"test": {"roc_auc": UGLY}},
        "details": {"test": {"per_class": per_class, "confusion": confusion}},
        "requirements": [{"name": "test.f1", "met": False, "says": UGLY, "bound": ">1"}],
        "samples": [{"prompt": "", "text": UGLY + "\nsecond line"}],
        "intervals": {"test": {"accuracy": [0.8, 0.95]}},
        "baselines": [
            {**baseline, "metrics": {"test": {"accuracy": 0.5}}},
            {**baseline, "name": "boosting", "missing": UGLY, "metrics": {}},
        ],
        "against": {**against, "difference": 0.4, "interval": [0.3, 0.5], "beats": True, "says": UGLY},
        "comparison": {"with": UGLY, "splits": {}, "says": [UGLY]},
        "calibration": {"test": {"ece": 0.1, "bins": bins, "temperature": 1.2, "ece_scaled": 0.05}},
        "slices": {"test": {"metric": "accuracy", "looked_at": 3, "rows": 90, "worst": [slice_]}},
        "bootstrap": {"draws": {"test": 1000}, "level": 0.95, "unit": {"test": "row"}},
        "no_interval": {"test": {"f1": UGLY}},
        "examples": {"test": [{"row": UGLY, "target": UGLY, "prediction": "b", "probability": 0.01}]},
        "overlap": {"test": {"shared": 1, "units": 5, "run": 13, "runs_shared": 0.1}},
    }


def everything() -> dict[str, Any]:
    leak = {"kind": "x", "says": UGLY, "advice": UGLY, "warning": True}
    card = {
        "inputs": {"kind": "features", "width": 3},
        "encoding": UGLY,
        "sources": [UGLY],
        "notes": [UGLY],
        "fingerprint": "f",
        "targets": {"kind": "classes", "column": UGLY, "names": [UGLY, "b"], "counts": [1, 3]},
        "splits": {"train": {"rows": 9}},
    }
    link = {"number": 1, "what": UGLY, "where": UGLY, "content": UGLY, "hash": UGLY, "from": [], "of": []}
    links = [link, {**link, "number": 2, "of": [1]}]
    ledger = {"read": 10, "kept": {"train": 9}, "dropped": {UGLY: 1}, "quarantined": {}}
    asked = {"model": {"family": UGLY, "hidden": [4, 4]}, "train": {"budget": {"steps": 3}, "batch": UGLY}}
    return run(
        report=report(), experiments={"train": asked},
        experiment=f"run: '{UGLY}'", card=card, ledger=ledger, leakage={"findings": [leak]},
        describe={"parameters": {"total": 1234}, "memory": {"weights": 4936}}, metrics={"train": rows(50)},
        results={"train": {"status": "failed", "error": UGLY, "seconds": 1.0}},
        warnings=[UGLY], lineage=links,
    )  # fmt: skip


class Checker(HTMLParser):
    """Every tag is closed; notes those that could run or fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "onload", "onclick")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_is_escaped_and_nothing_is_fetched() -> None:
    page = html.page(everything())
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.seen
    assert checker.links == []
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    titles = re.findall("<h2>(.*?)</h2>", page)
    expected = (
        "What was asked,Figures,Classes and mistakes,Calibration,Slices,What it writes,Training,Data,Model,"
        "Cost,Lineage,The whole file"
    )
    assert titles == expected.split(",")


def test_what_is_not_there_is_left_out() -> None:
    page = html.page(run())
    assert re.findall("<h2>(.*?)</h2>", page) == ["Cost"]
    html.page(run(results={}))
    empty = {"metrics": {"test": {}}, "undefined": {}, "details": {}, "rows": {}, "requirements": []}
    html.page(run(report={**NOTHING, **empty, "samples": []}))
    assert "Runs side by side" in html.side_by_side([run(), everything()], [UGLY])
    assert "<script" not in html.side_by_side([everything(), everything()], [UGLY])


def test_a_run_of_100_000_steps_is_small() -> None:
    page = html.page({**everything(), "metrics": {"train": rows(100_000), "finetune": rows(100_000)}})
    assert len(page.encode()) < 200_000


def test_thinning_keeps_spikes() -> None:
    y = np.zeros(10_000)
    y[[0, 1234, 9999]] = [3.0, 50.0, -7.0]
    x, kept = thinned(np.arange(10_000), y)
    assert len(x) <= charts.POINTS + 2
    assert {3.0, 50.0, -7.0} <= set(kept.tolist())
    assert x.tolist() == sorted(x.tolist())


@pytest.mark.parametrize(
    "y", [[1.0], [2.0, 2.0], [1e-9, 1e9], [-1.0, None, 5.0], [float("nan"), 1.0], [1e300, -1e300]]
)
def test_ugly_curves_are_drawn(y: list[float | None]) -> None:
    drawn = lines("t", [Curve(UGLY, list(range(len(y))), y), Curve("b", [], [])])
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert "<script" not in drawn


@pytest.mark.parametrize("most", [1e-3, 3e6])
def test_an_axis_has_a_label_of_its_own_for_each_line(most: float) -> None:
    drawn = lines("rate", [Curve("a", [0, 1], [0.0, most])])
    shown = re.findall(r'text-anchor="end">([^<]*)<', drawn)
    step = float(shown[1].replace("k", "e3"))
    assert [float(label.replace("k", "e3")) for label in shown] == pytest.approx(
        [step * at for at in range(len(shown))]
    )


def test_nothing_to_draw_is_nothing() -> None:
    assert lines("t", []) == lines("t", [Curve("a", [1], [None])]) == intervals("t", [], number) == ""
    assert "<circle" in intervals("t", [Bar("a", 0.0)], number)
    assert "<circle" not in reliability("t", [{"rows": 0, "accuracy": None, "confidence": None}])


def test_a_recorded_training_shows_where_its_time_went() -> None:
    found = {"steps": 8, "step": 0.02, "parts": {"forward": 0.005, "rest": 0.015}, "top": {UGLY: 0.001}}
    page = html.page(run(profiles={"train": found}))
    assert "Where the time of a step goes" in page
    assert "5.000" in page
    assert "75.0 %" in page
    assert "<script>" not in page.partition("Where the time")[2]
    assert "Where the time of a step goes" not in html.page(run())
