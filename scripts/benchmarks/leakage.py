"""What `prepare` finds of planted leaks: copies across splits, edited documents, columns that tell too much.

    python scripts/benchmarks/leakage.py --save

Recall is over all planted cases of all seeds; false alarms are counted on honest data of the same make. Exact
copies are planted into two files for train and test: they are found by the split, which drops them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np

sys.path.insert(0, str(common.ROOT))
from llmtool.data import DataConfig
from llmtool.data.duplicates import near_documents
from llmtool.data.leakage import giving_away, near_rows, of_table
from llmtool.stages.prepare import prepare
from tests.data import planted


def exact(seeds: int) -> dict[str, Any]:
    """Rows of train that stand in test too: all must leave train."""
    found = total = 0
    for seed in range(seeds):
        columns, _ = planted.people(np.random.default_rng(seed), 1000)
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        with tempfile.TemporaryDirectory() as made:
            here, head = Path(made), ",".join(columns)
            (here / "train.csv").write_text("\n".join([head, *lines[:800], *lines[800:900]]))
            (here / "test.csv").write_text("\n".join([head, *lines[800:]]))
            source = {
                "format": "csv",
                "path": {name: str(here / f"{name}.csv") for name in ("train", "test")},
            }
            config = {"source": source, "encode": {"as": "features", "target": "y"}}
            (here / "out").mkdir()
            ledger = prepare(DataConfig.model_validate(config), 0, here / "out").ledger
            found += ledger["dropped"].get("duplicate of a row in test", 0)
            total += 100
    return {"planted": total, "found": found, "recall": found / total}


def documents(seeds: int, share: float) -> dict[str, Any]:
    """Test documents copied from train with this share of their words changed."""
    found = total = false = 0
    for seed in range(seeds):
        texts, code, copies = planted.documents(np.random.default_rng(seed), 1000, 100, share)
        rows = {row for row, _ in near_documents(texts, code)}
        found, false, total = found + len(rows & set(copies)), false + len(rows - set(copies)), total + 100
    return {"planted": total, "found": found, "recall": found / total, "false": false}


def rows(seeds: int) -> dict[str, Any]:
    """Test rows copied from train with one cell a little changed."""
    found = total = 0
    for seed in range(seeds):
        made, copies = planted.near_rows(np.random.default_rng(seed), 3000, 100)
        found += sum(finding.count for finding in near_rows(made, list(made.columns)))
        total += len(copies)
    return {"planted": total, "found": found, "recall": found / total}


def columns(seeds: int) -> dict[str, Any]:
    """Columns that give the target away, each kind on `seeds` data sets; and honest tables."""
    named: dict[str, int] = {}
    for kind, plant in planted.LEAKS.items():
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            made, code = planted.people(random)
            made["extra"] = plant(random, made["y"])
            found = giving_away(planted.table(made, code), ["age", "income", "city", "extra"], "y", "classes")
            named[kind] = named.get(kind, 0) + ([finding.columns for finding in found] == [["extra"]])
    alarms = 0
    for seed in range(10 * seeds):
        made, code = planted.people(np.random.default_rng(seed))
        found = of_table(planted.table(made, code), ["age", "income", "city"], ["y"], "classes", "random")
        alarms += any(finding.warning for finding in found)
    return {"of": seeds, "named": named, "honest_tables": 10 * seeds, "false_alarms": alarms}


def main() -> None:
    options = common.parser(__doc__ or "").parse_args()
    seeds = 3 if options.short else 20
    figures = {
        "exact copies": exact(min(seeds, 5)),
        "rows with one changed cell": rows(seeds),
        "documents, 5 % of words changed": documents(seeds, 0.05),
        "documents, 10 % of words changed": documents(seeds, 0.10),
        "leaking columns": columns(seeds),
    }
    shown = [
        [name, f["planted"], f["recall"], f.get("false", "-")] for name, f in figures.items() if "recall" in f
    ]
    common.table("planted copies across splits", ["what", "planted", "recall", "false"], shown)
    leaking = figures["leaking columns"]
    shown = [[kind, f"{count} of {leaking['of']}"] for kind, count in leaking["named"].items()]
    common.table("columns that give the target away", ["what", "named"], shown)
    print(f"false alarms: {leaking['false_alarms']} of {leaking['honest_tables']} honest tables")
    common.save(options, "leakage", figures, common.versions("numpy", "pandas"))


if __name__ == "__main__":
    main()
