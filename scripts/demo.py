"""The two stories of the README, from raw files to evaluated models: `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

STORIES = [
    (
        "A table: who earns more than 50,000 dollars?",
        [
            ("prepare", "configs/tabular/adult.yaml"),
            ("describe", "configs/tabular/adult.yaml"),
            ("train", "configs/tabular/adult.yaml"),
            ("finetune", "configs/tabular/adult_self_employed.yaml"),
            ("evaluate", "configs/tabular/adult.yaml"),
        ],
    ),
    (
        "A text: the next character of Shakespeare",
        [
            ("prepare", "configs/language/shakespeare.yaml"),
            ("describe", "configs/language/shakespeare.yaml"),
            ("train", "configs/language/shakespeare.yaml"),
            ("finetune", "configs/language/shakespeare_king.yaml"),
            ("evaluate", "configs/language/shakespeare.yaml"),
        ],
    ),
]


def main() -> None:
    """Run every command of both stories; stop at the first that fails, with its exit code."""
    began = time.monotonic()
    learned = []
    for title, commands in STORIES:
        print(f"\n=== {title} ===", flush=True)
        for command, config in commands:
            print(f"\n$ llmtool {command} {config}", flush=True)
            before = time.monotonic()
            code = subprocess.call([sys.executable, "-m", "llmtool", command, config])
            if code:
                sys.exit(code)
            print(f"  ({time.monotonic() - before:.0f} s)", flush=True)
            if command in ("finetune", "evaluate"):
                learned.append((command, config))
    print(f"\n=== What was learned, in {time.monotonic() - began:.0f} s ===")
    for command, config in learned:
        for line in summary(command, config):
            print(f"  {line}")
    print("\nEverything is in runs/: every row's fate, every metric, every checkpoint. Look around.")


def summary(command: str, config: str) -> list[str]:
    """One line a split, out of the run's result.json."""
    name = Path(config).stem
    result = json.loads(Path("runs", name, command, "result.json").read_text())
    if command == "finetune":
        before, after = result["before"]["new"], result["after"]["new"]
        figure = "roc_auc" if "roc_auc" in after else "loss"
        return [f"{name}, after fine-tuning: {figure} {before[figure]:.4f} -> {after[figure]:.4f}"]
    wanted = ("accuracy", "precision", "recall", "roc_auc", "loss", "perplexity", "bits_per_byte")
    return [
        f"{name}, {split}: " + ", ".join(f"{key} {figures[key]:.4f}" for key in wanted if key in figures)
        for split, figures in result["metrics"].items()
    ]


if __name__ == "__main__":
    main()
