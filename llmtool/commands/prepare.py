"""llmtool prepare: raw files to a dataset on disk, with an account of every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from llmtool.commands import Options, keys, session
from llmtool.core import console, files
from llmtool.core.run import hashes_of
from llmtool.data import dropped
from llmtool.data.audit import CLOSE, OPEN
from llmtool.data.store import Dataset


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json."""
    with session.command(options, "prepare") as loaded:
        hashes = hashes_of(loaded.experiment.run, "prepare")
        key = keys.prepare(loaded, hashes.hash)
        with session.stage(loaded, "prepare", key, options, hashes=hashes) as run:
            if not run.fresh:
                session.prepare_into(run, loaded, hashes)
                show(Dataset.open(run.directory), run.directory)
    return run.result


def show(dataset: Dataset, directory: Path) -> None:
    """What became of the rows, and what a model will see."""
    card = dataset.card
    ledger = files.read_json(directory / "ledger.json")
    rows = [["read", f"{ledger['read']:,}"]]
    for split, meta in card["splits"].items():
        tokens = f", {meta['tokens']:,} tokens" if "tokens" in meta else ""
        if "trained" in meta:
            tokens += f", of which {100 * meta['trained'] / max(1, meta['tokens']):.3g} % are learned"
        rows.append([f"kept for {split}", f"{ledger['kept'][split]:,}{tokens}"])
    for name, part in ledger.get("parts", {}).items():
        share = card["splits"]["train"]["parts"][name]["share"]
        kept = sum(part["kept"].values())
        rows.append([f"part {name}", f"{part['read']:,} read, {kept:,} kept; {100 * share:.3g} % of train"])
    rows += [[f"changed: {what}", f"{count:,}"] for what, count in ledger.get("changed", {}).items()]
    rows += [[f"dropped: {reason}", f"{count:,}"] for reason, count in ledger["dropped"].items()]
    rows += [[f"quarantined: {reason}", f"{count:,}"] for reason, count in ledger["quarantined"].items()]
    console.table(["", "rows"], rows)
    size = next(f"{name} {value:,}" for name, value in card["inputs"].items() if isinstance(value, int))
    targets = card["targets"]
    names = targets.get("names") or []
    listed = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    learned = f"{targets['kind'].replace('_', ' ')} {listed}".strip()
    console.say(f"a model sees {card['inputs']['kind']} ({size}) and learns {learned}")
    for one in ledger.get("mask", []):
        show_mask(one["row"], one["pieces"])
    for note in card["notes"]:
        console.say(f"note: {note}")
    if (examples := directory / dropped.FILE).is_file():
        console.say(f"some of the rows that were dropped, for each reason: {examples}")
    console.say(f"dataset: {directory}")


def show_mask(row: str, pieces: list[Any]) -> None:
    """A conversation in which what is learned is marked: in colour, and without colour too."""
    shown = Text(f"{console.clean(row)}, learned is what stands between {OPEN} and {CLOSE}:\n", style="bold")
    for text, learned in pieces:
        words = console.clean(text)
        shown.append(
            f"{OPEN}{words}{CLOSE}" if learned else words, style="green" if learned else "not bold dim"
        )
    console.show(shown)
