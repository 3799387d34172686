"""The form of our own bag of n-grams, which Hugging Face has none for: model_type llmtool_bag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.bag import Bag, BagConfig
from llmtool.models.forms.form import Form, whole_number
from llmtool.models.forms.heads import labels_of, labels_written, outputs_of


class BagForm(Form):
    """Inputs and our own configuration as they are, outputs as encoders say them; every name is ours."""

    model_type = "llmtool_bag"
    architectures = ("Bag",)

    def owns(self, model: nn.Module) -> bool:
        """A bag of n-grams."""
        return isinstance(model, Bag)

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module, from our own keys."""
        if not isinstance(data.get("model"), dict):
            raise ConfigError(f"{path}: model: expected the keys of a bag of n-grams")
        vocabulary = Tokens(whole_number(data, "vocab_size", path))
        model = BagConfig.model_validate(data["model"]).build(vocabulary, outputs_of(data, path))
        model.labels = labels_of(data)
        return model

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Our own keys."""
        assert isinstance(model, Bag)
        assert model.outputs is not None
        return {
            "vocab_size": model.inputs.vocabulary,
            "model": model.config.model_dump(mode="json", by_alias=True),
            **labels_written(model.labels, model.outputs.n, model.outputs),  # type: ignore[union-attr]
        }
