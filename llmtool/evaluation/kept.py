"""Evidence kept on disk between evaluations: what a model or a baseline gave on the rows of a split.

One file for each, which says what it was made from; it is read back only where all of that is the same, and
its bytes are those that were written. One that is not costs the work again, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from llmtool.core import files
from llmtool.core.contracts import Tally
from llmtool.core.errors import LlmtoolError
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally
from llmtool.metrics.target_scale import described, target_scale

Arrays = dict[str, np.ndarray]


def write(path: Path, key: Mapping[str, str], arrays: Arrays, about: Mapping[str, Any]) -> None:
    """Keep the arrays and what is said about them. A disk that cannot take them is left alone."""
    said = {"key": json.dumps(dict(key)), "about": json.dumps(dict(about)), "hash": _hash(arrays)}
    try:
        files.make_directories(path.parent)
        files.write_bytes(path, safetensors.numpy.save(arrays, said))
    except LlmtoolError:
        return


def read(path: Path, key: Mapping[str, str]) -> tuple[Arrays, dict[str, Any]] | None:
    """What `write` kept under the same key; None where there is no such file, or it is not whole."""
    try:
        with safetensors.safe_open(path, "np") as file:
            said = file.metadata() or {}
            if json.loads(said["key"]) != dict(key):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return (arrays, json.loads(said["about"])) if said["hash"] == _hash(arrays) else None
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _hash(arrays: Arrays) -> str:
    parts = [f"{name}\0{arrays[name].shape}\0".encode() + arrays[name].tobytes() for name in sorted(arrays)]
    return files.hash_bytes(b"".join(parts))


# --- the evidence of a model ---


def write_tally(path: Path, key: Mapping[str, str], tally: Tally) -> None:
    """Keep a model's evidence, exactly."""
    if isinstance(tally, LabelTally):
        arrays = {"labels": tally.seen().targets.astype(np.uint8), "scores": tally.seen().logits}
        about: dict[str, Any] = {"names": tally.names, "thresholds": tally.thresholds}
    elif isinstance(tally, ClassificationTally):
        seen = tally.judgement()
        arrays = {"logits": seen.logits, "targets": seen.targets}
        about = {"names": tally.names, "positive": tally.positive}
    elif isinstance(tally, RegressionTally):
        arrays = {"predictions": tally.standardised(), "targets": tally.pairs()[1]}
        about = {"names": tally.names, "mean": list(tally.mean), "scale": list(tally.scale)}
        about["transform"] = described(tally.transform)
    else:
        assert isinstance(tally, LanguageTally)
        arrays, about = {"sums": tally.sums()}, {"size": tally.bytes}
    write(path, key, {name: np.ascontiguousarray(array) for name, array in arrays.items()}, about)


def read_tally(path: Path, key: Mapping[str, str]) -> Tally | None:
    """The tally that was kept under this key, or None."""
    found = read(path, key)
    if found is None:
        return None
    arrays, about = {name: torch.from_numpy(array) for name, array in found[0].items()}, found[1]
    if "labels" in arrays:
        return LabelTally(arrays["scores"], arrays["labels"], **about)
    if "logits" in arrays:
        return ClassificationTally(arrays["logits"], arrays["targets"], **about)
    if "predictions" in arrays:
        about["transform"] = target_scale(about["transform"])
        return RegressionTally(arrays["predictions"], arrays["targets"], **about)
    if len(arrays["sums"]) == 3:
        return LanguageTally(*arrays["sums"], **about)
    return GamesTally(*arrays["sums"])
