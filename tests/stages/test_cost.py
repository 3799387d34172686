"""What a training will take: of the parts that a prediction adds up, and of what cannot be known."""

from dataclasses import replace

import pytest
import torch

from llmtool.core.contracts import Classes, Features, Images, NextToken, Tokens
from llmtool.core.hardware import TABLE, Device
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import cost
from llmtool.stages.cost import Work, predict
from llmtool.training import TrainConfig

CPU = Device("a cpu", kind="cpu", memory=1e9, bandwidth=1e10, flops={"fp32": 1e11}, curves=1e9, call=1e-6)
H200 = TABLE[0]
SETTINGS = {"budget": {"steps": 100}, "batch": 8, "micro_batch": 8, "compile": False}
SETTINGS |= {"validate_every": 50, "checkpoint_every": 50, "activation_checkpointing": 0}


def work(precision="fp32", width=32, rows=1000, **keys):
    config = TransformerConfig(depth=2, heads=4, width=width, context=16, architecture="gpt2", dropout=0.0)
    with torch.device("meta"):
        model = config.build(Tokens(61), NextToken(61))
    return Work(model, TrainConfig(**SETTINGS | keys), model.inputs, rows, 16, 16, 100, precision)


def test_a_prediction_adds_up():
    found = predict(work(), CPU)
    parts = found["memory"]
    live = parts["weights"] + parts["optimizer"] + max(parts["step"], parts["scoring"], parts["saving"])
    assert found["peak_bytes"] == parts["total"] == live + parts["allocator"]
    assert found["fits"]
    assert found["steps"] == 100
    whole = 100 * found["step_seconds"] + found["scoring_seconds"] + found["saving_seconds"]
    assert found["seconds"] == pytest.approx(whole)
    assert parts["optimizer"] == pytest.approx(2 * parts["weights"], rel=0.02)
    assert found["kwh"] is None
    assert any("energy" in line for line in found["missing"])


def test_an_average_costs_a_copy_and_micro_batches_save_activations():
    plain, averaged = predict(work(), CPU), predict(work(ema=0.9), CPU)
    assert averaged["memory"]["average"] == plain["memory"]["weights"]
    parts = predict(work(micro_batch=2), CPU)
    assert parts["memory"]["step"] < plain["memory"]["step"]
    assert parts["step_seconds"] > plain["step_seconds"], "the same products in four times as many calls"


def test_energy_and_money_follow_from_the_time():
    found = predict(work("bf16"), replace(H200, price_per_hour=3.6, currency="EUR"))
    assert found["kwh"] == pytest.approx(0.7 * found["seconds"] / 3600)
    assert found["price"] == pytest.approx(found["seconds"] / 1000)
    assert found["missing"] == []


def test_short_rows_take_less_time_and_the_same_memory():
    long, short = work(), work()
    short.mean = 4
    one, other = predict(long, CPU), predict(short, CPU)
    assert other["peak_bytes"] == one["peak_bytes"]
    assert other["step_seconds"] < one["step_seconds"]


def test_data_that_is_not_prepared_leaves_the_whole_open():
    found = predict(work(rows=0, budget={"epochs": 2}), CPU)
    assert found["step_seconds"] > 0
    assert found["seconds"] is None
    assert any("llmtool prepare" in line for line in found["missing"])
    assert predict(work(budget={"time": "10m"}), CPU)["seconds"] == 600


def test_nothing_is_scored_where_there_is_no_validation_split():
    none, unknown = work(), work()
    none.validation_rows, unknown.validation_rows = 0, None
    found = predict(none, CPU)
    assert found["memory"]["scoring"] == found["scoring_seconds"] == 0
    assert 0 < predict(work(), CPU)["memory"]["scoring"] < predict(unknown, CPU)["memory"]["scoring"]


def test_a_device_without_rates_says_its_memory_only():
    found = predict(work(), replace(CPU, flops={}))
    assert found["peak_bytes"] > 0
    assert found["seconds"] is None
    assert found["missing"][0].startswith("time: no matrix rate")


def pictures(**keys):
    with torch.device("meta"):
        model = ConvNetConfig(family="convnet", stem="small", widths=[4], depths=[1])
        model = model.build(Images(3, 8, 8), Classes(2))
    return Work(model, TrainConfig(**SETTINGS | keys), model.inputs, 1000, validation_rows=100)


def test_augmentation_is_measured_here_and_said_to_be_left_out_elsewhere():
    device = torch.device("cpu")
    everything = {"crop": 1, "randaugment": {}, "erase": 0.5, "mixup": 0.2, "cutmix": 1.0}
    plain, changed = pictures(), pictures(augment=everything)
    assert cost.augmentation(plain, device) == 0
    for small in (changed, pictures(augment=everything, micro_batch=2), pictures(augment={"flip": True})):
        assert cost.augmentation(small, device) > 0
    whole, parts = (predict(pictures(augment=everything, micro_batch=n), CPU, 0.5) for n in (8, 2))
    without = predict(plain, CPU)
    assert whole["step_seconds"] == pytest.approx(without["step_seconds"] + 0.5)
    assert whole["micro_batch_seconds"] == pytest.approx(without["micro_batch_seconds"] + 0.5)
    assert 2 < parts["step_seconds"] < 2.5
    assert not any("augmentation" in line for line in whole["missing"] + without["missing"])
    assert any("augmentation" in line for line in predict(changed, H200)["missing"])


def test_this_machine_is_measured():
    with torch.device("meta"):
        model = MLPConfig(hidden=[8]).build(Features(4), Classes(2))
    small = Work(model, TrainConfig(**SETTINGS), model.inputs, 1000, 1, 1, 100)
    here = cost.here(small, torch.device("cpu"))
    assert here.kind == "cpu"
    assert here.memory
    assert here.bandwidth
    assert here.watts is None
    assert 0 < predict(small, here)["step_seconds"] < 1


@pytest.mark.cuda
def test_this_gpu_is_of_the_table_or_measured():
    here = cost.here(work("bf16"), torch.device("cuda", 0))
    assert here.kind == "cuda"
    assert predict(work("bf16"), here)["step_seconds"] > 0
