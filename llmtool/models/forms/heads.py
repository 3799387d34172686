"""What the pages of models with a head share: how a configuration says and names its classes or values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtool.core.contracts import Classes, Labels, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import whole_number

LABELS = "id2label"
FEATURES = "llmtool_features"  # numbers of a table beside a text, which no class of theirs reads
POOLING = "llmtool_pooling"  # of heads on a mean, which of theirs only ModernBERT has a key of its own for
KINDS = ("single_label_classification", "regression", "multi_label_classification")


def outputs_of(data: Mapping[str, Any], path: Path) -> Classes | Values:
    """What the head gives. As transformers takes it, one number is a value; of more, problem_type says."""
    labels, count = data.get(LABELS), data.get("num_labels")
    if count is None:
        count = len(labels) if isinstance(labels, dict) and labels else 2
    count = whole_number({"num_labels": count}, "num_labels", path)
    kind = data.get("problem_type") or KINDS[count == 1]
    if kind not in KINDS:
        raise ConfigError(
            f"{path}: problem_type: {str(kind)[:100]!r} is not supported (only {', '.join(KINDS)})"
        )
    if kind == KINDS[1]:
        return Values(count)
    return Labels(count) if kind == KINDS[2] else Classes(count)


def labels_of(data: Mapping[str, Any]) -> list[str] | None:
    """The names of the outputs, in order; None where they are not told."""
    labels = data.get(LABELS)
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(labels))}:
        return None
    return [str(labels[str(number)]) for number in range(len(labels))]


def labels_written(labels: list[str] | None, count: int, outputs: OutputSpec | None) -> dict[str, Any]:
    """The names of `count` outputs, as transformers reads them."""
    labels = labels or [f"LABEL_{number}" for number in range(count)]
    return {
        LABELS: {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": KINDS[2 if isinstance(outputs, Labels) else isinstance(outputs, Values)],
    }
