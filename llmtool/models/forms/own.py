"""The form of models for pictures that no class of others can express: our own names and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import Stored


class Own:
    """Stands before the form of the family's others among a form's bases."""

    family_name: ClassVar[str]

    def filler(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing: no class of others reads it."""
        return {}

    def module_name(self, model: nn.Module, name: str) -> str:
        """The same."""
        return name

    def place(self, name: str, model: nn.Module) -> Stored:
        """Every name is ours."""
        return Stored(name)

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Our own keys."""
        if not isinstance(data.get("model"), dict):
            raise ConfigError(f"{path}: model: expected the keys of a {self.family_name}")
        return data["model"]

    def more_written(self, config: Any) -> dict[str, Any]:
        """Our own keys."""
        return {"model": config.model_dump(mode="json", by_alias=True)}
