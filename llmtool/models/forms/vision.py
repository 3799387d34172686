"""What the forms of models for pictures share: sizes, classes, heads that are there or not, name maps.

A checkpoint of the body alone has no outputs: they come with the head that fine-tuning gives it. Its pooler
goes: the heads here do not read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from llmtool.core.config import Section
from llmtool.core.contracts import Classes, Images, Values
from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import Form, Stored, refuse_foreign, refuse_other_values, whole_number
from llmtool.models.forms.heads import labels_of, labels_written, outputs_of
from llmtool.models.preprocessing import FILE, size_of

MAX_SIDE = 65_536


@dataclass(kw_only=True)
class VisionForm(Form):
    """A model for pictures whose configuration is a table.

    heads: the class names with a head (the first is what we write), bodies: those without. sizes: Hugging
    Face's key -> ours, for whole numbers that a configuration must say. options: the same for what it may
    leave out or have as null, and then our default holds. fixed: key -> the values that our modules
    implement. names: module of the body (or one parameter, by its whole name) -> where it lies, without the
    prefix and with {} for each number; of the head, whole. modules: the same of those that transformers calls
    otherwise than its files do.
    """

    family: ClassVar[type[Section]]
    model_type: str
    heads: tuple[str, ...]
    bodies: tuple[str, ...]
    prefix: str
    sizes: dict[str, str]
    options: dict[str, str]
    fixed: dict[str, tuple[Any, ...]]
    names: dict[str, str]
    modules: dict[str, str] = field(default_factory=dict)
    unused = re.compile(r"(^|\.)(pooler\..*|mask_token|num_batches_tracked)$")

    def __post_init__(self) -> None:
        self.architectures = (*self.heads, *self.bodies)

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module on torch's current device."""
        refuse_foreign(data, self, path)
        refuse_other_values(data, self.fixed, path)
        values: dict[str, Any] = {ours: whole_number(data, key, path) for key, ours in self.sizes.items()}
        for key, ours in self.options.items():
            if data.get(key) is not None:
                values[ours] = data[key]
        config: Any = self.family.model_validate(values | self.more(data, path))
        named = (data.get("architectures") or [self.heads[0]])[0]
        outputs = outputs_of(data, path) if named in self.heads else None
        model: Any = self.make(config, self.inputs(data, path), outputs, str(named))
        model.labels = labels_of(data) if outputs is not None else None
        return model

    def make(self, config: Any, inputs: Images, outputs: Classes | Values | None, named: str) -> nn.Module:
        """The module of a class that the configuration names."""
        raise NotImplementedError

    def inputs(self, data: dict[str, Any], path: Path) -> Images:
        """The pictures that go in: of image_size, else as preprocessor_config.json makes them."""
        channels = whole_number({"num_channels": data.get("num_channels", 3)}, "num_channels", path)
        size = data.get("image_size")
        if size is None:
            return Images(channels, *(size_of(path.parent / FILE) or (224, 224)))
        return Images(channels, *sides(size, "image_size", path))

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Hugging Face's keys."""
        any_model: Any = model
        config, inputs = any_model.config, any_model.inputs
        keys = {**self.sizes, **self.options}
        form = {key: getattr(config, ours) for key, ours in keys.items() if getattr(config, ours) is not None}
        form |= {key: values[0] for key, values in self.fixed.items() if values[0] is not None}
        form |= {"num_channels": inputs.channels, "dtype": "float32"}
        square = inputs.height == inputs.width
        form["image_size"] = inputs.height if square else [inputs.height, inputs.width]
        form |= self.more_written(config)
        if any_model.outputs is None:
            return form | {"architectures": [self.bodies[0]]}
        return form | labels_written(any_model.labels, any_model.outputs.n, any_model.outputs)

    def stored(self, model: nn.Module) -> dict[str, Stored]:
        """The name map, by module."""
        return {name: self.place(name, model) for name in model.state_dict()}

    def place(self, name: str, model: nn.Module) -> Stored:
        """Where one tensor of ours lies."""
        found = placed(name, self.names)
        return Stored(found if name.startswith("head.") else f"{self.prefix}{found}")

    def module_name(self, model: nn.Module, name: str) -> str:
        """As transformers has it in memory."""
        if name == str(model.head_name):
            return placed(f"{name}.weight", self.names).rpartition(".")[0]
        found = placed(f"{name}.weight", {**self.names, **self.modules}).rpartition(".")[0]
        return f"{self.prefix}{found}"

    def head_modules(self, model: nn.Module) -> list[str]:
        """The output layer."""
        return [self.module_name(model, str(model.head_name))]

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours that no table can give."""
        return {}

    def more_written(self, config: Any) -> dict[str, Any]:
        """Keys of theirs that no table can give."""
        return {}


def placed(name: str, names: Mapping[str, str]) -> str:
    """A tensor's name in the file, from a map of modules (or of whole names) with {} for their numbers."""
    if name in names:
        return names[name]
    template, numbers = re.sub(r"\.\d+", ".{}", name), re.findall(r"\.(\d+)", name)
    if template in names:
        return names[template].format(*numbers)
    module, _, leaf = template.rpartition(".")
    return f"{names[module].format(*numbers)}.{leaf}"


def sides(value: Any, key: str, path: Path) -> tuple[int, int]:
    """Height and width: one number for both, or two."""
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in both):
        raise ConfigError(
            f"{path}: {key}: expected a whole number from 1 to {MAX_SIDE}, or two (got {str(value)[:100]})"
        )
    return both[0], both[1]


def one_side(data: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    """A size that is the same upwards and across."""
    height, width = sides(data.get(key, default), key, path)
    if height != width:
        raise ConfigError(f"{path}: {key}: {height} x {width} is not supported (only squares are)")
    return height


def whole_numbers(data: Mapping[str, Any], key: str, path: Path) -> list[int]:
    """A list of sizes."""
    values = data.get(key)
    if not isinstance(values, list) or not 0 < len(values) <= 16:
        raise ConfigError(f"{path}: {key}: expected a list of 1 to 16 numbers (got {str(values)[:100]})")
    return [whole_number({key: value}, key, path) for value in values]
