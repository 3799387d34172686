"""What a person can look at of cleaning: some of the rows that were dropped for each reason, rows changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.core import files
from llmtool.data.personal import PersonalData
from llmtool.data.sensitive import KINDS, placeholder, redact
from llmtool.data.sources import Chunk

FILE = "dropped.json"  # reason -> [{file, line, row: {column: excerpt}}]
MOST = 20  # rows for each reason
CELLS, CHARACTERS = 50, 300  # of a row, of a cell


@dataclass
class Account:
    """What cleaning did, beside the count of every row. changed: what was written anew -> in how many rows.

    steps: of `data.clean`; what its `personal_data` looks for stands in no excerpt.
    """

    steps: Sequence[Any] = ()
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, chunk: Chunk, fates: np.ndarray, reasons: list[tuple[str, str]], paths: list[str]) -> None:
        """Remember rows of a chunk that were dropped. fates: (rows,) 0, or the number of a reason from 1."""
        for number in np.unique(fates[fates > 0]).tolist():
            kind, reason = reasons[number - 1]
            if kind != "dropped":
                continue
            some = self.examples.setdefault(reason, [])
            for row in np.flatnonzero(fates == number)[: MOST - len(some)].tolist():
                cells = self.hidden(chunk.frame.iloc[row].to_dict())
                where = {"file": paths[chunk.file[row]], "line": int(chunk.line[row])}
                some.append({**where, "row": {name: _excerpt(cells[name]) for name in list(cells)[:CELLS]}})

    def hidden(self, cells: dict[str, Any]) -> dict[str, Any]:
        """The cells that hold something, with placeholders for personal data where a step looks for any."""
        kinds = [kind for step in self.steps if isinstance(step, PersonalData) for kind in step.kinds]
        there = {name: value for name, value in cells.items() if value is not None}
        if not kinds:
            return there
        return {name: redact(v, kinds)[0] if isinstance(v, str) else v for name, v in there.items()}

    def ledger(self) -> dict[str, Any]:
        """What the ledger says of it: nothing where no step changed a row that counts them."""
        return {"changed": dict(self.changed.most_common())} if self.changed else {}

    def write(self, directory: Path) -> None:
        """Write the examples, where there are any."""
        if self.examples:
            files.write_json(directory / FILE, self.examples)


def _excerpt(cell: Any) -> Any:
    """The beginning of a text, or what stands around the first placeholder."""
    if not isinstance(cell, str) or len(cell) <= CHARACTERS:
        return cell
    found = [at for kind in KINDS if (at := cell.find(placeholder(kind))) >= 0]
    start = max(0, min(found, default=0) - CHARACTERS // 2)
    return "..." * (start > 0) + cell[start : start + CHARACTERS] + "..." * (start + CHARACTERS < len(cell))
