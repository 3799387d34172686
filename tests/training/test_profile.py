"""The profile: it changes no number, and its figures are those of the trace."""

from __future__ import annotations

import copy
import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool.core import files
from llmtool.training.loop import State
from llmtool.training.profile import FIGURES, TRACE, Profile, figures, short
from llmtool.training.throughput import Meter
from tests.training.test_loop import Notes, make
from tests.training.toys import ToyMLP, table


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def named(name: str, ts: float, dur: float) -> dict[str, Any]:
    return event("user_annotation", f"llmtool {name}", ts, dur)


def two_steps() -> list[dict[str, Any]]:
    """Steps of 1000 and 1400 microseconds, the second with 400 of validation in it."""
    return [
        {"ph": "M", "name": "process_name", "ts": 0.0, "tid": 0},
        named("step", 0, 1000), named("data", 0, 100), named("forward", 100, 300),
        named("backward", 400, 400), named("clip", 800, 50), named("optimizer", 850, 100),
        named("step", 1000, 1400), named("aside", 1000, 400), named("data", 1100, 50),
        named("data", 1400, 100), named("forward", 1500, 300), named("backward", 1800, 400),
        named("clip", 2200, 50), named("optimizer", 2250, 100),
    ]  # fmt: skip


def test_parts_of_a_step_and_what_stands_aside() -> None:
    found = figures(two_steps())
    assert found["steps"] == 2
    assert found["step_seconds"] == pytest.approx(1e-3)
    expected = {"data": 100, "forward": 300, "backward": 400, "clip": 50, "optimizer": 100, "rest": 50}
    assert {name: round(1e6 * seconds) for name, seconds in found["parts"].items()} == expected
    assert "device" not in found


def test_operators_are_charged_with_their_own_time() -> None:
    calls = [
        event("cpu_op", "aten::linear", 110, 200), event("cpu_op", "aten::addmm", 120, 150),
        event("cpu_op", "aten::copy_", 130, 30), event("cpu_op", "aten::relu", 320, 40),
        event("cpu_op", "aten::addmm", 130, 60, tid=2),  # of another thread: no child of those
        event("cpu_op", "aten::linear", 1050, 300),  # of validation
        event("cpu_op", "aten::linear", 9000, 300),  # of no step
    ]  # fmt: skip
    top = figures([*two_steps(), *calls])["top"]
    assert {one["name"]: round(2e6 * one["seconds"]) for one in top} == {
        "addmm": 180, "linear": 50, "relu": 40, "copy_": 30,
    }  # fmt: skip
    assert top[0]["name"] == "addmm"
    assert top[0]["calls"] == 1.0
    assert top[0]["share"] == pytest.approx(0.09)


def test_a_device_is_judged_by_what_the_host_launched() -> None:
    def launch(name: str, ts: float, number: int, *kernels: tuple[str, float, float]) -> list[dict[str, Any]]:
        ran = [event("kernel", *one, tid=7, correlation=number) for one in kernels]
        return [event("cuda_runtime", name, ts, 5, correlation=number), *ran]

    events = [
        *two_steps(),
        *launch("cudaLaunchKernel", 200, 1, ("void gemm<float, 3>(int)", 210, 200)),
        *launch("cudaGraphLaunch", 500, 2, ("norm", 420, 300), ("norm", 600, 200)),  # overlap: 420 to 800
        *launch("cuLaunchKernel", 900, 3, ("triton_poi_fused", 1600, 1000)),  # goes on after the last step
        *launch("cudaLaunchKernel", 1200, 4, ("validating", 1210, 100)),
        event("cuda_runtime", "cudaMemcpyAsync", 450, 5, tid=2, correlation=5),  # beside backward
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 810, 40, tid=8, correlation=5),
        event("cuda_runtime", "cudaStreamSynchronize", 1850, 60),
        event("cuda_runtime", "cudaEventSynchronize", 1850, 60, tid=2),  # not of the loop
        event("cuda_runtime", "cudaStreamSynchronize", 1100, 60),  # of validation
    ]
    found = figures(events)
    assert found["step_seconds"] == pytest.approx((2600 - 400) / 2e6)
    device = found["device"]
    assert device["busy_seconds"] == pytest.approx((200 + 380 + 40 + 1000) / 2e6)
    assert device["idle_share"] == pytest.approx(1 - 1620 / 2200)
    assert device["kernels"] == 2.5
    assert {name: round(2e6 * seconds) for name, seconds in device["parts"].items()} == {
        "data": 40, "forward": 200, "backward": 500, "clip": 0, "optimizer": 1000, "rest": 0,
    }  # fmt: skip
    assert found["waits"]["synchronisations"] == 0.5
    assert found["waits"]["synchronisation_seconds"] == pytest.approx(30e-6)
    assert [one["name"] for one in found["top"]][:3] == ["triton_poi_fused", "norm", "gemm"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("aten::addmm", "addmm"),
        ("void at::native::vectorized_kernel<4, at::native::Foo<float>>(int, char*)", "vectorized_kernel"),
        ("Torch-Compiled Region: 0/0", "Torch-Compiled Region: 0/0"),
        ("<lambda>", "<lambda>"),
        ("x" * 70, "x" * 57 + "..."),
    ],
)
def test_names_are_short(name: str, shown: str) -> None:
    assert short(name) == shown


