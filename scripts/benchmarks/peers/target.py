"""Tiny Shakespeare, characters: seconds until the validation loss that litgpt ends with.

    python scripts/benchmarks/peers/target.py --nanogpt /tmp/peers/nanoGPT \\
        --litgpt /tmp/peers/venv-litgpt/bin/python --save

nanoGPT and litgpt train 2000 steps of nanoGPT's published CPU setting (4 layers, width 128, context 64, batch
12, rate 1e-3); so does llmtool. Then our recipe, configs/language/shakespeare.yaml, as it stands and at the
size of that setting, with each of `--budgets` steps and in each of `--precisions` (peers compute in fp32): of
the runs whose end is at or below litgpt's, the shortest counts. Seconds are from the start of the process: of
peers to the end of their last step, without any validation; of ours with preparing the data, the validation
at the end and its checkpoint. Memory is the highest resident set until the last step. Losses are over the
whole validation text, by one function.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from settings import SETTINGS, Program, add_peers, drive, peers_versions, programs, write_text

import common  # isort: skip

RECIPE = common.ROOT / "configs/language/shakespeare.yaml"
KEPT = ("loss", "seconds", "peak_bytes")


def recipe(steps: int, sized: bool, precision: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Our file as a driver's setting; sized: with the layers, width, context and batch of `setting`."""
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    model = {key: setting[key] for key in ("depth", "heads", "width", "context")} if sized else {}
    train = {"batch": setting["batch"]} if sized else {}
    of = {**content["model"], **model, **train, "batch": train.get("batch", content["train"]["batch"])}
    own = {"file": str(RECIPE), "model": model, "train": train, "validate": steps, "steps": steps}
    own["precision"] = precision
    return setting | own | {"context": of["context"], "batch": of["batch"], "micro": of["batch"]}


def one(program: Program, setting: dict[str, Any], data: Path) -> dict[str, Any]:
    """A run: its loss, its seconds, its memory."""
    found = drive(program, setting, data)
    seen = found.get("validations")
    seconds = seen[-1]["seconds"] if seen else found["seconds_to_end"]
    kept = {key: found[key] for key in ("loss", "peak_bytes", "tokens_per_second", "seconds_to_first_step")}
    print(f"{program.name}, {setting['steps']} steps: {found['loss']:.4f} after {seconds:.0f} s", flush=True)
    return {**kept, "seconds": seconds, "validations": seen}


def turns(used: list[Program], options: Any, setting: dict[str, Any], data: Path) -> dict[str, Any]:
    """Everything in turn, `rounds` times: name -> its runs."""
    found: dict[str, list[dict[str, Any]]] = {}
    ours = next(program for program in used if program.name == "llmtool")
    for _ in range(options.rounds):
        for program in used:
            found.setdefault(program.name, []).append(one(program, setting, data))
        for sized in (False, True):
            for steps, precision in product(options.budgets, options.precisions):
                lower = "" if precision == "fp32" else f", {precision}"
                name = f"recipe{' at that size' if sized else ''}, {steps} steps{lower}"
                named = Program(name, ours.driver, ours.python)
                found.setdefault(name, []).append(one(named, recipe(steps, sized, precision, setting), data))
    return {
        name: {**{key: common.spread([run[key] for run in each]) for key in KEPT}, "each": each}
        for name, each in found.items()
    }


def shortest(found: dict[str, Any], start: str, target: float) -> str | None:
    """The name of the quickest of our runs that ends at or below the target."""
    good = [name for name in found if name.startswith(start) and found[name]["loss"]["mean"] <= target]
    return min(good, key=lambda name: found[name]["seconds"]["mean"]) if good else None


def main() -> None:
    """Measure and compare."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000, help="of the peers")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[600, 800, 1000], help="steps of our recipe"
    )
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    add_peers(parser, ["litgpt", "nanogpt", "llmtool"])
    options = parser.parse_args()
    if options.short:
        options.rounds, options.steps, options.budgets = 1, 6, [6]
    used = programs(options.peers, options)
    if not {"llmtool", "litgpt"} <= {program.name for program in used}:
        raise SystemExit("the target is litgpt's: --litgpt, and llmtool among --peers, are needed")
    with tempfile.TemporaryDirectory() as place:
        setting = write_text(Path(place), SETTINGS["cpu_small"] | {"steps": options.steps, "warm": 2})
        found = turns(used, options, setting, Path(place))
    target = found["litgpt"]["loss"]["mean"]
    figures: dict[str, Any] = {"setting": setting, "target": target, "programs": found, "reached": {}}
    for key, start in (("recipe", "recipe,"), ("recipe at that size", "recipe at that size,")):
        name = shortest(found, start, target)
        theirs = found["litgpt"]
        figures["reached"][key] = name and {
            "name": name,
            "time_ratio": common.ratios(found[name]["seconds"]["runs"], theirs["seconds"]["runs"]),
            "memory_ratio": common.ratios(found[name]["peak_bytes"]["runs"], theirs["peak_bytes"]["runs"]),
        }
    rows = [
        [
            name, common.show(each["loss"], 4), common.show(each["seconds"], 1),
            f"{each['peak_bytes']['median'] / 2**20:,.0f}",
        ]
        for name, each in found.items()
    ]  # fmt: skip
    common.table(f"Until {target:.4f}, litgpt's end", ["", "validation loss", "seconds", "peak MiB"], rows)
    for key, reached in figures["reached"].items():
        ratio = reached and f"{reached['name']}: {common.show(reached['time_ratio'], 2)} of litgpt's time"
        print(f"{key}: {ratio or 'none of these budgets reaches it'} (at most 0.5 is the goal)")
    common.save(options, "peers_target", figures, peers_versions(options, used))


if __name__ == "__main__":
    main()
