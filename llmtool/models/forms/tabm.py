"""The form of our own ensemble for tables, which Hugging Face has none for: model_type llmtool_tabm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Features
from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import Form
from llmtool.models.forms.mlp import outputs_written, specs_of
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
        width, outputs = specs_of(data, path)
        columns = data["inputs"].get("columns", [])
        if not isinstance(columns, list) or not all(type(size) is int and size > 0 for size in columns):
            raise ConfigError(f"{path}: inputs.columns: expected a list of whole numbers above 0")
        if sum(columns or [width]) != width:
            raise ConfigError(f"{path}: inputs.columns: {sum(columns)} features, but width is {width}")
        return TabMConfig.model_validate(data.get("model")).build(Features(width, tuple(columns)), outputs)

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Our own keys."""
        assert isinstance(model, TabM)
        width, columns = model.inputs.width, list(model.inputs.columns)
        return {
            "inputs": {"kind": "features", "width": width, "columns": columns},
            "outputs": outputs_written(model.outputs),
            "model": model.config.model_dump(mode="json", by_alias=True),
        }
