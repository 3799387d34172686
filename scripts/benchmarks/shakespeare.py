"""Tiny Shakespeare, characters: llmtool beside nanoGPT's published CPU run, then our recipe in the same time.

    git clone https://github.com/karpathy/nanoGPT /tmp/peers/nanoGPT
    python scripts/benchmarks/shakespeare.py --nanogpt /tmp/peers/nanoGPT --save

The setting (nanoGPT's README): 4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps, rate 1e-3,
no dropout, no compilation. First 90 % of the characters train, the last 10 % are validation, for both. Runs
alternate; wall time is the whole process, start-up, data preparation (ours) and validation included. Both
losses are over the whole validation text in non-overlapping windows; nanoGPT's own estimate (20 random
batches) stands beside. At last `--recipe`, which may use whatever it likes, gets a wall time that lets it
end when nanoGPT does.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np

SETTING = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 10,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
}
CONFIG = "configs/language/nanogpt_cpu.yaml"


def write_text(folder: Path, nanogpt: Path | None) -> None:
    """Both sides' data from the same characters: two text files for us, nanoGPT's three files for it."""
    text = (common.ROOT / "configs/data/tinyshakespeare.txt").read_text(encoding="utf-8")
    parts = {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf-8", newline="")
    if nanogpt:
        ids = {character: number for number, character in enumerate(sorted(set(text)))}
        target = nanogpt / "data/shakespeare_char"
        for name, part in parts.items():
            np.array([ids[character] for character in part], dtype=np.uint16).tofile(target / f"{name}.bin")
        meta = {
            "vocab_size": len(ids),
            "stoi": ids,
            "itos": {number: character for character, number in ids.items()},
        }
        (target / "meta.pkl").write_bytes(pickle.dumps(meta))


def nanogpt(root: Path, python: str, folder: Path, steps: int) -> dict[str, Any]:
    """One run of nanoGPT's train.py, and the score of the checkpoint it leaves."""
    out = folder / "nanogpt"
    limits = {"max_iters": steps, "lr_decay_iters": steps, "out_dir": out, "eval_interval": min(250, steps)}
    options = [f"--{name}={value}" for name, value in {**SETTING, **limits}.items()]
    done = common.timed([python, "train.py", "config/train_shakespeare_char.py", *options], cwd=root)
    estimates = re.findall(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", done.output)
    score = common.timed([python, Path(__file__).with_name("score_nanogpt.py"), root, out])
    loss = json.loads(score.output.splitlines()[-1])["loss"]
    return {
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "loss": loss,
        "own_estimate": float(estimates[-1]),
    }


def ours(config: str, folder: Path, budget: str, validate_every: int | None = None) -> dict[str, Any]:
    """One run of `llmtool train` in a fresh directory: prepare, train, validate."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        sets: dict[str, Any] = {
            "run": run,
            "data.source.path": f"{{train: {folder}/train.txt, validation: {folder}/val.txt}}",
            "data.split": "null",
            "train.budget": budget,
        }
        if validate_every:
            sets["train.validate_every"] = validate_every
        done = common.timed(common.llmtool("train", config, sets=sets))
        result = common.read_json(run / "train" / "result.json")
        loss = common.scores(run, "train", "validation")["loss"]
    return {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "loss": loss, "result": result}


def main() -> None:
    """Run A B A B, then our recipe, and compare."""
    parser = common.parser(__doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and numpy for nanoGPT")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument(
        "--recipe", default="configs/language/shakespeare.yaml", help="our recipe for the same time"
    )
    parser.add_argument("--config", default=CONFIG, help="nanoGPT's setting as our YAML")
    options = parser.parse_args()
    steps, runs = (40, 1) if options.short else (2000, options.runs)
    found: dict[str, list[dict[str, Any]]] = {"nanogpt": [], "llmtool": [], "recipe": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder, options.nanogpt)
        for _ in range(runs):
            if options.nanogpt:
                found["nanogpt"].append(nanogpt(options.nanogpt.resolve(), options.python, folder, steps))
            found["llmtool"].append(
                ours(options.config, folder, f"{{steps: {steps}}}", steps if options.short else None)
            )
        if (common.ROOT / options.recipe).exists():
            time = common.spread([run["seconds"] for run in found["nanogpt"] or found["llmtool"]])["mean"]
            # what all but the steps costs: start-up, preparing, a validation, a checkpoint, the last score
            around = ours(options.recipe, folder, "{steps: 1}")["seconds"]
            seconds = 3.0 if options.short else max(1.0, time - around)
            every = 10_000 if options.short else None
            for _ in range(runs):
                found["recipe"].append(ours(options.recipe, folder, f'{{time: "{seconds:.0f}s"}}', every))
    figures: dict[str, Any] = {"steps": steps}
    rows = []
    for program, each in found.items():
        if each:
            kept = {
                key: common.spread([run[key] for run in each]) for key in ("seconds", "cpu_seconds", "loss")
            }
            figures[program] = {**kept, "each": each}
            estimates = [run["own_estimate"] for run in each if "own_estimate" in run]
            rows.append(
                [
                    program,
                    common.show(kept["seconds"], 1),
                    common.show(kept["loss"], 4),
                    f"{common.spread(estimates)['mean']:.4f}" if estimates else "-",
                ]
            )
    common.table(
        f"Tiny Shakespeare, {steps} steps", ["program", "seconds", "validation loss", "own estimate"], rows
    )
    if found["nanogpt"]:
        theirs = [run["seconds"] for run in found["nanogpt"]]
        figures["time_ratio"] = common.ratios([run["seconds"] for run in found["llmtool"]], theirs)
        print(f"llmtool / nanoGPT wall time: {common.show(figures['time_ratio'])} (at most 1 is the goal)")
    common.save(options, "shakespeare", figures, common.versions("llmtool", "torch", "numpy"))


if __name__ == "__main__":
    main()
