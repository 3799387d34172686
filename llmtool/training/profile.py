"""Where a training step's time goes: a few steps under torch's profiler, as a Chrome trace and in figures."""

from __future__ import annotations

import gzip
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from llmtool.core import files
from llmtool.core.devices import synchronize

FIRST, STEPS = 5, 8  # steps of a session before recording begins, and steps recorded
TRACE, FIGURES = "trace.json.gz", "profile.json"
TOP = 10  # operators told of
STEP, PART = "llmtool step", "llmtool "  # names in the trace
PARTS = ("data", "forward", "backward", "clip", "optimizer")
ASIDE = "aside"  # validation and checkpoints, no part of a step
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")  # Kineto's categories of what runs on a device
RUNTIME = ("cuda_runtime", "cuda_driver")
NOTHING: AbstractContextManager[Any] = nullcontext()

Event = dict[str, Any]
Span = tuple[float, float]  # begin and end in microseconds


class Profile:
    """Records some steps of a training, and leaves trace and figures in a directory.

    It watches only: no random stream and no number of the training is touched. Recorded steps are slower,
    and the meter leaves them out.
    """

    def __init__(self, directory: Path, device: torch.device, first: int = FIRST, steps: int = STEPS) -> None:
        self.directory, self.device = directory, device
        self.first, self.last = first, first + steps
        self.seen = self.recorded = 0
        self.recorder: Any = None  # torch's, while it records
        self.step: Any = None  # the step that is being recorded
        self.trace: Path | None = None

    def part(self, name: str) -> AbstractContextManager[Any]:
        """A name in the trace for what happens inside; one of PARTS, or ASIDE."""
        return NOTHING if self.recorder is None else record_function(PART + name)

    def stepped(self) -> bool:
        """A step has ended: whether it was recorded."""
        self.seen += 1
        recorded = self.recorder is not None
        if recorded:
            self.recorded += 1
            self.step.__exit__(None, None, None)
        if self.seen == self.last:
            self._stop()
        if self.seen == self.first:
            self._start()
        if self.recorder is not None:
            self.step = record_function(STEP)
            self.step.__enter__()
        return recorded

    def _start(self) -> None:
        # without it Kineto writes two lines of its own on stderr; it is read when the first recorder starts
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        self.recorder = torch.profiler.profile(activities=[ProfilerActivity.CPU, *cuda])
        synchronize(self.device)  # what the device has still to do belongs to steps before
        self.recorder.start()

    def _stop(self) -> None:
        """End recording; the trace stands in the directory if a whole step is in it."""
        synchronize(self.device)
        recorder, self.recorder = self.recorder, None
        recorder.stop()
        if self.recorded:
            files.make_directories(self.directory)
            temporary = files.temporary_beside(self.directory / TRACE)
            made = temporary.with_name(temporary.name + ".gz")  # the name says to torch that it is compressed
            recorder.export_chrome_trace(str(made))
            made.replace(self.directory / TRACE)
            self.trace = self.directory / TRACE

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *error: object) -> None:
        """However training ended, what is recorded so far is kept."""
        if self.recorder is not None:
            self.step.__exit__(None, None, None)
            self._stop()

    def result(self, throughput: dict[str, float], flops: float | None, peak: float | None) -> dict[str, Any]:
        """The figures of `figures`, written as profile.json too; {"missing": why} where no step was recorded.

        throughput: of the steps that were not recorded. flops: of a step. peak: FLOP/s of the device.
        """
        self.__exit__()
        if self.trace is None:
            why = f"only {self.seen} steps were made, and the first {self.first} are not recorded"
            return {"missing": f"no profile: {why}"}
        with gzip.open(self.trace, "rt", encoding="utf-8") as file:
            found = figures(json.load(file)["traceEvents"])
        seconds = found["step_seconds"]
        share = flops / (seconds * peak) if flops and peak else None
        found["peak_share"] = {"recorded": share, "others": throughput.get("peak_share")}
        found["trace"] = str(self.trace)
        files.write_json(self.directory / FIGURES, found)
        return found


# --- what a trace says ------------------------------------------------------------------------------------


