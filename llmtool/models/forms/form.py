"""What a form is: how one kind of Hugging Face checkpoint says what our modules are, and its names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError

MAX_WIDTH = 2**31 - 1  # of features, classes and vocabularies
NOTHING = re.compile(r"(?!)")  # matches no name


@dataclass(frozen=True)
class Stored:
    """Where a tensor of ours lies in the file: under which name and, of a matrix that holds several of ours
    one below the other, in which rows (start, stop)."""

    name: str
    rows: tuple[int, int] | None = None


class Form:
    """One kind of checkpoint; a page in this folder is a subclass, and the register lists an instance of it.

    model_type: what config.json says. architectures: the names of classes that are read; the first is what
    we write. prefix: how all names of the body begin, which files of a body alone leave out. unused: tensors
    of the file (by the file's names) that we have no use for: computed ones, and heads that our module does
    without; what it matches is skipped unless the name map asks for it. copied_code: classes that auto_map
    may name because the code beside the weights is that of transformers; it is not run either way.
    """

    model_type: str
    architectures: tuple[str, ...]
    prefix: str = ""
    unused: ClassVar[re.Pattern[str]] = NOTHING
    copied_code: ClassVar[frozenset[str]] = frozenset()

    def renamed(self, key: str) -> str:
        """The name that files of today have for a tensor that an older one calls `key`."""
        return key

    def owns(self, model: nn.Module) -> bool:
        """Whether this is the form that `model` is written in."""
        raise NotImplementedError

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module that config.json's `data` describes; the caller has put torch on the meta device.

        path: of config.json, for messages. ConfigError names the key and its value for all that our modules
        do not implement; pydantic's ValidationError may pass.
        """
        raise NotImplementedError

    def write(self, model: nn.Module) -> dict[str, Any]:
        """What config.json says of `model`; model_type and architectures are added by the caller."""
        raise NotImplementedError

    def module_name(self, model: nn.Module, name: str) -> str:
        """What transformers calls the module that we call `name`: adapters say which layers they are of."""
        return name

    def head_modules(self, model: nn.Module) -> list[str]:
        """What an adapter stores whole where the output layer is new, by transformers' names."""
        return [str(model.head_name)]

    def stored(self, model: nn.Module) -> dict[str, Stored]:
        """The name map: tensor of the model's state_dict -> where it lies in the file.

        What is left out is neither read (it starts as zeros) nor written.
        """
        return {name: Stored(name) for name in model.state_dict()}

    def filler(self, model: nn.Module) -> dict[str, Tensor]:
        """Tensors that others' classes want to find in the file and ours have no use for, by their names."""
        return {}


# --- what the pages share ------------------------------------------------------------------------------


def whole_number(data: Mapping[str, Any], key: str, path: Path) -> int:
    """A size that a configuration must say, from 1 to MAX_WIDTH."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_WIDTH:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a far larger number"
        raise ConfigError(f"{path}: {key}: expected a whole number from 1 to {MAX_WIDTH} (got {shown})")
    return value


def number(data: Mapping[str, Any], key: str, path: Path, default: float | None = None) -> float:
    """A number of a configuration, or `default` where it is left out."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ConfigError(f"{path}: {key}: expected a number (got {str(value)[:100]!r})")
    return float(value)


def refuse_foreign(data: Mapping[str, Any], form: Form, path: Path) -> None:
    """ConfigError for quantised weights, code beside the weights, and classes that the form does not read."""
    code = data.get("auto_map") or {}
    own = isinstance(code, dict) and all(
        key == "AutoTokenizer" or (isinstance(name, str) and name in form.copied_code)
        for key, name in code.items()
    )
    for key, refused in (("quantization_config", data.get("quantization_config")), ("auto_map", not own)):
        if refused:
            raise ConfigError(
                f"{path}: {key} is not supported; only plain weights of known architectures are read"
            )
    named = data.get("architectures") or [form.architectures[0]]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in form.architectures:
        known = list(form.architectures)
        hint = suggest(named[0], known) if isinstance(named, list) and len(named) == 1 else ""
        raise ConfigError(
            f"{path}: architectures is {str(named)[:200]}; only {', '.join(known)} is read for "
            f"{form.model_type}{hint}"
        )


def refuse_other_values(data: Mapping[str, Any], fixed: Mapping[str, Sequence[Any]], path: Path) -> None:
    """ConfigError where a key has a value that our modules do not implement.

    fixed: key -> the values that they do; the first is what a configuration means that leaves the key out.
    """
    for key, values in fixed.items():
        if data.get(key, values[0]) not in values:
            raise ConfigError(
                f"{path}: {key}: {str(data[key])[:100]!r} is not supported (only {values[0]!r})"
                if isinstance(data[key], str)
                else f"{path}: {key}: {str(data[key])[:100]} is not supported (only {values[0]!r})"
            )
