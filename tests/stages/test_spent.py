"""What a training took: memory of a block, and what is written beside the prediction and read again."""

import json
import sys

import pytest
import torch

from llmtool.stages import spent

CPU = torch.device("cpu")
SIZE = 64 * 2**20
PREDICTED = {"device": "a", "peak_bytes": 90, "step_seconds": 2.0, "seconds": None, "kwh": None, "memory": {}}
PREDICTED |= {"micro_batch": 1, "batch": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of a block is Linux's")
def test_the_peak_is_that_of_the_block_and_the_weights_are_in_it():
    before = torch.ones(2 * SIZE)  # a peak that is over
    del before
    model = torch.nn.Linear(100, 100)
    with spent.watched(model, CPU) as peak:
        held = torch.ones(SIZE // 4)
        del held
    assert peak.bytes == pytest.approx(SIZE + 4 * 10100, rel=0.1)


@pytest.mark.cuda
def test_the_peak_of_a_gpu_is_what_torch_allocated():
    device = torch.device("cuda", 0)
    model = torch.nn.Linear(100, 100).to(device)
    with spent.watched(model, device) as peak:
        held = torch.ones(SIZE // 4, device=device)
        del held
    assert peak.bytes == pytest.approx(SIZE + 4 * 10100, rel=0.1)


def test_predicted_and_actual_stand_side_by_side():
    found = spent.compared(PREDICTED, spent.Peak(100), 1.6, 50.0)
    assert found["error"] == {
        "peak_bytes": pytest.approx(1 / 9),
        "step_seconds": pytest.approx(-0.2),
        "seconds": None,
    }
    assert found["actual"]["seconds"] == 50.0
    unknown = spent.compared(PREDICTED, spent.Peak(None), None, 50.0)
    assert unknown["error"] == dict.fromkeys(("peak_bytes", "step_seconds", "seconds"))


def test_seconds_of_a_step_come_from_the_meter():
    assert spent.seconds_of_step({"rows_per_second": 50.0}, 10, 1) == 0.2
    assert spent.seconds_of_step({"tokens_per_second": 100.0}, 10, 5) == 0.5
    assert spent.seconds_of_step({}, 10, 5) is None


def test_only_runs_that_are_done_count(tmp_path):
    assert spent.last(tmp_path) == {}
    for section, status in (("train", "done"), ("finetune", "failed")):
        (tmp_path / section).mkdir()
        result = {"status": status, "cost": {"actual": {}}}
        (tmp_path / section / "result.json").write_text(json.dumps(result))
    assert spent.last(tmp_path) == {"train": {"actual": {}}}
    (tmp_path / "train" / "result.json").write_text("{")
    assert spent.last(tmp_path) == {}
