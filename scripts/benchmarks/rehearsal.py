"""Rehearsals: how long `--rehearse` takes for every config of the repository (the goal: under 60 s each).

    python scripts/benchmarks/rehearsal.py --save

Each config is rehearsed in a directory of its own, after what it needs is there: a fetched table, or the run
that it starts from, which is trained for two steps. Data sets that this machine cannot fetch are left out, by name.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import yaml

FETCHED = {"california": "california_housing", "bank": "bank_marketing", "letters": "letter_recognition"}


def ready(path: Path, work: Path) -> bool:
    """Bring what a config needs: its table, its base. False when it cannot be had here."""
    if (name := FETCHED.get(path.stem)) is not None:
        fetched = [sys.executable, "scripts/fetch.py", name]
        return not subprocess.run(fetched, cwd=common.ROOT, capture_output=True).returncode
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    start = config.get("finetune", {}).get("start")
    if start and "model" not in config:
        base = Path(start).parent.name
        (trained,) = common.ROOT.glob(f"configs/*/{base}.yaml")
        sets = {"run": work / "runs" / base, "train.budget": "{steps: 2}"}
        common.timed(common.llmtool("train", trained, sets=sets))
    return True


def rehearsed(path: Path, work: Path) -> dict[str, Any]:
    """Seconds of a rehearsal and what it ran, start-up included."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    command, sets = "train", {"run": work / "runs" / path.stem}
    if "model" not in config:
        base = Path(config["finetune"]["start"])
        command, sets = "finetune", sets | {"finetune.start": work / "runs" / base.parent.name / base.name}
    took = common.timed(common.llmtool(command, path, "--rehearse", sets=sets))
    return {"command": command, "seconds": round(took.seconds, 1)}


def main() -> None:
    """Rehearse all of them in turn."""
    options = common.parser(__doc__).parse_args()
    configs = sorted(common.ROOT.glob("configs/*/*.yaml"))
    figures: dict[str, Any] = {}
    for path in configs[: 2 if options.short else None]:
        name = str(path.relative_to(common.ROOT))
        with tempfile.TemporaryDirectory() as place:
            if ready(path, Path(place)):
                figures[name] = rehearsed(path, Path(place))
            else:
                print(f"{name}: left out, its data cannot be fetched here")
    rows = [[name, found["command"], found["seconds"]] for name, found in figures.items()]
    common.table("Rehearsals", ["", "command", "seconds"], rows)
    common.save(options, "rehearsal", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