def figures(events: list[Event]) -> dict[str, Any]:
    """Of a Chrome trace of whole steps: seconds of a step by part, what waits, the operators that take most.

    Seconds are the host's; on a GPU `device` says for how long the device worked for each part, and for how
    long it had nothing to do. All of one step, on average.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    named = [event for event in whole if event.get("cat") == "user_annotation"]
    began = _named(named, PART + "forward")
    # the one that was open when training ended holds nothing
    steps = [step for step in _named(named, STEP) if any(_within(begin, [step]) for begin, _ in began)]
    asides = _named(named, PART + ASIDE)
    parts = {name: _within_steps(_named(named, PART + name), steps, asides) for name in PARTS}
    inside = [event for event in whole if _within(event["ts"], steps) and not _within(event["ts"], asides)]
    runtime = [event for event in inside if event.get("cat") in RUNTIME]
    launched = {event.get("args", {}).get("correlation"): event["ts"] for event in runtime}
    device = [
        event
        for event in whole
        if event.get("cat") in KERNELS and event.get("args", {}).get("correlation") in launched
    ]
    count, busy = len(steps), _joined(map(_span, device))
    # a device may still be at work when the host has ended its last step
    end = max(steps[-1][1], busy[-1][1] if busy else 0.0)
    step = (end - steps[0][0] - _length(_within_steps(asides, steps, []))) / count / 1e6
    seconds = {name: _length(spans) / count / 1e6 for name, spans in parts.items()}
    found: dict[str, Any] = {
        "steps": count,
        "step_seconds": step,
        "parts": seconds | {"rest": step - sum(seconds.values())},
        "waits": {"data_seconds": seconds["data"]},
    }
    if device:
        found["device"] = {
            "busy_seconds": _length(busy) / count / 1e6,
            "idle_share": max(0.0, 1 - _length(busy) / count / 1e6 / step),
            "kernels": len(device) / count,
            "parts": _by_part(device, launched, parts, count),
        }
        # a thread that makes rows ready may wait for itself
        loop = {event["tid"] for event in named if event["name"] == STEP}
        synced = [e["dur"] for e in runtime if "Synchronize" in e["name"] and e["tid"] in loop]
        found["waits"] |= {
            "synchronisations": len(synced) / count,
            "synchronisation_seconds": sum(synced) / count / 1e6,
        }
        found["top"] = _top(((short(event["name"]), event["dur"]) for event in device), count, step)
    else:
        operators = [event for event in inside if event.get("cat") == "cpu_op"]
        found["top"] = _top(_own_times(operators), count, step)
    return found


def _span(event: Event) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def _within(moment: float, spans: list[Span]) -> bool:
    """Whether it lies in one of the spans, which are in order and do not overlap."""
    place = bisect_right(spans, (moment, float("inf"))) - 1
    return place >= 0 and moment < spans[place][1]


def _named(events: list[Event], name: str) -> list[Span]:
    """When the parts of that name were, in order."""
    return sorted(_span(event) for event in events if event["name"] == name)


def _within_steps(spans: list[Span], steps: list[Span], asides: list[Span]) -> list[Span]:
    """Those that begin in a step, and not in what stands aside there."""
    return [span for span in spans if _within(span[0], steps) and not _within(span[0], asides)]


def _length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def _by_part(
    device: list[Event], launched: dict[Any, float], parts: dict[str, list[Span]], count: int
) -> dict[str, float]:
    """Seconds of a step that the device worked for each part of it: the one in which the host launched it.

    Copies from the host are data, whenever a thread beside the loop made them.
    """
    found = dict.fromkeys((*parts, "rest"), 0.0)
    for event in device:
        moment = launched[event["args"]["correlation"]]
        name = next((name for name, spans in parts.items() if _within(moment, spans)), "rest")
        found["data" if "HtoD" in event["name"] else name] += event["dur"] / count / 1e6
    return found


def _own_times(operators: list[Event]) -> Iterable[tuple[str, float]]:
    """Name and microseconds of each operator without those that it calls, thread by thread."""
    for thread in {event["tid"] for event in operators}:
        calls = sorted(
            (event for event in operators if event["tid"] == thread), key=lambda e: (e["ts"], -e["dur"])
        )
        own = [event["dur"] for event in calls]
        open_: list[int] = []  # calls around the current one
        for index, event in enumerate(calls):
            while open_ and _span(calls[open_[-1]])[1] <= event["ts"]:
                open_.pop()
            if open_:
                own[open_[-1]] -= event["dur"]
            open_.append(index)
        yield from ((short(event["name"]), max(0.0, time)) for event, time in zip(calls, own, strict=True))


def short(name: str) -> str:
    """A kernel's or operator's name without template arguments and parameters, at most 60 characters."""
    name = re.sub(r"^(void|at::native::|aten::)\s*", "", name.removeprefix("void "))
    name = re.sub(r"\(.*$|<.*$", "", name) or name
    return name if len(name) <= 60 else name[:57] + "..."


def _top(times: Iterable[tuple[str, float]], count: int, step: float) -> list[dict[str, Any]]:
    """The names that take most time of a step, with how often they are called in one."""
    calls: dict[str, int] = {}
    total: dict[str, float] = {}
    for name, microseconds in times:
        calls[name] = calls.get(name, 0) + 1
        total[name] = total.get(name, 0.0) + microseconds
    best = sorted(total, key=lambda name: -total[name])[:TOP]
    each = {name: total[name] / count / 1e6 for name in best}
    return [
        {"name": name, "calls": calls[name] / count, "seconds": each[name], "share": each[name] / step}
        for name in best
    ]
