"""The form of our own multi-layer perceptron, which Hugging Face has none for: model_type llmtool_mlp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Classes, Features, Labels, Values
from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import Form, whole_number
from llmtool.models.mlp import MLP, MLPConfig

OUTPUTS: dict[str, type[Classes] | type[Values]] = {"labels": Labels, "classes": Classes, "values": Values}


class MLPForm(Form):
    """Inputs, outputs and our own configuration as they are; every name is ours."""

    model_type = "llmtool_mlp"
    architectures = ("MLP",)

    def owns(self, model: nn.Module) -> bool:
        """An MLP."""
        return isinstance(model, MLP)

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module, from our own keys."""
        width, outputs = specs_of(data, path)
        return MLPConfig.model_validate(data.get("model")).build(Features(width), outputs)

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Our own keys."""
        assert isinstance(model, MLP)
        return {
            "inputs": {"kind": "features", "width": model.inputs.width},
            "outputs": outputs_written(model.outputs),
            "model": model.config.model_dump(mode="json", by_alias=True),
        }


def specs_of(data: dict[str, Any], path: Path) -> tuple[int, Classes | Values]:
    """How many features go in, and what comes out, of a model for tables; ConfigError for anything else."""
    inputs, outputs = (data[key] if isinstance(data.get(key), dict) else {} for key in ("inputs", "outputs"))
    spec = OUTPUTS.get(str(outputs.get("kind")))
    if inputs.get("kind") != "features" or spec is None:
        raise ConfigError(f"{path}: inputs must be features and outputs {', '.join(OUTPUTS)}")
    return whole_number(inputs, "width", path), spec(whole_number(outputs, "n", path))


def outputs_written(outputs: Any) -> dict[str, Any]:
    """The outputs as `specs_of` reads them."""
    kind = next(name for name, spec in OUTPUTS.items() if isinstance(outputs, spec))
    return {"kind": kind, "n": outputs.n}
