"""A chain in Make, as the README shows it: nothing runs twice, and after a change just what is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_projects

MAKEFILE = """\
.DELETE_ON_ERROR:
TABLE = runs/table

all: $(TABLE)/evaluate/result.json

$(TABLE)/prepare/result.json: table.yaml people.csv
\t$(LLMTOOL) prepare $<

$(TABLE)/train/result.json: table.yaml $(TABLE)/prepare/result.json
\t$(LLMTOOL) train $<

$(TABLE)/evaluate/result.json: table.yaml $(TABLE)/train/result.json
\t$(LLMTOOL) evaluate $<
"""


def make(directory: Path) -> tuple[int, list[str], str]:
    """The exit code, the commands that Make ran, and everything that was said."""
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["make", f"LLMTOOL={sys.executable} -m llmtool"],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    ran = [
        line.split(" -m llmtool ")[1].split()[0]
        for line in done.stdout.splitlines()
        if " -m llmtool " in line
    ]
    return done.returncode, ran, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_chain_runs_once_and_then_only_what_changed(tmp_path: Path) -> None:
    write_projects(tmp_path)
    config = tmp_path / "table.yaml"
    config.write_text("\n".join(x for x in config.read_text().splitlines() if "finetune" not in x) + "\n")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    code, ran, said = make(tmp_path)
    assert (code, ran) == (0, ["prepare", "train", "evaluate"]), said
    assert make(tmp_path)[:2] == (0, [])

    # another requirement: Make asks every command, and all but evaluate find nothing to do
    weights = tmp_path / "runs/table/train/best/model.safetensors"
    before = weights.stat().st_mtime_ns
    config.write_text(config.read_text().replace(">=0.1", ">=0.99"))
    code, ran, said = make(tmp_path)
    assert code == 2  # Make's own; the command ended with 3
    assert "Error 3" in said
    assert "test.accuracy is " in said
    assert ran == ["prepare", "train", "evaluate"]
    assert weights.stat().st_mtime_ns == before
    assert not (tmp_path / "runs/table/evaluate/result.json").exists()  # .DELETE_ON_ERROR

    # back, and a row more: everything
    config.write_text(config.read_text().replace(">=0.99", ">=0.1"))
    with (tmp_path / "people.csv").open("a") as file:
        file.write("50,40,Bern,yes,low\n")
    code, ran, said = make(tmp_path)
    assert (code, ran) == (0, ["prepare", "train", "evaluate"]), said
    assert weights.stat().st_mtime_ns != before
    assert make(tmp_path)[:2] == (0, [])
