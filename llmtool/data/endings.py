"""What the name of a file says: its format, and whether it is packed."""

from __future__ import annotations

from pathlib import PurePosixPath

PACKED = (".gz", ".zst")
ROW_FORMATS = {  # of names, without .gz and .zst: the format of files that hold rows
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def plain(name: str) -> str:
    """The name in small letters, without the endings of what it is packed by."""
    return name.lower().removesuffix(PACKED[0]).removesuffix(PACKED[1])


def ending(name: str) -> str:
    """The last ending of the plain name, as in ".csv"; empty without one."""
    return PurePosixPath(plain(name)).suffix
