"""Rehearsals: how long `--rehearse` takes for every config of the repository (the goal: under 60 s each).

    python scripts/benchmarks/rehearsal.py --save

Each config is rehearsed in a directory of its own, after what it needs is there: a fetched table, or the run
that it starts from, which is trained for two steps. Those whose data this machine cannot fetch are left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import yaml

FETCHED = {
    "california": ["california_housing"],
    "bank": ["bank_marketing"],
    "letters": ["letter_recognition"],
    "stories_lora": ["stories260k", "african_storybook"],
    "agnews_minilm": ["minilm", "ag_news"],
}


def ready(path: Path, config: dict[str, Any], work: Path) -> bool:
    """Bring what a config needs: its table, its base. False when its table cannot be had here."""
    for name in ("configs", "data"):
        (work / name).symlink_to(common.ROOT / name)
    if (names := FETCHED.get(path.stem)) is not None:
        fetched = [sys.executable, "scripts/fetch.py", *names]
        return not subprocess.run(fetched, cwd=common.ROOT, capture_output=True).returncode
    if "model" not in config and config["finetune"]["start"].startswith("runs/"):
        base = Path(config["finetune"]["start"]).parent.name
        (story,) = common.ROOT.glob(f"configs/*/{base}.yaml")
        common.timed(common.llmtool("train", story, sets={"train.budget": "{steps: 2}"}), cwd=work)
    return True


def rehearsed(path: Path) -> dict[str, Any] | None:
    """Seconds of a rehearsal, start-up included, and its command; None where the data is not here."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    command = "train" if "model" in config else "finetune"
    with tempfile.TemporaryDirectory() as place:
        if not ready(path, config, Path(place)):
            return None
        took = common.timed(common.llmtool(command, path, "--rehearse"), cwd=Path(place))
    return {"command": command, "seconds": round(took.seconds, 1)}


def main() -> None:
    """Rehearse all of them in turn."""
    options = common.parser(__doc__).parse_args()
    figures: dict[str, Any] = {}
    for path in sorted(common.ROOT.glob("configs/*/*.yaml"))[: 2 if options.short else None]:
        name = str(path.relative_to(common.ROOT))
        if (found := rehearsed(path)) is not None:
            figures[name] = found
        else:
            print(f"{name}: left out, its data cannot be fetched here")
    rows = [[name, found["command"], found["seconds"]] for name, found in figures.items()]
    common.table("Rehearsals", ["", "command", "seconds"], rows)
    common.save(options, "rehearsal", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
