"""What a training would need if it were set up otherwise: as an account says, and as a file that says so."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool import experiment
from llmtool.core.contracts import Classes, Images, NextToken, Tokens
from llmtool.experiment import FinetuneConfig
from llmtool.models import quantised
from llmtool.models.accounting import account
from llmtool.models.adapters import HeadConfig, LoRAConfig
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import describe, subject
from llmtool.stages.fitting import ANOTHER, LEARNING, SAME, Setup
from llmtool.stages.needs import ModelNeeds, adapted, proposals
from tests.models.small import transformer

FILE = """
run: runs/small
data:
  source: {format: text, path: words.txt}
  encode: {as: tokens, tokenizer: {kind: bytes}}
model: {family: transformer, architecture: gpt2, depth: 4, heads: 2, width: 32, context: 32}
train: {batch: 16, micro_batch: 16, ema: 0.99, budget: {steps: 1}, activation_checkpointing: none}
"""


def described(path: Path, monkeypatch: pytest.MonkeyPatch, device_bytes: int, *sets: str) -> dict[str, Any]:
    monkeypatch.setattr(subject, "memory_bytes", lambda device: device_bytes)
    loaded = experiment.load(str(path), list(sets))
    return describe.describe(subject.of_experiment(loaded.experiment, None))


@pytest.mark.parametrize("share", [0.95, 0.6, 0.35, 0.25, 0.12])
def test_every_proposal_can_be_pasted_and_then_fits(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    whole = described(path, monkeypatch, 2**40)["memory"]
    assert whole["fits"]
    assert whole["proposals"] == []
    there = int(share * whole["total"])
    found = described(path, monkeypatch, there)
    assert found["memory"]["fits"] is False
    changes = found["memory"]["proposals"]
    assert changes
    for change in changes:
        words = shlex.split(change["options"])
        assert words[::2] == ["--set"] * len(change["set"])
        after = described(path, monkeypatch, there, *words[1::2])["memory"]
        assert after["fits"], change["says"]
        assert after["total"] == change["needs"]
    rows = dict(describe.cost_rows(found))
    assert rows["  device"].startswith("does not fit in")
    assert rows["  fits with"] == f"{changes[0]['options']}: {changes[0]['says']}"


def test_needs_are_those_of_an_account() -> None:
    model = transformer("llama")
    needs = ModelNeeds(model, None, "cpu", None)
    setup = Setup("train", 8, 4, recomputed=1, optimizer="muon")
    expected = account(model, 4, 16, optimizer="muon", recomputed=1).memory
    assert needs(setup) == expected
    averaged = needs(Setup("train", 8, 4, recomputed=1, optimizer="muon", ema=True))
    assert averaged.optimizer - expected.optimizer == sum(4 * p.numel() for p in model.parameters())


def test_fine_tuning_may_take_updates_of_low_rank_instead() -> None:
    model = transformer("gpt2")
    needs = ModelNeeds(model, None, "cpu", None)
    setup = Setup("finetune", 4, 4)
    there = int(0.62 * needs(setup).total / 0.9)
    found = proposals(setup, needs, (1e6, 2e6), there)
    lora = next(one for one in found if "finetune.method={kind: lora}" in one.set)
    assert lora.result == LEARNING
    assert all(one.result != ANOTHER for one in found)  # the start has the sizes that it has
    updated = transformer("gpt2")
    LoRAConfig(kind="lora").apply(updated)
    given = dict(one.split("=", 1) for one in lora.set)
    rows = int(given.get("finetune.micro_batch", 4))
    again = {"all": 2}.get(said := given.get("finetune.activation_checkpointing", "0")) or int(said)
    assert lora.needs == account(updated, rows, 16, recomputed=again).memory.total


def test_a_method_is_applied_without_weights() -> None:
    model = transformer("gpt2")
    head = adapted(model, HeadConfig())
    assert all(p.device.type == "meta" for p in head.parameters())
    assert sum(p.requires_grad for p in head.parameters()) == 1
    assert all(p.requires_grad for p in model.parameters())
    assert adapted(model, None) is model


def test_four_bits_are_taken_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks says how many bytes they save; the model itself has its whole weights, with no package."""
    monkeypatch.setattr(quantised, "load_bitsandbytes", lambda: pytest.fail("it is not needed"))
    model, setup = transformer("gpt2"), Setup("finetune", 4, 4, method="lora")
    plain, packed = (
        ModelNeeds(adapted(model, LoRAConfig(rank=2, quantise=kind)), None, "cpu", None)(setup)
        for kind in ("none", "nf4")
    )
    assert packed == plain
    fit = FinetuneConfig(start="x", method={"kind": "lora", "quantise": "nf4"}, budget={"steps": 1})
    there = describe.Subject("a", None, model, None, 4, "fp32", "adamw", device_bytes=plain.total // 2)
    less = plain.weights // 2
    assert describe.what_fits(there, fit, 4, 4, (1e6, 2e6), less)


def test_norms_over_the_rows_are_known() -> None:
    with torch.device("meta"):
        model = ConvNetConfig(stem_width=4, widths=[8, 12], depths=[1, 1]).build(
            Images(3, 16, 16), Classes(3)
        )
    needs = ModelNeeds(model, None, "cpu", None)
    setup = Setup("train", 32, 32)
    fewest = needs(replace(setup, recomputed=2)).total
    assert fewest < needs(setup).total
    found = proposals(setup, needs, (1e6, 2e6), int(fewest / 0.9) + 1)
    assert next(one for one in found if one.set == ["train.micro_batch=16"]).result == LEARNING
    assert found[0].result == SAME
    assert found[0].set[0].startswith("train.activation_checkpointing=")


def test_a_large_model_is_searched_without_its_memory() -> None:
    config = TransformerConfig(
        architecture="llama",
        depth=16,
        heads=16,
        key_value_heads=8,
        width=2048,
        feed_forward=8192,
        context=4096,
    )
    with torch.device("meta"):
        model = config.build(Tokens(32_000), NextToken(32_000))
    needs = ModelNeeds(model, config, "cuda", None)
    setup = Setup("train", 8, 8, precision="bf16", context=4096, depth=16)
    found = proposals(setup, needs, (1e12, 2e12), 24 * 2**30)
    assert found
    assert found[0].result == SAME
    assert needs(setup).total > 24 * 2**30 > found[0].needs
