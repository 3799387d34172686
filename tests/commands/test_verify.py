"""`--verify`: proofs that hold on sound code and fail on unsound code, and never touch the run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmtool.training import loop
from tests.commands.test_rehearse import everything
from tests.conftest import Run


@pytest.mark.parametrize("project", ["table", "text"])
def test_killed_and_resumed_is_the_same_and_the_run_is_not_touched(
    fresh: Path, llmtool: Run, project: str
) -> None:
    before = everything(fresh)
    ended = llmtool("train", f"{project}.yaml", "--verify", "resume:7", "--json", cwd=fresh)
    assert ended.code == 0, ended.err
    assert everything(fresh) == before
    found = ended.json["verify"]
    assert (found["steps"], found["killed_at"], found["resumed_from"]) == (7, 4, 3)
    parts = {part["what"]: part for part in found["parts"]}
    assert list(parts) == ["weights", "optimizer state", "state of the loop", "rows of metrics"]
    assert all(part["equal"] and part["hashes"][0] == part["hashes"][1] for part in parts.values())
    assert parts["weights"]["count"] == (4 if project == "table" else 20)
    assert parts["optimizer state"]["bytes"] > 2 * parts["weights"]["bytes"]
    assert parts["rows of metrics"]["count"] == 7 + 3  # a line a step; validations at 3, 6 and the last


def test_a_resume_that_is_not_exact_is_found(
    fresh: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive = loop.derive
    # the process that is killed draws its dropout from other streams than this one
    monkeypatch.setattr(loop, "derive", lambda seed, *names: derive(seed + 1, *names))
    ended = llmtool("train", "table.yaml", "--verify", "resume", cwd=fresh)
    assert ended.code == 1
    assert ended.error == "--verify resume: not the same: weights"
    assert re.search(r"differs first in model\.safetensors: \S+, by up to \S+", ended.out)
    assert "NOT the same" in ended.out


@pytest.mark.parametrize("project", ["table", "text"])
def test_micro_batches_and_packing_change_nothing(fresh: Path, llmtool: Run, project: str) -> None:
    before = everything(fresh)
    ended = llmtool("train", f"{project}.yaml", "--verify", "invariance", "--json", cwd=fresh)
    assert ended.code == 0, ended.err
    assert everything(fresh) == before
    found = ended.json["verify"]
    sizes = [part["rows"] for part in found["parts"]]
    assert sizes == ([16, 8, 4, 2, 1] if project == "table" else [4, 2, 1, 4, 4])
    assert all(part["equal"] and part["tolerance"] == 1e-6 for part in found["parts"])
    assert any(part["gradient_difference"] > 0 for part in found["parts"])  # they were really computed apart


def test_finetune_is_proved_from_its_start(copy: Path, llmtool: Run) -> None:
    before = everything(copy)
    for proof in ("resume:3", "invariance"):
        ended = llmtool("finetune", "table.yaml", "--verify", proof, cwd=copy)
        assert ended.code == 0, ended.err
    assert everything(copy) == before


@pytest.mark.parametrize("what", ["resum", "resume:2", "resume:", "resume:²", "invariance:x", ""])
def test_what_is_no_proof(fresh: Path, llmtool: Run, what: str) -> None:
    ended = llmtool("train", "table.yaml", "--verify", what, cwd=fresh)
    assert ended.code == 2
    assert "expected resume, resume:N (steps, at least 3) or invariance" in ended.error


def test_what_is_wrong_with_the_file_keeps_its_place_and_code(fresh: Path, llmtool: Run) -> None:
    wrong = ["--set", "train.optimizer={name: adamw, lr: 1e30}"]
    assert llmtool("train", "table.yaml", "--verify", "resume", *wrong, cwd=fresh).code == 5
    ended = llmtool("finetune", "table.yaml", "--verify", "invariance", cwd=fresh)
    assert ended.code == 2
    assert ended.error.startswith("table.yaml:8:12: finetune.start: runs/table/train: no checkpoint here")
