"""configs/schema.json, by which editors complete and check: it is fresh, and says what the reader says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llmtool.core import config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((ROOT / "configs/schema.json").read_text())  # type: ignore[no-any-return]


def test_it_is_fresh() -> None:
    script = ROOT / "scripts/schema.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_a_schema_in_which_every_key_is_explained(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = {"the file": schema, **schema["$defs"]}
    for where, section in sections.items():
        assert section["additionalProperties"] is False, where
        for key, about in section.get("properties", {}).items():
            assert about.get("description") or "const" in about, f"{where}: {key}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(schema: dict[str, Any], path: Path) -> None:
    document = config.parse(path.read_text(), path.name).data
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "change",
    [
        {"sed": 1},
        {"seed": "x"},
        {"model": {"family": "mpl"}},
        {"train": {"budget": {"steps": 0}}},
        {"data": {"source": {"format": "csv"}}},
        {"task": {"kind": "classification", "weights": 1}},
        {"devices": 0},
        {"devices": "gpu:2"},
        {"parallel": {"tensor": 0}},
        {"parallel": {"data": "zero"}},
    ],
)
def test_what_the_reader_refuses_the_schema_refuses(schema: dict[str, Any], change: dict[str, Any]) -> None:
    document = config.parse((ROOT / "configs/tabular/adult.yaml").read_text(), "a.yaml").data
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | change, schema, cls=jsonschema.Draft202012Validator)
