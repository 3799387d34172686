"""What is known of a dataset's rows beside its arrays: how they were read and cleaned, and their encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import DataError
from llmtool.data import CleanStep, DataConfig, SourceConfig
from llmtool.data.chat import ChatEncoder
from llmtool.data.encoding import Encoder
from llmtool.data.features import FeatureEncoder
from llmtool.data.games.moves import MovesEncoder
from llmtool.data.images import ImagesEncoder
from llmtool.data.labelled import TextEncoder
from llmtool.data.sources import RowSource
from llmtool.data.tokens import TokenEncoder

ENCODERS: dict[str, Any] = {  # what `as` says in the state of an encoder -> the class that it restores
    "features": FeatureEncoder, "tokens": TokenEncoder, "text": TextEncoder, "chat": ChatEncoder,
    "moves": MovesEncoder, "images": ImagesEncoder,
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How rows are read and cleaned before an encoder sees them. source: its path means nothing."""

    source: RowSource
    clean: list[Any]

    @classmethod
    def of(cls, config: DataConfig) -> Reading:
        """That of a configuration."""
        return cls(config.source, list(config.clean))

    def state(self) -> dict[str, Any]:
        """What a card says of it."""
        how: dict[str, Any] = {"mode": "json", "by_alias": True, "exclude_unset": True}
        source = self.source.model_dump(**how)
        for one in [source, *source.get("parts", {}).values()]:
            one |= {"path": "-"} if "path" in one else {}
        return {"source": source, "clean": [step.model_dump(**how) for step in self.clean]}

    @classmethod
    def from_state(cls, state: Any, directory: Path) -> Reading:
        """That whose `state()` this is. DataError for one of another version."""
        try:
            source: RowSource = _SOURCE.validate_python(state["source"])
            return cls(source, _STEPS.validate_python(state["clean"]))
        except (KeyError, TypeError, ValidationError):
            raise DataError(f"{directory}: how its data was read is not known to this version") from None


_SOURCE: TypeAdapter[Any] = TypeAdapter(SourceConfig)
_STEPS: TypeAdapter[Any] = TypeAdapter(list[CleanStep])


def restore_encoder(card: Mapping[str, Any], directory: Path) -> Encoder:
    """The fitted encoder of a card. directory: of its tokenizer's files.

    Raises DataError where the card does not hold a whole one.
    """
    state = card["encoder"]
    kind = ENCODERS.get(state.get("as"))
    if kind is None:
        raise DataError(f"{directory}: its encoder {state.get('as')!r} is not known to this version")
    encoder: Encoder = kind.from_state(state, directory)
    return encoder
