"""The article's program (Dense 64-64, Adam, 10 epochs of batch 32, 5 of fine-tuning): llmtool beside Keras.

    python3 -m venv /tmp/venv-keras && /tmp/venv-keras/bin/pip install tensorflow-cpu pandas scikit-learn
    python scripts/benchmarks/article.py --python /tmp/venv-keras/bin/python --save

Both read the same three CSV files (Adult's training file, rows with gaps dropped, 80/10/10 stratified by
the label, split anew for each of 5 seeds) and run in turn. Wall time is from the start of the first process
to the end of the last: for llmtool the four commands prepare, train, finetune, evaluate; `one` is train +
finetune, which prepare and score by themselves. Both programs drop the rows with gaps themselves.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common
import pandas as pd
from sklearn.model_selection import train_test_split

CONFIG = "configs/tabular/article.yaml"
SPLITS = ("train", "validation", "test")


def write_rows(folder: Path, seed: int) -> None:
    """The three CSV files of a seed, with a header line and the gaps still in."""
    frame = pd.read_csv(
        common.ROOT / "configs/data/adult.csv.gz",
        names=common.ADULT,
        skipinitialspace=True,
        dtype=str,
        na_filter=False,
    )
    train, rest = train_test_split(frame, test_size=0.2, random_state=seed, stratify=frame.income)
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=rest.income)
    for name, part in zip(SPLITS, (train, validation, test), strict=True):
        part.to_csv(folder / f"{name}.csv", index=False)


def ours(folder: Path, seed: int, commands: tuple[str, ...], short: bool) -> dict[str, Any]:
    """Run these commands of the story; their seconds, and the accuracies on the test rows."""
    run = folder / ("run-" + commands[0])
    paths = "{" + ", ".join(f"{name}: {folder}/{name}.csv" for name in SPLITS) + "}"
    sets: dict[str, Any] = {
        "run": run,
        "seed": seed,
        "data.source.path": paths,
        "data.source.header": "true",
        "data.split": "null",
        "finetune.start": run / "train",
        "evaluate.require": "{}",
    }
    if short:
        sets |= {"train.budget": "{epochs: 1}", "finetune.budget": "{epochs: 1}"}
    done = [common.timed(common.llmtool(command, CONFIG, sets=sets)) for command in commands]
    result: dict[str, Any] = {"seconds": sum(each.seconds for each in done)}
    result["stages"] = {command: each.seconds for command, each in zip(commands, done, strict=True)}
    if "evaluate" in commands:
        result["finetuned"] = common.scores(run, "evaluate", "test")["accuracy"]
        common.timed(
            common.llmtool("evaluate", CONFIG, sets={**sets, "evaluate.of": run / "train"})
        )  # not timed
        result["trained"] = common.scores(run, "evaluate", "test")["accuracy"]
    return result


def keras(python: str, folder: Path, seed: int, short: bool) -> dict[str, Any]:
    """Run the Keras program in its own environment."""
    program = Path(__file__).with_name("article_keras.py")
    done = common.timed([python, program, folder, seed, *((1, 1) if short else (10, 5))])
    return {"seconds": done.seconds, **json.loads(done.output.splitlines()[-1])}


def main() -> None:
    """Run both in turn for each seed and compare."""
    parser = common.parser(__doc__)
    parser.add_argument("--python", help="a Python that has tensorflow-cpu, pandas and scikit-learn")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"keras": [], "llmtool": [], "one": []}
    for seed in range(1 if options.short else options.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, seed)
            if options.python:
                runs["keras"].append(keras(options.python, folder, seed, options.short))
            four = ("prepare", "train", "finetune", "evaluate")
            runs["llmtool"].append(ours(folder, seed, four, options.short))
            runs["one"].append(ours(folder, seed, ("train", "finetune"), options.short))
    figures: dict[str, Any] = {}
    rows = []
    for name, found in runs.items():
        if found:
            keys = [key for key in ("seconds", "trained", "finetuned") if key in found[0]]
            figures[name] = {key: common.spread([run[key] for run in found]) for key in keys}
            figures[name]["each"] = found
            cells = [common.show(figures[name][key], 2 if key == "seconds" else 4) for key in keys]
            rows.append([name, *cells, *["-"] * (3 - len(cells))])
    common.table(
        "The article's program, Adult", ["program", "seconds", "accuracy", "after fine-tuning"], rows
    )
    if options.python:
        theirs = [run["seconds"] for run in runs["keras"]]
        figures["time_ratio"] = common.ratios([run["seconds"] for run in runs["llmtool"]], theirs)
        figures["time_ratio_one"] = common.ratios([run["seconds"] for run in runs["one"]], theirs)
        gaps = [a["finetuned"] - b["finetuned"] for a, b in zip(runs["llmtool"], runs["keras"], strict=True)]
        figures["accuracy_difference"] = common.spread(gaps)
        print(f"llmtool / Keras wall time: {common.show(figures['time_ratio'])} (at most 0.5 is the goal)")
        print(f"train + finetune alone:    {common.show(figures['time_ratio_one'])}")
        print(f"accuracy, llmtool - Keras: {common.show(figures['accuracy_difference'], 4)}")
    versions = common.versions("llmtool", "torch")
    if options.python:
        versions |= common.versions("tensorflow-cpu", "keras", python=options.python)
    common.save(options, "article", figures, versions)


if __name__ == "__main__":
    main()
