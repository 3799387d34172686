"""What a stage costs that has nothing to do: each command again on a finished run, beside its imports alone.

    python scripts/benchmarks/noop.py --save      Iris, Adult, and a text of 1 GB (about 15 minutes)

Beside each command runs a process that only imports the same modules, as the command line does it (without
looking for garbage on the way); they take turns, and what counts is the median of the differences, pair by
pair. The file of the 1 GB text is at rest, so its hash is known from the last time; `touched` is the same
with another time of change: its bytes are read again. `inside` is the time from the last import to the end
of the command, by clocks in its own process: a busy machine disturbs it least.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

COMMANDS = ("prepare", "describe", "train", "finetune", "evaluate")
GOAL = 0.3  # seconds
IMPORTS = "import gc; gc.disable(); import llmtool.cli, llmtool.commands.{}; gc.freeze()"
TUNE = "{{start: {run}/train, method: {{kind: lora}}, budget: {{steps: 20}}}}"
TEXT = """\
run: {run}
data:
  source: {{format: text, path: {path}}}
  split: {{by: order, train: 0.9998, validation: 0.0001, test: 0.0001}}
  encode: {{as: tokens, tokenizer: {{kind: bytes}}}}
model: {{family: transformer, depth: 1, width: 32, heads: 2, context: 32}}
train: {{budget: {{steps: 2}}, batch: 4}}
"""


def inside(name: str, config: str, sets: list[str]) -> None:
    """In a process of its own: the command after its imports, seconds and processor seconds as JSON."""
    import gc
    import importlib

    from llmtool.commands import Options

    gc.disable()
    module, console = (
        importlib.import_module(f"llmtool.{part}") for part in (f"commands.{name}", "core.console")
    )
    gc.freeze()
    gc.enable()
    console.configure(json=False)
    began, worked = time.perf_counter(), time.process_time()
    module.run(Options(config, sets))
    clocks = [time.perf_counter() - began, time.process_time() - worked]
    print(json.dumps(dict(zip(("seconds", "cpu_seconds"), clocks, strict=True))))


def beside(command: list[str], name: str, runs: int) -> dict[str, Any]:
    """Seconds of the command and of its imports, in turn; `difference`: the medians of the pairs'."""
    kinds = {
        "command": command,
        "imports": [sys.executable, "-c", IMPORTS.format(name)],
        "inside": [sys.executable, __file__, "--inside", *command[3:]],
    }
    found: dict[str, list[common.Timed]] = {kind: [] for kind in kinds}
    for number in range(runs + 1):
        for kind, words in kinds.items():
            timed = common.timed(words)
            if number:  # the first one writes .pyc files and fills the page cache
                found[kind].append(timed)
    wall, cpu = {}, {}
    for kind, many in found.items():
        wall[kind], cpu[kind] = [one.seconds for one in many], [one.cpu_seconds for one in many]
    pairs = {
        "difference": [a - b for a, b in zip(wall["command"], wall["imports"], strict=True)],
        "cpu_difference": [a - b for a, b in zip(cpu["command"], cpu["imports"], strict=True)],
    }
    seconds = {kind: common.spread(many) for kind, many in wall.items() if kind != "inside"}
    clocks = [json.loads(one.output.splitlines()[-1]) for one in found["inside"]]
    within = {key: statistics.median([clock[key] for clock in clocks]) for key in clocks[0]}
    return {
        "seconds": seconds,
        "inside": within,
        **{kind: statistics.median(many) for kind, many in pairs.items()},
    }


def story(config: str, place: Path, runs: int) -> dict[str, Any]:
    """All five commands of a configuration, run once and then again and again."""
    run = place / Path(config).stem
    sets = {"run": run, "evaluate.require": "{}", "finetune": TUNE.format(run=run)}
    for name in COMMANDS:
        common.timed(common.llmtool(name, config, sets=sets))
    return {name: beside(common.llmtool(name, config, sets=sets), name, runs) for name in COMMANDS}


def large(megabytes: int, place: Path, runs: int) -> dict[str, Any]:
    """`prepare` and `train` on a large text that was prepared and trained on before."""
    path, config = place / "text.txt", place / "text.yaml"
    lines = (common.ROOT / "configs/data/tinyshakespeare.txt").read_bytes().splitlines(keepends=True)
    chance = random.Random(0)
    with path.open("wb") as file:
        while file.tell() < megabytes * 10**6:
            chance.shuffle(lines)
            file.writelines(lines)
    config.write_text(TEXT.format(run=place / "text", path=path))
    for name in ("prepare", "train"):
        common.timed(common.llmtool(name, config))
    found: dict[str, Any] = {"bytes": path.stat().st_size}
    for name in ("prepare", "train"):
        found[name] = beside(common.llmtool(name, config), name, runs)
    os.utime(path)
    found["prepare, touched"] = beside(common.llmtool("prepare", config), "prepare", runs)
    return found


def main() -> None:
    """Measure them and show them."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2], sys.argv[3], sys.argv[5::2])
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=int, default=7, help="of each command")
    parser.add_argument("--size", type=int, default=1000, help="of the large text, in MB")
    options = parser.parse_args()
    runs, size = (2, 20) if options.short else (options.runs, options.size)
    names = ("iris",) if options.short else ("iris", "adult")
    with tempfile.TemporaryDirectory() as folder:
        stories = [(name, f"configs/tabular/{name}.yaml") for name in names]
        figures: dict[str, Any] = {name: story(config, Path(folder), runs) for name, config in stories}
        figures["text"] = large(size, Path(folder), runs)
    rows = []
    for name, commands in figures.items():
        for command, found in commands.items():
            if isinstance(found, dict):
                medians = [found["seconds"][kind]["median"] for kind in ("command", "imports")]
                rows.append(
                    [f"{name}: {command}", *medians, found["difference"], found["inside"]["seconds"],
                     found["inside"]["cpu_seconds"]]
                )  # fmt: skip
    columns = ["", "command", "its imports", "difference", "inside", "of it processor time"]
    common.table(f"Seconds of a command with nothing to do (goal: difference below {GOAL})", columns, rows)
    common.save(options, "noop", figures, common.versions("llmtool", "torch", "pydantic"))


if __name__ == "__main__":
    main()
