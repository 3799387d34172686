"""Writes configs/schema.json, the JSON schema of the YAML language, for editors; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llmtool.experiment import Experiment

TARGET = Path(__file__).parent.parent / "configs" / "schema.json"


def schema() -> str:
    """The schema as it should stand in the repository."""
    body = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(by_alias=True),
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == schema() else "configs/schema.json is stale: run `make schema`")
    TARGET.write_text(schema())
