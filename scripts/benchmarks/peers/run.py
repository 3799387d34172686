"""Training side by side with nanoGPT, litgpt and transformers' Trainer: tokens a second, memory, loss.

    git clone https://github.com/karpathy/nanoGPT /tmp/peers/nanoGPT
    python -m venv /tmp/peers/venv-litgpt && /tmp/peers/venv-litgpt/bin/pip install litgpt
    python scripts/benchmarks/peers/run.py --settings cpu_small cpu_large \\
        --nanogpt /tmp/peers/nanoGPT --litgpt /tmp/peers/venv-litgpt/bin/python --save

Same model, text, batch, steps, optimizer and precision for all; each in a process of its own, in turn
(A B A B ...). The clock stands at the end of every optimizer step, set by one and the same hook, and figures
are of the steps after the first ones: start-up and compilation count nowhere. Memory is the highest resident
set of the process until the last step (on CUDA: allocated by torch). The loss is over the validation text,
scored by one function. +compile: through torch.compile; litgpt always is. litgpt has rotary positions instead
of learned ones. `lora` runs scripts/benchmarks/lora.py: PEFT on transformers, and full fine-tuning.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import HERE, PEERS, SETTINGS, add_peers, drive, peers_versions, programs, setting_of, write_text

import common  # isort: skip

KEPT = ("tokens_per_second", "step_seconds", "median_step_seconds", "peak_bytes", "loss")


def measured(name: str, used: list[Any], rounds: int, short: bool) -> dict[str, Any]:
    """Every program in turn, `rounds` times, on one setting."""
    wanted = setting_of(name, short)
    if wanted["architecture"] != "gpt2":
        used = [program for program in used if not program.name.startswith("nanogpt")]
    runs: dict[str, list[dict[str, Any]]] = {program.name: [] for program in used}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        setting = write_text(Path(place), wanted)
        for turn in range(rounds):
            for program in used:
                if program.name in failed:
                    continue
                try:
                    found = drive(program, setting, Path(place))
                except SystemExit as error:  # out of memory, for one: the others are measured all the same
                    failed[program.name] = str(error)
                    print(f"{name} {turn + 1}/{rounds} {program.name} failed: {error}", flush=True)
                    continue
                runs[program.name].append(found)
                speed, first = found["tokens_per_second"], found["seconds_to_first_step"]
                print(
                    f"{name} {turn + 1}/{rounds} {program.name}: {speed:,.0f} tokens/s, first step "
                    f"after {first:.0f} s, loss {found['loss']:.3f}",
                    flush=True,
                )
    runs = {program: each for program, each in runs.items() if program not in failed}
    if not any(program.startswith("llmtool") for program in runs):
        raise SystemExit(f"{name}: llmtool failed, there is nothing to compare")
    figures: dict[str, Any] = {"setting": setting, "failed": failed, "programs": {}}
    for program, each in runs.items():
        spreads = {key: common.spread([run[key] for run in each]) for key in KEPT}
        figures["programs"][program] = {**spreads, "each": each}
    found = figures["programs"]
    figures["ours"] = ours = best(found, "llmtool")
    speeds = {program: one["tokens_per_second"]["runs"] for program, one in found.items()}
    others = [program for program in runs if program != ours]
    figures["ratios"] = {other: common.ratios(speeds[ours], speeds[other]) for other in others}
    return figures


def best(found: dict[str, Any], start: str) -> str:
    """The fastest of the programs whose name begins so."""
    names = [name for name in found if name.startswith(start)]
    return max(names, key=lambda name: found[name]["tokens_per_second"]["median"])


def show(name: str, figures: dict[str, Any]) -> None:
    """One setting as a table; the ratio is that of our faster variant to each."""
    rows = []
    for program, one in figures["programs"].items():
        ratio = figures["ratios"].get(program)
        rows.append(
            [
                program,
                common.show(one["tokens_per_second"], 0),
                f"{1e3 * one['median_step_seconds']['median']:.1f}",
                f"{one['peak_bytes']['median'] / 2**20:,.0f}",
                f"{one['loss']['mean']:.4f}",
                common.show(ratio, 2) if ratio else "",
            ]
        )
    columns = ["", "tokens/s", "ms a step", "peak MiB", "validation loss", f"{figures['ours']} / it"]
    shape = ("depth", "width", "context", "batch", "steps", "precision")
    common.table(f"{name}: " + ", ".join(f"{key} {figures['setting'][key]}" for key in shape), columns, rows)


def main() -> None:
    """Measure the settings one after another."""
    parser = common.parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, "lora"], default=["cpu_small"])
    parser.add_argument("--rounds", type=int, default=3)
    add_peers(parser, PEERS)
    options = parser.parse_args()
    rounds = 1 if options.short else options.rounds
    wanted = [name for name in options.settings if name != "lora"]
    device = "cuda" if any(SETTINGS[name]["device"] == "cuda" for name in wanted) else "cpu"
    used = programs(options.peers, options) if wanted else []
    if wanted and not any(program.name.startswith("llmtool") for program in used):
        raise SystemExit("--peers: llmtool is not among them, and the ratios are ours to theirs")
    for name in wanted:  # a file for each, as soon as it is measured
        figures = measured(name, used, rounds, options.short)
        show(name, figures)
        common.save(options, f"peers_{name}", figures, peers_versions(options, used))
    if "lora" in options.settings:
        words = [sys.executable, str(HERE.parent / "lora.py"), "--device", device]
        words += [word for word in ("--save", "--short") if getattr(options, word[2:])]
        if subprocess.run(words, check=False).returncode:
            raise SystemExit("lora.py failed")


if __name__ == "__main__":
    main()
