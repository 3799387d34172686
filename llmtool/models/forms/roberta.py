"""The form of RoBERTa: model_type roberta, RobertaForSequenceClassification.

BERT's names; the table of positions begins with those of the padding token and the ids before it, which no
position uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.encoder import EncoderConfig
from llmtool.models.forms.bert import FIXED, NAMES, OPTIONS, SIZES, BertForm
from llmtool.models.forms.form import whole_number


class RobertaForm(BertForm):
    """Positions are counted from the padding token's id."""

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The context, which is shorter than the table."""
        rows, padding = whole_number(data, "max_position_embeddings", path), data.get("pad_token_id")
        padding = 1 if padding is None else padding
        if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < rows - 1:
            raise ConfigError(
                f"{path}: pad_token_id: {str(padding)[:100]} leaves no position of the {rows} "
                "(max_position_embeddings)"
            )
        return {"context": rows - padding - 1}

    def more_written(self, config: EncoderConfig) -> dict[str, Any]:
        """The table's rows."""
        rows = config.context + config.padding + 1
        return super().more_written(config) | {"max_position_embeddings": rows}


ROBERTA = RobertaForm(
    model_type="roberta",
    architectures=("RobertaForSequenceClassification", "RobertaModel", "RobertaForMaskedLM"),
    prefix="roberta.",
    sizes=SIZES,
    options=OPTIONS,
    fixed=FIXED,
    names=NAMES,
    heads={"head.dense": "classifier.dense", "head.output": "classifier.out_proj"},
    whole=("classifier",),
)
