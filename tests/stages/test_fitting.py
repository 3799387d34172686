"""The search for changes that fit: the smallest first, exact ones before others, all of them fit."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from llmtool.models.accounting import Memory
from llmtool.stages import fitting
from llmtool.stages.fitting import ANOTHER, LEARNING, ROUNDING, SAME, Choices, Setup, Speed

WORK = Speed(1e9, 2e9, {"fp32": 1e12, "bf16": 4e12}, 1e-3)
BLOCKS = 12
FREE = 0.9  # of the device


def needs(setup: Setup) -> Memory:
    """A model of 100 bytes: what each choice does to its parts."""
    half = 0.5 if setup.precision == "bf16" else 1.0
    weights = 100 * (setup.depth or 8) // 8
    learned = 2 if setup.method == "lora" else weights
    state = {"adamw": 2.0, "muon": 1.25, "sgd": 1.0}[setup.optimizer]
    row = (40 - 3 * setup.recomputed) * half * ((setup.context or 64) / 64) * (setup.depth or 8) / 8
    average = learned if setup.ema else 0
    return Memory(weights, learned, int(state * learned) + average, int(row * setup.rows))


SETUP = Setup("train", batch=16, rows=16, context=64, depth=8)
CHOICES = Choices(blocks=BLOCKS, halved=True)


def propose(room: float, setup: Setup = SETUP, choices: Choices = CHOICES) -> list[fitting.Proposal]:
    return fitting.propose(setup, needs, round(room / FREE) + 1, choices, WORK)


def test_what_fits_needs_no_change() -> None:
    assert propose(needs(SETUP).total) == []


@pytest.mark.parametrize("room", range(402, 1040, 7))
def test_every_proposal_fits_and_the_first_are_exact(room: int) -> None:
    found = propose(room)
    assert found
    assert all(one.needs <= room + 1 for one in found)
    kinds = [fitting.KINDS.index(one.result) for one in found]
    assert kinds == sorted(kinds)
    if needs(fitting.least(SETUP, CHOICES)).total <= room:
        assert found[0].result == SAME
    assert len({tuple(one.set) for one in found}) == len(found)


def test_the_smallest_changes_are_proposed() -> None:
    found = propose(800)
    assert [one.set for one in found[:2]] == [
        ["train.micro_batch=8"],
        ["train.activation_checkpointing=5"],
    ]
    assert found[0].slower == pytest.approx(50e-3 / 49e-3, abs=1e-3)
    assert found[1].slower == pytest.approx((16 * (3 + 5 / 12) * 1e-3 + 1e-3) / 49e-3, abs=1e-3)
    assert "precision=bf16" in found[2].set
    assert found[2].result == ROUNDING
    assert found[2].slower < 1
    with_sgd = next(one for one in found if "train.optimizer={name: sgd}" in one.set)
    assert with_sgd.result == LEARNING


def test_both_exact_ones_together_where_neither_is_enough() -> None:
    tight = needs(replace(SETUP, rows=1)).total - 20  # one row alone is too much, with blocks recomputed not
    found = propose(tight, replace(SETUP, batch=1, rows=1))
    assert found[0].set == ["train.activation_checkpointing=7"]
    found = propose(tight)
    assert found[0].set == ["train.micro_batch=4", "train.activation_checkpointing=all"]
    assert found[0].needs == needs(replace(SETUP, rows=4, recomputed=12)).total <= tight


def test_what_changes_the_result_comes_where_nothing_else_helps() -> None:
    found = propose(380)  # weights, gradients and two moments alone are 400
    assert {one.result for one in found} == {LEARNING, ANOTHER}
    assert found[0].set == ["train.micro_batch=1", "train.optimizer={name: muon}"]
    assert all(one.result == ANOTHER for one in found if any("model." in key for key in one.set))
    tuned = propose(330, replace(SETUP, section="finetune"), replace(CHOICES, lora=True))
    assert ["finetune.method={kind: lora}"] in [one.set[-1:] for one in tuned]
    averaged = propose(440, replace(SETUP, ema=True))
    assert any("train.ema=null" in one.set for one in averaged)


def test_several_changes_together_where_no_single_one_is_enough() -> None:
    found = propose(310, replace(SETUP, context=None, depth=None, ema=True))
    assert len(found) == 1
    assert {"train.ema=null", "train.optimizer={name: sgd}"} <= set(found[0].set)
    assert found[0].needs <= 310


def test_nothing_helps() -> None:
    found = propose(20, replace(SETUP, context=None, depth=None))
    assert found == []
    assert "a smaller model is needed" in fitting.says(found, 1040, 22)


def test_norms_over_the_rows_make_fewer_of_them_another_training() -> None:
    found = propose(800, choices=replace(CHOICES, norms=True))
    assert found[0].set == ["train.activation_checkpointing=5"]
    fewer = next(one for one in found if one.set == ["train.micro_batch=8"])
    assert fewer.result == LEARNING
    assert fitting.least(SETUP, Choices(norms=True)).rows == 2


def test_it_is_said_in_a_line_that_can_be_pasted() -> None:
    found = propose(380)
    said = fitting.says(found, 1040, 422)
    assert said.startswith("does not fit in 422 B (needs 1.0 kB, and a tenth is kept free); smallest change")
    pasted = shlex.split(said.split(": --set", 1)[1])
    assert pasted[::2] == found[0].set
    assert fitting.document(found)[0]["options"] == found[0].options
