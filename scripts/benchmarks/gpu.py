"""CUDA: training throughput of a GPT-2 124M, context 1024, bf16, beside the device's own matrix rate.

    python scripts/benchmarks/gpu.py --save

Runs `llmtool train` on a text of 50,256 different characters (a vocabulary as large as GPT-2's, nothing to
download) and reads the tokens per second it reports after its first steps. The matrix rate is measured in
this process: bf16 products of 8192 x 8192 random matrices. Floating-point operations per token: 6 for each
matrix parameter, and attention's.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

DEPTH, WIDTH, HEADS, CONTEXT, VOCABULARY = 12, 768, 12, 1024, 50_256
CONFIG = """
run: {folder}/run
device: cuda
precision: bf16
data:
  source: {{format: text, path: {folder}/text.txt, documents: file}}
  split: {{by: order, train: 0.95, validation: 0.05}}
  encode: {{as: tokens, tokenizer: {{kind: characters}}}}
model:
  family: transformer
  architecture: gpt2
  depth: {depth}
  heads: {heads}
  width: {width}
  context: {context}
train:
  budget: {{steps: {steps}}}
  batch: {batch}
  micro_batch: {micro}
  optimizer: {{name: adamw, lr: 6e-4}}
  validate_every: {steps}
  checkpoint_every: {steps}
  compile: {compile}
"""


def matrix_rate() -> float:
    """FLOP/s of bf16 products of random matrices, the best of five rounds."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        rates.append(20 * 2 * 8192**3 / (time.perf_counter() - began))
    return max(rates[1:])


def write_text(path: Path, characters: int) -> None:
    """Random text over the vocabulary; every character occurs."""
    alphabet = [
        chr(code) for code in range(0x100, 0x20000) if chr(code).isprintable() and not chr(code).isspace()
    ]
    alphabet = alphabet[:VOCABULARY]
    chance = random.Random(0)
    words = alphabet + chance.choices(alphabet, k=characters - len(alphabet))
    path.write_text("".join(words), encoding="utf-8")


def train(steps: int, batch: int, micro: int, compile: bool) -> dict[str, Any]:
    """One training; its throughput by its own report."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text.txt", 4_000_000)
        config = Path(folder) / "gpu.yaml"
        sizes = {"depth": DEPTH, "heads": HEADS, "width": WIDTH, "context": CONTEXT}
        runs = {"steps": steps, "batch": batch, "micro": micro, "compile": str(compile).lower()}
        config.write_text(CONFIG.format(folder=folder, **sizes, **runs), encoding="utf-8")
        done = common.timed(common.llmtool("train", config))
        result = common.read_json(Path(folder) / "run/train/result.json")
    return {"seconds": done.seconds, "tokens_per_second": _find(result, "tokens_per_second")}


def _find(tree: Any, key: str) -> float:
    """The first value of a key anywhere in a JSON document."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        tree = list(tree.values())
    for part in tree if isinstance(tree, list) else []:
        if (found := _find(part, key)) is not None:
            return found
    return None


def main() -> None:
    """Measure, or say why not."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA device here; nothing measured")
        return
    rate = matrix_rate()
    matrices = DEPTH * 12 * WIDTH * WIDTH + VOCABULARY * WIDTH
    flops = 6 * matrices + 6 * DEPTH * CONTEXT * WIDTH  # causal: half of the 12 D T L of full attention
    rows, figures = [], {"matrix_flops_per_second": rate, "flops_per_token": flops}
    for compile in (False, True):
        each = [
            train(30 if options.short else 150, options.batch, options.micro, compile)
            for _ in range(1 if options.short else options.runs)
        ]
        speed = common.spread([run["tokens_per_second"] for run in each])
        name = "compiled" if compile else "eager"
        figures[name] = {
            "tokens_per_second": speed,
            "share_of_matrix_rate": speed["mean"] * flops / rate,
            "each": each,
        }
        rows.append([name, common.show(speed, 0), f"{100 * speed['mean'] * flops / rate:.1f} %"])
    common.table(
        f"GPT-2 124M, context 1024, bf16 (matrix rate {rate / 1e12:.0f} TFLOP/s)",
        ["", "tokens/s", "share of the matrix rate"],
        rows,
    )
    common.save(options, "gpu", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
