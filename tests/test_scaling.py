"""One rank of many, simulated: what is counted is what the closed forms say; and the page standing on it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "scripts/benchmarks"
NAMES = ("common", "published", "rank_forms", "scaling", "simulate_ranks")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts, whose names are their own only for the time of these tests."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)


LAYOUTS = {"data": (8, 1, 1), "tensor and context": (2, 2, 2)}


@pytest.fixture(scope="module")
def sizes(scripts: dict[str, ModuleType]) -> Any:
    """Four blocks; a vocabulary that neither 2 nor 4 ranks share evenly, so that parts are padded."""
    return scripts["rank_forms"].Sizes(4, 96, 6, 2, 160, 8203)


@pytest.fixture(scope="module")
def layouts(scripts: dict[str, ModuleType]) -> dict[str, Any]:
    """Of eight ranks, two rows each."""
    make = scripts["rank_forms"].Layout
    return {name: make(*shape, rows=2, tokens=12_288) for name, shape in LAYOUTS.items()}


@pytest.fixture(scope="module")
def counted(scripts: dict[str, ModuleType], sizes: Any, layouts: dict[str, Any]) -> dict[str, Any]:
    """What was counted of each, without (False) and with recomputed blocks; seconds, for both tests."""
    simulate = scripts["simulate_ranks"].simulate
    return {name: simulate(sizes, layout) for name, layout in layouts.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_rank_of_eight_holds_and_sends_is_what_the_forms_say(
    scripts: dict[str, ModuleType], sizes: Any, layouts: dict[str, Any], counted: dict[str, Any], name: str
) -> None:
    simulate, layout = scripts["simulate_ranks"], layouts[name]
    for recomputed, one in counted[name].items():
        assert simulate.differences(sizes, layout, recomputed, one) == []
        groups = {each.group for each in one.messages if each.ranks > 1}
        assert groups == ({"rows"} if name == "data" else {"rows", "context", "tensor"})
    assert set(counted[name][False].held) == {"weights", "gradients", "adamw", "muon"}
    wrong = replace(one, held=one.held | {"gradients": one.held["gradients"] + 1})
    assert len(simulate.differences(sizes, layout, True, wrong)) == 1
    assert simulate.differences(sizes, replace(layout, data=4), True, one) != []


def test_each_block_saves_less_where_ranks_share_it_and_its_inputs_where_it_is_recomputed(
    counted: dict[str, Any],
) -> None:
    alone, shared = (counted[name][False].saved for name in LAYOUTS)
    stream = 2 * 12_288 * 96 * 4  # bytes of the vectors between two blocks
    for saved, part in ((alone, 1), (shared, 2)):  # context ranks have half of the tokens
        blocks = [sum(block.values()) for block in saved.blocks]
        assert len(blocks) == 4
        assert len(set(blocks[1:])) == 1
        for recomputed in range(4):
            less = saved.bytes(recomputed) - saved.bytes(recomputed + 1)
            assert 0 < less < blocks[1]
        assert sum(saved.inputs[1].values()) == pytest.approx(stream / part, rel=0.3)  # and the angles
    of_block = [sum(saved.blocks[1].values()) for saved in (alone, shared)]
    assert of_block[0] / 4 < of_block[1] < of_block[0] / 2  # norms are whole on tensor ranks


def test_forms_of_llama(scripts: dict[str, ModuleType]) -> None:
    forms, sizes = scripts["rank_forms"], scripts["rank_forms"].MODELS["70 B"]
    assert sizes.parameters == 70_553_706_496  # https://huggingface.co/meta-llama/Llama-3.1-70B
    for name, layout in scripts["simulate_ranks"].LAYOUTS.items():
        assert layout.ranks == 512
        if not name.startswith("70 B"):
            continue
        there = forms.held(sizes, layout)
        assert there["gradients"] == pytest.approx(4 * sizes.parameters / 512, rel=0.02)
        assert there["adamw"] == pytest.approx(2 * there["gradients"], rel=1e-6)
        assert there["gradients"] < there["muon"] < there["adamw"]


def test_a_ring_of_two_sends_half_and_one_of_many_all(scripts: dict[str, ModuleType]) -> None:
    message = scripts["rank_forms"].Message("all-gather", "rows", 2, 1, 1000)
    assert message.sent == 500
    assert replace(message, ranks=1000).sent == 999
    assert replace(message, kind="all-reduce").sent == 1000


def test_the_page_says_what_was_measured_and_computed(scripts: dict[str, ModuleType]) -> None:
    scaling = scripts["scaling"]
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page == scaling.updated(page), "python scripts/benchmarks/scaling.py"


def test_published_hours_come_out_as_they_went_in(scripts: dict[str, ModuleType]) -> None:
    scaling = scripts["scaling"]
    low, high = scaling.gpu_hours("70 B", 15e12)
    assert high == 7.0e6
    assert low == pytest.approx(15e12 / 652.4 / 3600)
    assert scaling.between_failures(16_384) == pytest.approx(54 * 24 / 419)


def test_how_numbers_are_written(scripts: dict[str, ModuleType]) -> None:
    scaling = scripts["scaling"]
    assert [scaling.short(n) for n in (0.01234, 1.5, 12.34, 1234.4, 7_000_000)] == [
        "0.0123", "1.5", "12.3", "1,230", "7,000,000"
    ]  # fmt: skip
    assert [scaling.time_of(hours) for hours in (1e-3, 0.5, 5, 100, 1e5)] == [
        "3.6 s", "30 min", "5 h", "4.17 days", "11.4 years"
    ]  # fmt: skip
