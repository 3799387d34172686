"""All benchmarks in short form: `make bench` on a CPU (under 8 minutes on 2 cores), `--device cuda` on a GPU.

    python scripts/benchmarks/run.py [--device cuda] [--save] [--nanogpt PATH] [--litgpt PYTHON]
        [--keras PYTHON]

Short forms show that everything works and roughly where it stands; the figures to quote come from the
scripts one by one (each says how in its first lines). Peers that are not on this machine are left out.
"""

from __future__ import annotations

import subprocess
import sys
import time

import common

EAGER = ("--peers", "llmtool", "nanogpt", "litgpt", "transformers")  # compiling takes longer than a short run
FAST = ("--peers", "llmtool+compile", "nanogpt+compile", "litgpt", "transformers")
TABLES = ("adult", "california_housing", "bank_marketing", "letter_recognition")


def main() -> None:
    """Run them in turn; ends with 1 when one of them failed."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT, to run beside")
    parser.add_argument("--litgpt", help="a Python with litgpt, to run beside")
    parser.add_argument("--keras", help="a Python with tensorflow-cpu, to run beside")
    options = parser.parse_args()
    peers = ["--nanogpt", options.nanogpt] if options.nanogpt else []
    peers += ["--litgpt", options.litgpt] if options.litgpt else []
    if options.device == "cuda":
        jobs: list[tuple[str, list[str]]] = [("gpu", []), ("lora", ["--device", "cuda"])]
        jobs.append(("fsdp_overhead", ["--device", "cuda"]))
        jobs.append(("peers/run", ["--settings", "cuda_gpt2", "cuda_llama", *FAST, *peers]))
    else:
        jobs = [
            ("overhead", []),
            ("noop", []),
            ("peers/run", ["--settings", "cpu_small", *EAGER, *peers]),
            ("article", ["--python", options.keras] if options.keras else []),
            ("prepare_speed", []),
            ("lora", []),
            ("fsdp_overhead", []),
        ]
        if options.litgpt:
            jobs.append(("peers/target", peers))
        if tables := _tables():
            jobs.append(("tables", tables))
        else:
            print("tables: left out, none of their files is here")
    failed = []
    for name, arguments in jobs:
        began = time.perf_counter()
        print(f"\n{name}", flush=True)
        saving = ["--save"] if options.save else []
        script = common.ROOT / "scripts" / "benchmarks" / f"{name}.py"
        done = subprocess.run([sys.executable, str(script), "--short", *arguments, *saving], cwd=common.ROOT)
        if done.returncode:
            failed.append(name)
        print(f"({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _tables() -> list[str]:
    """The tables whose files can be had here; Adult's official test file is fetched too."""
    names = {
        "adult": "adult",
        "california_housing": "california",
        "bank_marketing": "bank",
        "letter_recognition": "letters",
    }
    found = []
    for name in TABLES:
        fetched = subprocess.run(
            [sys.executable, str(common.ROOT / "scripts" / "fetch.py"), name], check=False
        )
        if not fetched.returncode:
            found.append(names[name])
    return found


if __name__ == "__main__":
    main()