def trained(profile: Profile | None, steps: int = 8) -> tuple[ToyMLP, Meter, Notes]:
    torch.manual_seed(0)
    notes = Notes(scores=[1.0] * 20)
    loop = make(ToyMLP(dropout=0.2), table(rows=40), notes, steps=steps, micro_batch=4, validate_every=3)
    loop.meter = Meter(8, profile=profile)
    with profile or nullcontext():
        loop.run(State())
    return loop.model, loop.meter, notes  # type: ignore[return-value]


def test_recording_changes_no_number(tmp_path: Path) -> None:
    plain, before, rows = trained(None)
    profile = Profile(tmp_path, torch.device("cpu"), first=4, steps=2)
    model, meter, recorded = trained(profile)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    without = [[{k: v for k, v in row.items() if k != "time"} for row in n.rows] for n in (rows, recorded)]
    assert without[0] == without[1]
    assert (before.steps, meter.steps) == (5, 3)  # recorded ones are not counted

    found = profile.result(meter.summary(), flops=1e6, peak=1e9)
    assert found == files.read_json(tmp_path / FIGURES)
    assert found["steps"] == 2
    assert sum(found["parts"].values()) == pytest.approx(found["step_seconds"])
    assert all(found["parts"][name] > 0 for name in ("data", "forward", "backward", "clip", "optimizer"))
    assert found["peak_share"]["recorded"] == pytest.approx(1e6 / found["step_seconds"] / 1e9)
    assert {"addmm"} <= {one["name"] for one in found["top"]}
    with gzip.open(tmp_path / TRACE, "rt") as file:
        forwards = [e for e in json.load(file)["traceEvents"] if e["name"] == "llmtool forward"]
    assert len(forwards) == 4  # two parts of two steps


def test_a_training_that_ends_early_leaves_what_was_recorded(tmp_path: Path) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), first=4, steps=50)
    trained(profile, steps=6)
    assert profile.result({}, None, None)["steps"] == 2


def test_a_training_too_short_for_it_says_so(tmp_path: Path) -> None:
    profile = Profile(tmp_path / "none", torch.device("cpu"))
    trained(profile, steps=4)
    assert profile.result({}, None, None) == {
        "missing": "no profile: only 4 steps were made, and the first 5 are not recorded"
    }
    assert not (tmp_path / "none").exists()


@pytest.mark.cuda
def test_on_cuda_kernels_and_gaps_are_told(tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())

    def run(profile: Profile | None) -> ToyMLP:
        torch.manual_seed(0)
        loop = make(ToyMLP().to(device), table(rows=40), Notes(), steps=10)
        loop = copy.copy(loop)
        loop.device, loop.meter = device, Meter(8, profile=profile)
        loop.__post_init__()
        with profile or nullcontext():
            loop.run(State())
        return loop.model  # type: ignore[return-value]

    profile = Profile(tmp_path, device, first=4, steps=3)
    for one, other in zip(run(profile).parameters(), run(None).parameters(), strict=True):
        assert torch.equal(one, other)
    found = profile.result({}, None, None)
    told = found["device"]
    assert told["kernels"] > 5
    assert 0 < told["busy_seconds"] <= found["step_seconds"]
    assert 0 <= told["idle_share"] < 1
    assert told["parts"]["backward"] > 0
    assert sum(told["parts"].values()) >= told["busy_seconds"] * 0.999
    assert found["waits"]["synchronisations"] >= 0
