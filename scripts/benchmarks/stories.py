"""Stories as they stand in configs/, from raw files to evaluated models: figures, intervals, seconds.

    python scripts/benchmarks/stories.py imdb_bag agnews_bag --seeds 3 --save

Each story's own comment says how its data is got, which is done. It runs in a directory of its own, after the
story that it starts from; with --seeds n also with the n - 1 seeds after its own. What is recorded (with
--save, in results/stories.json, one entry per story): the figures of every split with their intervals, the
baselines', and the wall seconds of each command. The load of the machine beside it is recorded too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import common
import yaml

COMMANDS = ("prepare", "train", "finetune", "evaluate")


def story(name: str) -> Path:
    """The file of a story; SystemExit where there is none."""
    found = sorted(common.ROOT.glob(f"configs/*/{name}.yaml"))
    if len(found) != 1:
        known = ", ".join(sorted(path.stem for path in common.ROOT.glob("configs/*/*.yaml")))
        raise SystemExit(f"no story {name!r} (known: {known})")
    return found[0]


def base(config: dict[str, Any]) -> str | None:
    """The story that this one starts from or takes its encoder from."""
    places = [config.get("finetune", {}).get("start"), config["data"]["encode"].get("like")]
    places.append(config["data"]["encode"].get("tokenizer", {}).get("path"))
    names = [str(place).split("/")[1] for place in places if str(place).startswith("runs/")]
    return next((name for name in names if name != Path(config.get("run", "/")).name), None)


def run(name: str, place: Path, sets: dict[str, Any], short: bool) -> dict[str, float]:
    """Run a story's commands in `place`, after its base; the wall seconds of each."""
    path = story(name)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for line in re.findall(r"^# +(python scripts/.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        for command in line.split("&&"):  # what gets its data, or makes it
            subprocess.run([sys.executable, *command.split()[1:]], cwd=common.ROOT, check=True)
    if short:
        sets = sets | {f"{stage}.budget": "{steps: 5}" for stage in ("train", "finetune") if stage in config}
    seconds: dict[str, float] = {}
    if (before := base(config)) is not None:
        both = {key: value for key, value in sets.items() if "." not in key and key != "seed"}
        seconds[f"of {before}"] = sum(run(before, place, both, short).values())
    # What a story requires is judged by who reads the figures, not by an exit code that would lose them.
    for command in [c for c in COMMANDS if c in ("prepare", "evaluate") or c in config]:
        took = common.timed(
            common.llmtool(command, path, sets={"evaluate.require": "{}", **sets}),
            cwd=place,
            env={"PYTHONPATH": str(common.ROOT)},
        )
        seconds[command] = round(took.seconds, 1)
    return seconds


def recorded(name: str, seed: int | None, short: bool, given: list[str]) -> dict[str, Any]:
    """One run of a story: seed, seconds, and the figures of its report. given: `--set`s, which are kept."""
    config = yaml.safe_load(story(name).read_text(encoding="utf-8"))
    sets: dict[str, Any] = dict(item.split("=", 1) for item in given)
    sets |= {} if seed is None else {"seed": config.get("seed", 0) + seed}
    with tempfile.TemporaryDirectory() as folder:
        for link in ("configs", "data"):
            (Path(folder) / link).symlink_to(common.ROOT / link)
        seconds = run(name, Path(folder), sets, short)
        root = Path(folder) / config.get("run", f"runs/{name}")
        report = common.read_json(root / "evaluate" / "report.json")
    kept = ("rows", "metrics", "intervals", "baselines", "suites", "probe")
    return {
        "seed": config.get("seed", 0) + (seed or 0),
        **({"set": given} if given else {}),
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        **{key: report[key] for key in kept if key in report},
    }


def main() -> None:
    """Run the named stories and show each split's figures."""
    parser = common.parser(__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from the story's own on")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="as of llmtool; whole keys (precision) are set for the story that this one starts from too",
    )  # fmt: skip
    options = parser.parse_args()
    for name in options.names:
        runs = [recorded(name, seed, options.short, options.set) for seed in range(options.seeds)]
        rows = [
            [
                split,
                figure,
                common.show(common.spread([float(run["metrics"][split][figure]) for run in runs]), 4),
            ]
            for split, figures in runs[0]["metrics"].items()
            for figure, value in figures.items()
            if isinstance(value, int | float)
        ]
        common.table(f"{name}: {runs[0]['total_seconds']:.0f} s", ["split", "figure", "value"], rows)
        if options.save:
            _save(name, runs, options.short)


def _save(name: str, runs: list[dict[str, Any]], short: bool) -> None:
    """Put a story's entry into results/stories.json, beside those that stand there."""
    path = common.RESULTS / "stories.json"
    stories = common.read_json(path) if path.exists() else {}
    stories[name] = {
        "date": date.today().isoformat(),
        "short": short,
        "device": common.device(),
        "load_before": os.getloadavg()[2],
        "versions": common.versions("llmtool", "torch"),
        "runs": runs,
    }
    text = json.dumps(dict(sorted(stories.items())), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {name} to {path.relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
