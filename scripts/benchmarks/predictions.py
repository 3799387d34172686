"""How far off `describe` is: memory and step time of at least twelve trainings, predicted and actual.

    python scripts/benchmarks/predictions.py --save                 # this machine's CPU, on nothing else
    python scripts/benchmarks/predictions.py --device cuda --save   # the GPU, sizes to match

Each training is a process of its own, `llmtool train` (or `finetune`) on data made up here, of so many steps
that the meter sees some tens; predicted and actual stand in its result.json under `cost`. Goal: memory within
5 %, the time of a step within 15 %. The constants of models/timing.py and HELD of models/accounting.py are
fitted to this table: the last lines say which one factor on each kind of prediction would be best.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

from llmtool.core.devices import multiplies_bf16

MEMORY, TIME = 0.05, 0.15  # the goals
GPT2, LLAMA = "architecture: gpt2", "architecture: llama"


def text(width: int, depth: int, context: int, batch: int, more: str = GPT2, **keys: Any) -> dict[str, Any]:
    """A language model: heads of 64 numbers, keys of `train` beside the batch."""
    heads = max(2, width // 64)
    sizes = f"width: {width}, depth: {depth}, heads: {heads}, context: {context}, dropout: 0.0, {more}"
    return {"data": "text", "model": f"{{family: transformer, {sizes}}}", "batch": batch, **keys}


def cases(cuda: bool) -> dict[str, dict[str, Any]]:
    """Sizes, batches, precisions, adapters, pictures and tables; larger ones on a GPU."""
    big = 4 if cuda else 1
    wide, long = (768, 1024) if cuda else (256, 256)
    muon, sgd = "{name: muon}", "{name: sgd, lr: 0.01}"
    picture = {"data": "pictures", "batch": 64 * big}
    table = {"data": "table", "batch": 256 * big}
    found = {
        "gpt2 small": text(128 * big, 4, 64 * big, 12),
        "gpt2 wide": text(wide, 4, long, 4 * big),
        "llama": text(wide, 4, long, 8, LLAMA),
        "llama long": text(wide, 2, 4 * long, 2 * big, LLAMA),
        "large vocabulary": text(wide, 2, 128 * big, 4 * big, LLAMA, data="bytes"),
        "micro-batches": text(wide, 4, long, 16, LLAMA, micro_batch=4),
        "muon": text(wide, 4, long, 8, LLAMA, optimizer=muon),
        "average of weights": text(wide, 4, long, 8, ema=0.99),
        "sgd": text(wide, 4, long, 8, optimizer=sgd),
        "bf16": text(wide, 4, long, 8, LLAMA, precision="bf16"),
        "LoRA": text(wide, 4, long, 8, LLAMA, method="{kind: lora, rank: 8}"),
        "head only": text(wide, 4, long, 8, LLAMA, method="{kind: head}"),
        "convnet": {**picture, "model": "{family: convnet, stem: small, widths: [32, 64], depths: [1, 1]}"},
        "vit": {**picture, "model": "{family: vit, patch: 4, depth: 4, heads: 4, width: 128}"},
        "mlp": {**table, "model": "{family: mlp, hidden: [1024, 1024]}"},
        "tabm": {**table, "model": "{family: tabm}"},
    }
    if not multiplies_bf16("cuda" if cuda else "cpu"):
        del found["bf16"]  # takes some thirty times as long as fp32 there
    if cuda:
        found["compiled"] = text(wide, 12, long, 16, LLAMA, precision="bf16", compile=True)
        found["124M, bf16"] = text(768, 12, 1024, 16, GPT2, precision="bf16", compile=True)
    return found


def data(kind: str, place: Path) -> str:
    """Made-up data of a kind in a folder; the `data:` section that reads it."""
    draw = random.Random(0)
    if kind in ("text", "bytes"):
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(3000)]
        body = "".join(draw.choice(words) + draw.choice([" ", " ", " ", ". ", "\n"]) for _ in range(400_000))
        (place / "words.txt").write_text(body)
        tokenizer = "{kind: characters}" if kind == "text" else "{kind: bpe, vocabulary: 8000}"
        split = "{by: order, train: 0.98, validation: 0.02, test: 0}"
        source = f"{{format: text, path: {place / 'words.txt'}, documents: file}}"
        return f"{{source: {source}, split: {split}, encode: {{as: tokens, tokenizer: {tokenizer}}}}}"
    if kind == "table":
        names = [f"x{index}" for index in range(50)]
        lines = [",".join([*names, "y"])]
        for _ in range(20_000):
            row = [draw.gauss(0, 1) for _ in names]
            lines.append(",".join([*(f"{value:.4f}" for value in row), "yes" if row[0] > row[1] else "no"]))
        (place / "table.csv").write_text("\n".join(lines) + "\n")
        source = f"{{format: csv, path: {place / 'table.csv'}}}"
        return f"{{source: {source}, encode: {{as: features, target: y}}}}"
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (4000, 32, 32), dtype=np.uint8)
    labels = np.arange(4000, dtype=np.uint8) % 10
    header = b"\x00\x00\x08\x03" + b"".join(size.to_bytes(4, "big") for size in noise.shape)
    path = place / "made-images-idx3-ubyte"
    path.write_bytes(header + noise.tobytes())
    (place / "made-labels-idx1-ubyte").write_bytes(
        b"\x00\x00\x08\x01" + (4000).to_bytes(4, "big") + labels.tobytes()
    )
    return f"{{source: {{format: idx, path: {path}}}, encode: {{as: images}}}}"


def train(name: str, case: dict[str, Any], place: Path, device: str, steps: int) -> dict[str, Any]:
    """`cost` of the result of one training, in a process of its own."""
    run = place / name.replace(" ", "_").replace(",", "")
    run.mkdir()
    keys = {"batch": case["batch"], "compile": str(case.get("compile", False)).lower()}
    keys |= {key: case[key] for key in ("micro_batch", "optimizer", "ema") if key in case}
    said = ", ".join(f"{key}: {value}" for key, value in keys.items())
    budget = f"{{budget: {{steps: {steps}}}, {said}, validate_every: {steps}, checkpoint_every: {steps}}}"
    lines = [
        f"run: {run / 'run'}",
        f"device: {device}",
        f"precision: {case.get('precision', 'fp32')}",
        f"data: {data(case['data'], run)}",
        f"model: {case['model']}",
        f"train: {budget}" if "method" not in case else "train: {budget: {steps: 1}, batch: 1}",
    ]
    if "method" in case:
        start = f"{{start: {run / 'run/train'}, method: {case['method']}, {budget[1:]}"
        lines.append(f"finetune: {start}")
    (run / "config.yaml").write_text("\n".join(lines) + "\n")
    sections = ["train", "finetune"] if "method" in case else ["train"]
    for section in sections:
        common.timed(common.llmtool(section, run / "config.yaml"))
    found: dict[str, Any] = common.read_json(run / "run" / sections[-1] / "result.json")["cost"]
    return found


def main() -> None:
    """Train each case, print the table, say which goals are met."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=30, help="of each training")
    parser.add_argument("--only", metavar="NAME", help="cases whose name begins so")
    options = parser.parse_args()
    chosen = {
        name: case
        for name, case in cases(options.device == "cuda").items()
        if name.startswith(options.only or "")
    }
    if options.short:
        chosen = dict(list(chosen.items())[-2:])
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in chosen.items():
            figures[name] = train(name, case, Path(folder), options.device, options.steps)
            print(name, json.dumps(figures[name]["error"]), file=sys.stderr, flush=True)
    rows = []
    for name, found in figures.items():
        before, after, error = found["predicted"], found["actual"], found["error"]
        cells: list[Any] = [name]
        for key, unit in (("peak_bytes", 1e-6), ("step_seconds", 1e3)):
            off = error[key]
            cells += [(before[key] or 0) * unit, (after[key] or 0) * unit]
            cells.append("-" if off is None else f"{100 * off:+.0f} %")
        rows.append(cells)
    columns = ["training", "MB predicted", "actual", "off", "ms a step predicted", "actual", "off"]
    common.table(f"Predicted and actual on {options.device}", columns, rows)
    for key, what, goal in (("peak_bytes", "memory", MEMORY), ("step_seconds", "a step", TIME)):
        errors = [found["error"][key] for found in figures.values() if found["error"][key] is not None]
        if errors:
            met = sum(abs(error) <= goal for error in errors)
            factor = statistics.median(1 + error for error in errors)
            print(f"{what}: {met} of {len(errors)} within {100 * goal:g} %; best single factor {factor:.3f}")
    common.save(options, f"predictions_{options.device}", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
