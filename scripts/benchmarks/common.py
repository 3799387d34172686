"""What the benchmarks share: timed commands, spread and ratios, the device, tables, saved results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
ADULT = [  # the columns of the Adult table, whose files have no header line
    "age", "workclass", "final_weight", "education", "education_years", "marital_status", "occupation",
    "relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country",
    "income",
]  # fmt: skip
# Student's t, two-sided 95 %, for 1..9 degrees of freedom.
T95 = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser that shows the script's docstring and knows --save and --short."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--save", action="store_true", help="write scripts/benchmarks/results/<name>.json")
    made.add_argument("--short", action="store_true", help="a small version that only shows that it works")
    return made


# --- commands ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """A finished command: wall seconds with start-up, processor seconds, what it printed."""

    seconds: float
    cpu_seconds: float
    output: str


def timed(
    command: Sequence[str | Path], cwd: Path = ROOT, env: Mapping[str, str] | None = None, quiet: bool = True
) -> Timed:
    """Run a command to its end. SystemExit with the end of its output when it fails."""
    words = [str(word) for word in command]
    before = os.times()
    began = time.perf_counter()
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    after = os.times()
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SystemExit(f"{' '.join(words)}\nended with {done.returncode}:\n{tail}")
    if not quiet:
        print(done.stderr, file=sys.stderr)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Timed(seconds, cpu, done.stdout)


def search_path() -> str:
    """PYTHONPATH for a process that imports this llmtool, wherever it begins."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def llmtool(*arguments: str | Path, sets: Mapping[str, Any] | None = None) -> list[str]:
    """The command line of llmtool in this environment; `sets` become --set options."""
    options = [word for key, value in (sets or {}).items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "llmtool", *map(str, arguments), *options]


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def scores(run: Path, stage: str, split: str) -> dict[str, float]:
    """The metrics of one split as a stage of a run reports them."""
    result = read_json(run / stage / ("report.json" if stage == "evaluate" else "result.json"))
    for key in ("splits", "metrics"):
        result = result.get(key, result)
    found = result.get(split, result)
    found = found.get("metrics", found)
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


# --- figures ----------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval (Student's t) of repeated runs, with the runs."""
    n = len(values)
    deviation = statistics.stdev(values) if n > 1 else 0.0
    t = T95[n - 2] if 2 <= n <= 10 else 1.96
    return {
        "n": n,
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "deviation": deviation,
        "interval95": t * deviation / n**0.5 if n > 1 else None,
        "runs": list(values),
    }


def show(figures: Mapping[str, Any], digits: int = 3) -> str:
    """A spread as text: "1.234 ± 0.056"."""
    interval = figures["interval95"]
    return f"{figures['mean']:.{digits}f}" + (f" ± {interval:.{digits}f}" if interval is not None else "")


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The spread of ours/theirs, pair by pair: two runs in turn share the machine's drift."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


# --- showing and saving -----------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a small table."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(made)


def device() -> dict[str, Any]:
    """The machine these figures were taken on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "load_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def versions(*packages: str, python: str = sys.executable) -> dict[str, str]:
    """Installed versions, of this environment or of another Python's."""
    if python == sys.executable:
        return {name: metadata.version(name) for name in packages}
    code = (
        "import sys, json; from importlib.metadata import version as v; "
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )
    return json.loads(
        subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    )


def save(
    options: argparse.Namespace, name: str, figures: Mapping[str, Any], packages: Mapping[str, str]
) -> None:
    """Write results/<name>.json when --save was given."""
    if not options.save:
        return
    RESULTS.mkdir(exist_ok=True)
    document = {
        "name": name,
        "command": " ".join(["python", str(Path(sys.argv[0])), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "short": options.short,
        "device": device(),
        "versions": dict(packages),
        "figures": figures,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")
