"""What of validation and test stands in train, looked for in the encoding's own way, and written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llmtool.core import files
from llmtool.core.errors import DataError
from llmtool.data import DataConfig, leakage
from llmtool.data.chat import ChatEncoder
from llmtool.data.encoding import Encoder
from llmtool.data.features import FeatureEncoder
from llmtool.data.images import ImagesEncoder
from llmtool.data.twins import of_pictures

LEAKAGE = "leakage.json"


def text_columns(encoder: Encoder) -> str | list[str] | None:
    """The columns whose texts are compared, as the encoder has them (of `like`, those of its dataset)."""
    config = getattr(encoder, "config", None)
    found: str | list[str] | None = getattr(config, "text", None) or getattr(config, "moves", None)
    return found


def leaks(
    data: DataConfig,
    encoder: Encoder,
    sample: leakage.Sample,
    splits: Mapping[str, Mapping[str, Any]],
    directory: Path,
) -> list[str]:
    """Look for what leaks from split to split, write it down; returns a note for each thing found.

    splits: their entries in the card. Raises DataError where the file says to refuse.
    """
    rows = sample.rows
    if isinstance(encoder, FeatureEncoder):
        inputs = [column.name for column in encoder.fitted or []]
        kind = encoder.targets["kind"]
        found = leakage.of_table(sample.table(), inputs, encoder.target_names, kind, data.split.by)
    elif isinstance(encoder, ImagesEncoder):
        found = of_pictures(encoder.seen, splits, directory)
        rows = sum(meta["rows"] for meta in splits.values())
    else:
        columns = text_columns(encoder) or ""
        read = encoder.texts if isinstance(encoder, ChatEncoder) else partial(leakage.texts, columns=columns)
        found = leakage.of_text(sample, read)
    document = {"rows": rows, "findings": [asdict(one) for one in found]}
    files.write_json(directory / LEAKAGE, files.plain(document))
    warnings = [one for one in found if one.warning]
    if data.leakage == "refuse" and warnings:
        more = f" (and {len(warnings) - 1} more in {directory / LEAKAGE})" if len(warnings) > 1 else ""
        raise DataError(f"data.leakage: {warnings[0].says}; {warnings[0].advice}{more}")
    shown = [one for one in found if one.warning or one.kind != "near_duplicates"]
    return [f"{one.says}; {one.advice}" for one in shown]
