"""Writes the poems of data/chinese_poetry as one table in the encoding of Chinese Windows (GB18030).

python scripts/fetch.py chinese_poetry
python scripts/poetry.py                writes data/chinese_poetry/poems.csv: kind, author, text
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "data" / "chinese_poetry"
KINDS = {"poet.tang": "唐詩", "poet.song": "宋詩", "ci.song": "宋詞"}


def main() -> None:
    """The files in the order of their names; poems without a line are left out."""
    paths = sorted(FOLDER.glob("*/*.json"))
    if not paths:
        raise SystemExit("data/chinese_poetry has no poems: python scripts/fetch.py chinese_poetry")
    rows = 0
    with (FOLDER / "poems.csv").open("w", encoding="gb18030", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "author", "text"])
        for path in paths:
            kind = KINDS[".".join(path.name.split(".")[:2])]
            for poem in json.loads(path.read_text(encoding="utf-8")):
                if text := "".join(poem["paragraphs"]).strip():
                    table.writerow([kind, poem["author"], text])
                    rows += 1
    print(f"data/chinese_poetry/poems.csv: {rows:,} poems")


if __name__ == "__main__":
    main()
