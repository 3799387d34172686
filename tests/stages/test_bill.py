"""What `describe` says of cost: here and elsewhere, by the method that is asked for, and of the last run."""

import pytest
import torch
from rich.console import Console

from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.hardware import HERE, TABLE, Device
from llmtool.experiment import FinetuneConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.stages.bill import bill, energy, last_lines, money, show
from llmtool.stages.describe import Subject
from llmtool.training import TrainConfig

KEYS = {"budget": {"steps": 10}, "batch": 4, "compile": False}


def subject():
    config = TransformerConfig(depth=2, heads=4, width=32, context=16, architecture="llama")
    with torch.device("meta"):
        model = config.build(Tokens(61), NextToken(61))
    return Subject("a", config, model, None, 4, "fp32", "adamw")


def billed(fit=TrainConfig(**KEYS), devices=TABLE, wanted=(), precision="auto"):  # noqa: B008
    return bill(subject(), fit, "cpu", precision, list(devices), list(wanted))


def test_here_and_elsewhere_each_in_the_precision_it_would_have():
    found = billed(wanted=["H200", "T4"])
    assert found["here"]["precision"] == "fp32"
    assert [(each["device"], each["precision"]) for each in found["on"]] == [("H200", "bf16"), ("T4", "fp32")]
    assert all(each["seconds"] > 0 and each["kwh"] > 0 for each in found["on"])
    console = Console(width=300, record=True)
    console.print(show(found))
    text = console.export_text()
    assert "H200: 4 rows a step, bf16" in text
    assert "not known: energy: the power of this machine" in text


def test_power_and_price_of_this_machine_are_the_users():
    here = Device(HERE, watts=100.0, price_per_hour=36.0, currency="EUR")
    found = billed(devices=[here, *TABLE])["here"]
    assert found["price"] == pytest.approx(found["seconds"] / 100)
    assert found["kwh"] == pytest.approx(found["seconds"] / 36000)
    assert found["device"] == HERE


def test_an_adapter_needs_less_than_the_whole_model():
    fits = [FinetuneConfig(start="x", method={"kind": kind}, **KEYS) for kind in ("full", "lora", "head")]
    whole, lora, head = (billed(fit)["here"] for fit in fits)
    assert whole["memory"]["optimizer"] > 2 * lora["memory"]["optimizer"] > 0
    assert head["step_seconds"] < whole["step_seconds"]
    plain = subject()
    bill(plain, fits[1], "cpu", "auto", TABLE, [])
    assert all(parameter.requires_grad for parameter in plain.model.parameters()), "the model is as it was"


def test_little_energy_and_money_are_said_in_figures_that_a_person_reads():
    said = [energy(kwh) for kwh in (3.2e-7, 2e-4, 0.0567, 1.25, 1234.5)]
    assert said == ["less than 0.1 Wh", "0.2 Wh", "56.7 Wh", "1.2500 kWh", "1,234 kWh"]
    assert [money(price, "EUR") for price in (0.0, 1e-5, 0.5, 1234.5)] == [
        "0.00 EUR",
        "less than 0.01 EUR",
        "0.50 EUR",
        "1,234.50 EUR",
    ]
    assert money(2.0, "") == "a price of 2.00"


def test_a_precision_that_a_device_may_not_have_is_named():
    found = billed(wanted=["T4", "L4"], precision="bf16")
    lines = [line for each in found["on"] for line in each["missing"] if "bf16" in line]
    assert lines == ["bf16 on T4: it may not have it; figures are those of fp32"]


def test_nothing_to_train_costs_nothing():
    assert bill(subject(), None, "cpu", "auto", TABLE, []) is None


def test_the_last_run_says_how_far_off_the_prediction_was():
    predicted = {"peak_bytes": 1.2e9, "step_seconds": None, "seconds": 90.0}
    actual = {"peak_bytes": 1.0e9, "step_seconds": 1.0, "seconds": 100.0}
    lines = list(last_lines({"train": {"predicted": predicted, "actual": actual}}))
    memory, time = "predicted 1.2 GB, took 1.0 GB (-17 %)", "predicted 1m30s, took 1m40s (+11 %)"
    assert lines == [f"last train: memory: {memory}; in all: {time}"]
    assert list(last_lines({})) == []
    predicted = {"peak_bytes": 2e5, "step_seconds": 0.002, "seconds": None}
    actual = {"peak_bytes": 5e5, "step_seconds": 1.0, "seconds": 15.0}
    (line,) = last_lines({"train": {"predicted": predicted, "actual": actual}})
    assert "took 500 kB (2.5 times)" in line.replace("500.0", "500")
    assert "took 1.0s (500 times)" in line


def test_what_cannot_be_followed_is_said_and_no_memory_is_listed(monkeypatch):
    def fails(*_args, **_keys):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("llmtool.stages.cost._traces", fails)
    console = Console(width=300, record=True)
    console.print(show(billed()))
    said = console.export_text()
    assert "not known: memory and time: a step could not be followed without data (no such kernel)" in said
    assert "memory of" not in said
