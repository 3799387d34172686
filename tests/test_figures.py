"""The README's table is that of scripts/benchmarks/results, number by number."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts/figures.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_was_measured(figures: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == figures.updated(readme, figures.Results()), "python scripts/figures.py"


def test_every_file_of_results_of_a_peer_stands_in_it(figures: ModuleType) -> None:
    results = figures.Results()
    assert figures.table(results).count("\n") > 20
    quoted = {path.stem for path in figures.RESULTS.glob("*.json")} - set(results.read)
    text = {"gguf_check", "images", "onnx_check", "two_hosts"}  # told of in the README's text
    assert quoted - {"rank_costs", "simulate_ranks"} <= text  # those are in scripts/benchmarks/scaling.md


def test_another_figure_is_another_table_and_no_file_no_row(figures: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(figures.RESULTS, tmp_path / "results")
    path = tmp_path / "results/lora_cpu.json"
    document = json.loads(path.read_text())
    document["figures"]["full"]["ratio"] |= {"mean": 0.123, "interval95": 0.045}
    path.write_text(json.dumps(document))
    assert "time 0.12 ± 0.04" in figures.table(figures.Results(tmp_path / "results"))
    path.unlink()
    without = figures.table(figures.Results(tmp_path / "results"))
    assert "PEFT" not in without
    assert "Keras" in without


def spread(*runs: float) -> dict[str, Any]:
    return {"mean": sum(runs) / len(runs), "median": runs[0], "interval95": 0.02, "runs": list(runs)}


def test_peers_stand_by_their_fastest_variant(figures: ModuleType, tmp_path: Path) -> None:
    speeds = {
        "llmtool": 900,
        "llmtool+compile": 1100,
        "nanogpt": 1000,
        "nanogpt+compile": 1050,
        "litgpt": 980,
    }
    programs = {name: {"tokens_per_second": spread(speed)} for name, speed in speeds.items()}
    ratios = {name: spread(1100 / speed) for name, speed in speeds.items() if speed < 1100}
    found = {"programs": programs, "ours": "llmtool+compile", "ratios": ratios}
    (tmp_path / "peers_cpu_small.json").write_text(json.dumps({"figures": found}))
    rows = figures.table(figures.Results(tmp_path)).splitlines()
    assert len(rows) == 2 + 1
    what, peer, ours = (cell.strip() for cell in rows[2].strip("|").split("|"))
    assert what.endswith("tokens a second")
    assert peer == "nanogpt+compile 1,050, litgpt 980"
    assert ours == "1,100 (ratio 1.05 ± 0.02, 1.12 ± 0.02)"
    (tmp_path / "peers_cpu_small.json").write_text(json.dumps({"short": True, "figures": found}))
    assert figures.table(figures.Results(tmp_path)).count("\n") == 1  # a short run is no figure


def test_time_to_the_same_loss(figures: ModuleType, tmp_path: Path) -> None:
    def program(loss: float, seconds: float, mib: int) -> dict[str, Any]:
        peak = spread(mib * 2**20)
        return {"loss": spread(loss), "seconds": spread(seconds), "peak_bytes": peak}

    names = {"litgpt": (1.667, 125, 500), "nanogpt": (1.886, 114, 400), "llmtool": (1.739, 90, 390)}
    programs = {name: program(*figures) for name, figures in names.items()}
    programs["recipe, 800 steps"] = program(1.65, 50, 380)
    ratio = {"time_ratio": spread(0.4), "memory_ratio": spread(0.76)}
    reached = {"recipe": {"name": "recipe, 800 steps", **ratio}, "recipe at that size": None}
    document = {"figures": {"programs": programs, "reached": reached}}
    (tmp_path / "peers_target.json").write_text(json.dumps(document))
    rows = figures.table(figures.Results(tmp_path)).splitlines()[2:]
    assert [row.split("|", 2)[2].strip("| ") for row in rows] == [
        "litgpt 1.667, nanogpt 1.886 | 1.739",
        "litgpt 125, nanogpt 114 | recipe 50 (ratio 0.40 ± 0.02)",
        "litgpt 500, nanogpt 400 | recipe 380 (ratio 0.76 ± 0.02)",
    ]
