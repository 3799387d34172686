"""How a checkpoint's pictures are made ready for it: preprocessor_config.json, read and handed on.

Its numbers belong to the weights: a model that learned from standardised pictures gives nonsense for others.
So the file goes where the model goes: `pretrained.skeleton` reads it, `pretrained.save` writes it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtool.core import files
from llmtool.core.errors import ConfigError, LlmtoolError

FILE = "preprocessor_config.json"
MAX_BYTES, MAX_SIDE = 1_000_000, 65_536


@dataclass(frozen=True)
class Standardisation:
    """What becomes of a pixel's value v, 0 to 255, in channel c: (v * factor - mean[c]) / deviation[c]."""

    factor: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def read(path: Path) -> dict[str, Any] | None:
    """The file's mapping, as it is; None where there is no such file.

    LlmtoolError: not a mapping, or too large. ConfigError: numbers that no pictures can be standardised by.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise LlmtoolError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise LlmtoolError(f"{path}: expected a mapping")
    standardisation(data, path)
    return data


def standardisation(data: dict[str, Any], path: Path) -> Standardisation:
    """How the file says that pixels are scaled and shifted. ConfigError where it says it in no usable way."""
    factor = data.get("rescale_factor", 1 / 255) if data.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    if data.get("do_normalize", "image_mean" in data):
        mean, deviation = _numbers(data, "image_mean", path), _numbers(data, "image_std", path)
    if not _is_number(factor) or factor <= 0:
        raise ConfigError(f"{path}: rescale_factor: expected a number above 0 (got {str(factor)[:100]})")
    if len(mean) != len(deviation) or min(deviation) <= 0:
        raise ConfigError(
            f"{path}: image_std: expected a number above 0 for each of image_mean's {len(mean)}"
        )
    return Standardisation(float(factor), mean, deviation)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width of the pictures that the file's recipe makes; None where it does not say."""
    data = read(path)
    return None if data is None else size_in(data)


def size_in(data: dict[str, Any]) -> tuple[int, int] | None:
    """The same of what stands in the file."""
    for size in (data.get("crop_size") if data.get("do_center_crop") else None, data.get("size")):
        edges = size if isinstance(size, dict) else {"shortest_edge": size}
        found: list[Any] = [edges.get(key, edges.get("shortest_edge")) for key in ("height", "width")]
        if all(type(side) is int and 0 < side <= MAX_SIDE for side in found):
            return found[0], found[1]
    return None


def _numbers(data: dict[str, Any], key: str, path: Path) -> tuple[float, ...]:
    values = data.get(key)
    if not isinstance(values, list) or not 0 < len(values) <= 1024 or not all(map(_is_number, values)):
        raise ConfigError(f"{path}: {key}: expected a list of numbers (got {str(values)[:100]})")
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
