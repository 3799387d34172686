"""Every family as ONNX, run by onnxruntime beside torch: the largest difference of an output, for each.

    python scripts/benchmarks/onnx_check.py [NAME ...]    # cases of tests/models/test_conformance.py

Inputs of two sizes, one of them past windows and stretched positions; a case takes 2 to 20 s.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmtool.models import onnx
from tests.models.test_conformance import CASES, build

RESULT = Path(__file__).parent / "results/onnx_check.json"


def main() -> None:
    """Run the cases; RESULT is written where all were run. A wrong one ends with its error."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for case in sys.argv[1:] or CASES:
            model = build(CASES[case]).eval()
            onnx.export(model, path := Path(name) / onnx.FILE)
            found[case] = onnx.check(model, path)
            print(f"{case:24}", max(one["difference"] for one in found[case] or []), flush=True)
    if len(found) == len(CASES):
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        RESULT.write_text(json.dumps({"versions": versions, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
