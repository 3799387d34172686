"""The guard of training: how often it refuses a sound step, how many planted rows it finds, what it costs.

    python scripts/benchmarks/guard.py --save

False alarms: whole trainings with every step's loss written down and nothing refused (`guard.spread: null`),
the losses then judged with the default spread: the stories of the repository, and harder ones (tiny batches,
rows learned by heart). Found: a table of which one row holds a wild number, 20 seeds, by `llmtool train`.
Cost: microseconds of judging one loss, and the share of the table's 0.5 ms step.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from llmtool.training.guard import ENOUGH, Guard, GuardConfig, Memory, mean_and_deviation

ADULT, IRIS, LETTERS = (f"configs/tabular/{name}.yaml" for name in ("adult", "iris", "letters"))
TRAININGS: dict[str, tuple[str, dict[str, str]]] = {
    "iris": (IRIS, {}),
    "iris, batch 4, by heart": (IRIS, {"train.batch": "4", "train.budget": "{steps: 3000}"}),
    "adult": (ADULT, {}),
    "adult, batch 16": (ADULT, {"train.batch": "16", "train.budget": "{epochs: 3}"}),
    "letters, by heart": (
        LETTERS,
        {"model.dropout": "0", "train.batch": "32", "train.budget": "{epochs: 30}"},
    ),
    "california": ("configs/tabular/california.yaml", {}),
    "california, batch 8": (
        "configs/tabular/california.yaml",
        {"train.batch": "8", "train.budget": "{epochs: 4}", "data.encode.scale": "standard"},
    ),
    "bank": ("configs/tabular/bank.yaml", {}),
    "shakespeare": ("configs/language/shakespeare.yaml", {}),
}
FETCHED = {"letters": "letter_recognition", "california": "california_housing", "bank": "bank_marketing"}
SPREAD = GuardConfig().spread
WILD = """\
data:
  source: {format: csv, path: wild.csv}
  split: {by: order, train: 0.9, validation: 0.1, test: 0}
  encode: {as: features, target: answer, scale: none}
model: {family: mlp, hidden: [16]}
train: {budget: {steps: 200}, batch: 8}
"""


def losses_of(config: str, keys: dict[str, str], place: Path) -> list[float]:
    """The loss of every step of a training."""
    sets = {"run": place / "run", "train.log_every": 1, "train.guard.spread": "null", **keys}
    common.timed(common.llmtool("train", config, sets=sets))
    rows = [json.loads(line) for line in (place / "run/train/metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def judged(losses: Sequence[float]) -> dict[str, Any]:
    """How many steps the guard would refuse, and the most deviations that a new highest loss was above."""
    guard, refused, highest = Guard(SPREAD, Memory([], None)), 0, 0.0
    for loss in losses:
        recent = list(guard.recent)
        if len(recent) >= ENOUGH and loss > max(recent):
            mean, deviation = mean_and_deviation(recent)
            highest = max(highest, (loss - mean) / deviation if deviation else 0.0)
        if guard.judge(loss, 1.0):
            refused += 1
        else:
            guard.remember(loss)
    return {"steps": len(losses), "refused": refused, "most_deviations": round(highest, 1)}


def planted(seed: int, place: Path) -> dict[str, Any]:
    """Train on a table with a wild row; whether it was refused, and named as the one to blame."""
    chance, line = random.Random(seed), 302 + seed
    lines = ["a,b,answer"]
    for at in range(2, 1002):
        a, b = chance.gauss(0, 1), chance.gauss(0, 1)
        answer = "yes" if a + b > 0 else "no"
        lines.append(f"{-3e9 if at == line else round(a, 3)},{b:.3f},{answer}")
    (place / "wild.yaml").write_text(WILD)
    found = {"diverged": False, "named": False, "harmless": False}
    for _ in range(2):  # the wild row may suit the model's guess; then it is given the other answer
        (place / "wild.csv").write_text("\n".join(lines) + "\n")
        sets = {"seed": seed, "run": f"runs/{seed}", "train.log_every": 1}
        for command in ("prepare", "train"):
            done = subprocess.run(
                common.llmtool(command, "wild.yaml", sets=sets), cwd=place, capture_output=True, text=True
            )
        if done.returncode == 5:
            return {**found, "diverged": True, "named": f"wild.csv:{line} " in done.stderr}
        wild = lines[line - 1]
        lines[line - 1] = wild[:-3] + "no" if wild.endswith("yes") else wild[:-2] + "yes"
    rows = [json.loads(row) for row in (place / f"runs/{seed}/train/metrics.jsonl").read_text().splitlines()]
    found["harmless"] = max(row["loss"] for row in rows if "loss" in row) < 1e3
    return found


def cost(times: int) -> float:
    """Microseconds of judging one loss."""
    guard, chance = Guard(SPREAD, Memory([], None)), random.Random(0)
    losses = [chance.gauss(3, 0.1) for _ in range(times)]
    began = time.perf_counter()
    for loss in losses:
        guard.judge(loss, 1.0)
        guard.remember(loss)
    return 1e6 * (time.perf_counter() - began) / times


def main() -> None:
    """Measure all three and show them."""
    options = common.parser(__doc__).parse_args()
    figures: dict[str, Any] = {"spread": SPREAD, "trainings": {}, "planted": {}}
    chosen = list(TRAININGS)[: 2 if options.short else None]
    for name in chosen:
        config, keys = TRAININGS[name]
        with tempfile.TemporaryDirectory() as place, contextlib.suppress(SystemExit):
            if (table := FETCHED.get(Path(config).stem)) is not None:
                common.timed([common.sys.executable, "scripts/fetch.py", table])
            figures["trainings"][name] = judged(losses_of(config, keys, Path(place)))
    rows = [[name, *found.values()] for name, found in figures["trainings"].items()]
    common.table(
        f"Sound trainings, judged with spread {SPREAD}", ["", "steps", "refused", "most deviations"], rows
    )
    with tempfile.TemporaryDirectory() as place:
        found = [planted(seed, Path(place)) for seed in range(3 if options.short else 20)]
    figures["planted"] = {key: sum(one[key] for one in found) for key in found[0]} | {"of": len(found)}
    print(f"wild rows: {figures['planted']}")
    figures["microseconds"] = common.spread([cost(20_000) for _ in range(5)])
    print(f"judging a loss: {figures['microseconds']['median']:.1f} us")
    common.save(options, "guard", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
