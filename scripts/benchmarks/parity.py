"""Our models beside transformers' on the same small random weights: the largest |difference|, case by case.

    python scripts/benchmarks/parity.py --save                      the table of tests/models/parity
    python scripts/benchmarks/parity.py --reference shared/data/checkpoint_stories260k/hf

`--reference` reads a real checkpoint that has a `reference.json` beside it (`greedy_ids`, and
`logits_last_position_first8` after the prompt `text`): its logits and its greedy continuation, token for
token, with our cache and without.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(common.ROOT))


def compared(only: str) -> dict[str, dict[str, float]]:
    """family -> case -> the largest |difference|, of the families whose name contains `only`."""
    import transformers

    from tests.models.parity import FAMILIES, pair

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: dict[str, dict[str, float]] = {}
    for family in FAMILIES:
        if only in family.name:
            with tempfile.TemporaryDirectory() as directory:
                both = pair(family, Path(directory))
                found[family.name] = {name: case(both) for name, case in family.cases.items()}
    return found


def reference(directory: Path) -> dict[str, Any]:
    """The largest |difference| from a checkpoint's reference logits, and how many greedy tokens agree."""
    import torch

    from llmtool.models import pretrained
    from llmtool.models.cache import Cache

    known = common.read_json(directory / "reference.json")
    model: Any = pretrained.load(directory).eval()
    ids, wanted = known["greedy_ids"], torch.tensor(known["logits_last_position_first8"])
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0]
        # the reference does not say how long its prompt is: the position that fits, and how well
        differences = (logits[:, :8] - wanted).abs().amax(dim=1)
        prompt = int(differences.argmin()) + 1
        agree = sum(int(logits[i].argmax()) == ids[i + 1] for i in range(prompt - 1, len(ids) - 1))
        cache, made = Cache(rows=1, capacity=len(ids)), list(ids[:prompt])
        step = torch.tensor([made])
        while len(made) < len(ids):
            step = model(step, cache=cache)[:, -1:].argmax(dim=-1)
            made.append(int(step))
    return {
        "prompt_tokens": prompt,
        "logits": float(differences.min()),
        "greedy": f"{agree} of {len(ids) - prompt}",
        "greedy_cached_equal": made == ids,
    }


def main() -> None:
    """Compare, show, save; exit 1 where a case is above the limit."""
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--only", default="", help="families whose name contains this")
    arguments.add_argument("--reference", type=Path, help="a checkpoint directory with a reference.json")
    options = arguments.parse_args()
    from tests.models.parity import LIMIT

    if options.reference:
        common.table(str(options.reference), ["figure", ""], list(reference(options.reference).items()))
        return
    found = compared("llama" if options.short else options.only)
    for cases in dict.fromkeys(map(tuple, found.values())):  # families with the same cases in one table
        rows = [
            [family, *(f"{row[case]:.1e}" for case in cases)]
            for family, row in found.items()
            if tuple(row) == cases
        ]
        common.table("largest |ours - transformers|", ["family", *cases], rows)
    worst = max(value for row in found.values() for value in row.values())
    print(f"{sum(map(len, found.values()))} cases, the worst {worst:.1e}, the limit {LIMIT:.0e}")
    packages = common.versions("torch", "transformers")
    common.save(options, "parity", {"limit": LIMIT, "worst": worst, "differences": found}, packages)
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
