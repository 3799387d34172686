"""Costs through the commands: predicted, beside the actual ones, and for devices that are not here."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Run


def test_a_training_leaves_predicted_and_actual_and_describe_compares_them(
    finished: Path, llmtool: Run
) -> None:
    for section in ("train", "finetune"):
        cost = json.loads((finished / f"runs/table/{section}/result.json").read_text())["cost"]
        assert cost["predicted"]["peak_bytes"] > 0
        assert cost["predicted"]["step_seconds"] > 0
        assert cost["actual"]["seconds"] > 0
        assert cost["error"]["seconds"] > -1
    ended = llmtool("describe", "table.yaml", cwd=finished)
    assert ended.code == 0, ended.err
    assert "last train: " in ended.out
    assert "last finetune: " in ended.out
    assert "nothing has changed" in ended.out + ended.err, "what came of a training makes describe no other"


def test_other_devices_and_what_they_cost(copy: Path, llmtool: Run) -> None:
    (copy / "mine.yaml").write_text(
        "currency: EUR\ndevices:\n"
        "  - {name: L4, price_per_hour: 0.5}\n"
        "  - {name: box, memory_gb: 8, bandwidth_gb: 100, teraflops: {fp32: 5}}\n"
    )
    asked = llmtool(
        "describe", "table.yaml", "--on", "H100", "--on", "L4", "--devices", "mine.yaml", "--json", cwd=copy
    )
    assert asked.code == 0, asked.err
    found = asked.json["cost"]
    assert asked.json["memory"]["training"]["rows"] == found["here"]["micro_batch"]
    names = [each["device"] for each in found["on"]]
    assert names == ["H100 SXM", "H100 NVL", "H100 PCIe", "L4"]
    assert found["on"][3]["price"] > 0
    assert found["on"][0]["price"] is None
    shown = llmtool("describe", "table.yaml", "--devices", "mine.yaml", cwd=copy)
    assert "box: " in shown.out
    assert "L4: " in shown.out


def test_mistakes_say_what_to_do(copy: Path, llmtool: Run) -> None:
    ended = llmtool("describe", "table.yaml", "--on", "TPU", cwd=copy)
    assert ended.code == 2
    assert "--on TPU: no such device (known: H200" in ended.err
    (copy / "bad.yaml").write_text("devices:\n  - {name: L4, prize_per_hour: 1}\n")
    ended = llmtool("describe", "table.yaml", "--devices", "bad.yaml", cwd=copy)
    assert ended.code == 2
    assert "bad.yaml:2:16" in ended.err
    assert llmtool("describe", "table.yaml", "--devices", "none.yaml", cwd=copy).code == 2
    assert llmtool("describe", "runs/table", "--on", "L4", cwd=copy).code == 2
