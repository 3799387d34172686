"""The form of our own ensemble for tables, which Hugging Face has none for: model_type llmtool_tabm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Features
from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import Form, whole_number
from llmtool.models.forms.mlp import OUTPUTS
from llmtool.models.tabm import TabM, TabMConfig


class TabMForm(Form):
    """Inputs with their columns, outputs and our own configuration as they are; every name is ours."""

    model_type = "llmtool_tabm"
    architectures = ("TabM",)

    def owns(self, model: nn.Module) -> bool:
        """A TabM."""
        return isinstance(model, TabM)

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module, from our own keys."""
        inputs, outputs = (
            data[key] if isinstance(data.get(key), dict) else {} for key in ("inputs", "outputs")
        )
        spec = OUTPUTS.get(str(outputs.get("kind")))
        if inputs.get("kind") != "features" or spec is None:
            raise ConfigError(f"{path}: inputs must be features and outputs classes or values")
        width, n = whole_number(inputs, "width", path), whole_number(outputs, "n", path)
        columns = inputs.get("columns", [])
        if not isinstance(columns, list) or not all(type(size) is int and size > 0 for size in columns):
            raise ConfigError(f"{path}: inputs.columns: expected a list of whole numbers above 0")
        if sum(columns or [width]) != width:
            raise ConfigError(f"{path}: inputs.columns: {sum(columns)} features, but width is {width}")
        return TabMConfig.model_validate(data.get("model")).build(Features(width, tuple(columns)), spec(n))

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Our own keys."""
        assert isinstance(model, TabM)
        kind = next(name for name, spec in OUTPUTS.items() if isinstance(model.outputs, spec))
        width, columns = model.inputs.width, list(model.inputs.columns)
        return {
            "inputs": {"kind": "features", "width": width, "columns": columns},
            "outputs": {"kind": kind, "n": model.head.weight.shape[0]},
            "model": model.config.model_dump(mode="json", by_alias=True),
        }
