"""Columns of a table beside a text: which they are, and how they are encoded as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from llmtool.core.config import Section
from llmtool.data.columns import Categories, Dates, Ignored, Missing, Numbers, Scale
from llmtool.data.features import FeatureEncoder, FeaturesEncode


class BesideConfig(Section):
    """The columns that a model reads beside a text, encoded as those of `as: features` are."""

    columns: list[str] | None = Field(
        default=None, description="The columns; default all but the text's and the target."
    )
    ignore: Ignored = Field(default=[])
    numbers: Numbers = Field(default=[])
    categories: Categories = Field(default=[])
    dates: Dates = Field(default=[])
    missing: Missing = "median"
    scale: Scale = "standard"

    def encode(self, texts: list[str], target: str | list[str] | None) -> FeaturesEncode:
        """The same as an encoding of its own; ValueError where columns stand in two places."""
        keys: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if self.columns is None:
            keys["ignore"] = [*self.ignore, *(name for name in texts if name not in self.ignore)]
        try:
            return FeaturesEncode(target=target, **keys)
        except ValidationError as error:
            reason = error.errors()[0].get("ctx", {}).get("error", error.errors()[0]["msg"])
            raise ValueError(f"features: {reason}") from None


def taken(state: dict[str, Any], target: str | list[str], directory: Path) -> FeatureEncoder:
    """The columns' fitted encoder for another target."""
    encoder = FeatureEncoder.from_state(state, directory)
    encoder.config = encoder.config.model_copy(update={"target": target})
    return encoder
