"""What llmtool itself costs: the time of `--help`, and the share of a step that is not the model's work.

    python scripts/benchmarks/overhead.py --save

A step's own overhead is everything but the forward pass with its loss, the backward pass, clipping and the
optimizer: fetching rows, random streams, guards, counting. It is measured inside `llmtool train` by clocks
around those four (on a CPU nothing runs behind the clocks' back), for the article's MLP and for the 4 x 128
transformer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

CASES = {
    "mlp": "configs/tabular/article.yaml",
    "transformer": "configs/language/nanogpt_cpu.yaml",
}
STEPS = {"mlp": 4000, "transformer": 300}


def help_times(runs: int) -> list[float]:
    """Seconds of `llmtool --help`, run after run, the installed command where there is one."""
    script = Path(sys.executable).with_name("llmtool")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "llmtool"]
    subprocess.run([*command, "--help"], check=True, capture_output=True)  # the first one writes .pyc files
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([*command, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return times


def inside(config: str, run: str, steps: int) -> None:
    """In a process of its own: train with clocks around the model's work, print the sums as JSON."""
    import torch

    from llmtool.commands import Options, prepare, train
    from llmtool.training.loop import Loop

    clocks: dict[str, float] = {}
    total = steps_seen = 0.0

    def clocked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                clocks[name] = clocks.get(name, 0.0) + time.perf_counter() - began

        return timed

    update, whole = Loop._update, Loop.run

    def counted(self: Loop, *arguments: Any) -> Any:
        nonlocal steps_seen
        steps_seen += 1
        return update(self, *arguments)

    def started(self: Loop, state: Any) -> str:
        nonlocal total
        self.loss = clocked("forward", self.loss)
        self.optimizers.step = clocked("optimizer", self.optimizers.step)
        self.verbs.record = clocked("record", self.verbs.record)
        self.verbs.save = clocked("aside", self.verbs.save)
        if self.verbs.validate:
            self.verbs.validate = clocked("aside", self.verbs.validate)
        clocks.clear()
        began = time.perf_counter()
        try:
            return whole(self, state)
        finally:
            total = time.perf_counter() - began

    torch.Tensor.backward = clocked("backward", torch.Tensor.backward)
    Loop.run, Loop._update, Loop.norm = started, counted, clocked("norm", Loop.norm)
    sets = [f"run={run}", f"train.budget={{steps: {steps}}}", "train.compile=false"]
    rare = [f"train.{key}_every={10 * steps}" for key in ("validate", "checkpoint")]
    prepare.run(Options(config, sets))
    train.run(Options(config, [*sets, *rare]))
    print(json.dumps({"total": total, "steps": steps_seen, **clocks}))


def step(name: str, steps: int) -> dict[str, float]:
    """Microseconds of a step by part, and `overhead`, the share that is none of the model's work."""
    with tempfile.TemporaryDirectory() as folder:
        done = common.timed([sys.executable, __file__, "--inside", CASES[name], f"{folder}/run", steps])
    sums = json.loads(done.output.splitlines()[-1])
    count = sums.pop("steps")
    total = sums.pop("total") - sums.pop("aside", 0.0)  # one validation and one checkpoint, at the end
    record = sums.pop("record", 0.0)
    parts = {key: 1e6 * seconds / count for key, seconds in sums.items()}
    parts |= {"record": 1e6 * record / count, "total": 1e6 * total / count}
    return {**parts, "overhead": 1 - sum(sums.values()) / total}


def main() -> None:
    """Measure both and show them."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each training")
    options = parser.parse_args()
    times = common.spread(help_times(5 if options.short else 20))
    print(f"llmtool --help: median {times['median']:.3f} s (goal: at most 0.2)")
    figures: dict[str, Any] = {"help_seconds": times}
    rows = []
    for name in CASES:
        steps = STEPS[name] // (10 if options.short else 1)
        runs = [step(name, steps) for _ in range(1 if options.short else options.runs)]
        figures[name] = {key: common.spread([run[key] for run in runs]) for key in runs[0]}
        parts = ("forward", "backward", "norm", "optimizer", "total")
        rows.append(
            [
                name,
                *(f"{figures[name][part]['mean']:.0f}" if part in figures[name] else "-" for part in parts),
                f"{100 * figures[name]['overhead']['mean']:.1f} %",
            ]
        )
    columns = ["model", "forward", "backward", "norm", "optimizer", "step", "own share"]
    common.table("Microseconds of a training step (goal: own share below 2 %)", columns, rows)
    common.save(options, "overhead", figures, common.versions("llmtool", "torch", "typer"))


if __name__ == "__main__":
    main()
