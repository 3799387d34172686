"""The proofs themselves: a flipped bit, a row that differs, a loss that mixes rows or documents are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmtool.core.contracts import Batch, Loss
from llmtool.core.errors import LlmtoolError
from llmtool.data.store import Dataset
from llmtool.experiment import load
from llmtool.stages import assemble, verify
from llmtool.stages.assemble import Assembled


@pytest.fixture
def assembled(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Assembled:
    """The text project's model, new."""
    monkeypatch.chdir(finished)
    return assemble.from_experiment(load("text.yaml").experiment, Dataset.open("runs/text/prepare"))


def test_two_trainings_are_compared_bit_by_bit(finished: Path, tmp_path: Path) -> None:
    one, other = (
        finished / "runs/text/train",
        Path(shutil.copytree(finished / "runs/text/train", tmp_path / "x")),
    )
    assert all(part.equal and not part.first for part in verify.compare_trainings(one, other))
    path = (other / "last").resolve() / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80  # a sign
    path.write_bytes(content)
    rows = (other / "metrics.jsonl").read_text().splitlines()
    rows[1] = json.dumps({**json.loads(rows[1]), "loss": 0.5, "time": {}})
    (other / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    found = {part.what: part for part in verify.compare_trainings(one, other)}
    assert [what for what, part in found.items() if not part.equal] == ["weights", "rows of metrics"]
    assert found["weights"].first.startswith("model.safetensors: ")
    assert found["weights"].largest is not None
    assert found["rows of metrics"].first == "row 2"


@pytest.mark.parametrize(
    ("batch", "most", "sizes"), [(12, 12, [12, 6, 3, 1]), (8, 2, [2, 1]), (7, 7, [7, 1]), (1, 1, [1])]
)
def test_parts_divide_the_batch(batch: int, most: int, sizes: list[int]) -> None:
    assert verify.halves(batch, most) == sizes


def test_a_loss_that_mixes_rows_is_found(assembled: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(part.equal for part in verify.micro_batches(assembled, 8, 8))
    sound = assembled.task.loss

    def mixed(model: torch.nn.Module, batch: Batch) -> Loss:  # a mean of means
        loss = sound(model, batch)
        return Loss(loss.total / loss.count, torch.ones(()))

    monkeypatch.setattr(assembled.task, "loss", mixed)
    found = verify.micro_batches(assembled, 8, 8)
    assert found[0].equal
    assert not all(part.equal for part in found)
    assert all(parameter.grad is None for parameter in assembled.model.parameters())


def test_a_model_that_sees_other_documents_is_found(
    assembled: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verify.packing(assembled, 8)
    assert len(found) == 2
    assert all(part.equal for part in found)
    sound = assembled.task.loss
    monkeypatch.setattr(
        assembled.task, "loss", lambda model, batch: sound(model, Batch(batch.inputs, batch.targets))
    )
    found = verify.packing(assembled, 8)
    assert not found[1].equal
    assert found[1].gradient_difference > 1e-3


def test_nothing_scored_is_no_proof(assembled: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Loss(next(assembled.model.parameters()).sum() * 0, torch.zeros(()))
    monkeypatch.setattr(assembled.task, "loss", lambda model, batch: nothing)
    with pytest.raises(LlmtoolError, match="no target that is scored"):
        verify.micro_batches(assembled, 1, 1)
