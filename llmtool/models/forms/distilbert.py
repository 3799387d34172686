"""The form of DistilBERT: model_type distilbert, DistilBertForSequenceClassification."""

from __future__ import annotations

from typing import Any

from llmtool.models.encoder import EncoderConfig
from llmtool.models.forms.encoder import EncoderForm

BLOCK = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.widen": "ffn.lin1",
    "feed_forward.narrow": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}


class DistilBertForm(EncoderForm):
    """Dropout is said three times; our one value goes into all of them."""

    def more_written(self, config: EncoderConfig) -> dict[str, Any]:
        """The dropout of attention and of the head."""
        return {"attention_dropout": config.dropout, "seq_classif_dropout": config.dropout}


DISTILBERT = DistilBertForm(
    model_type="distilbert",
    architectures=("DistilBertForSequenceClassification", "DistilBertModel", "DistilBertForMaskedLM"),
    prefix="distilbert.",
    sizes={
        "n_layers": "depth",
        "n_heads": "heads",
        "dim": "width",
        "hidden_dim": "feed_forward",
        "max_position_embeddings": "context",
    },
    options={"dropout": "dropout", "pad_token_id": "padding"},
    fixed={"sinusoidal_pos_embds": (False, True)},  # either way the table lies in the file
    names={
        "embed.tokens": "embeddings.word_embeddings",
        "embed.positions": "embeddings.position_embeddings",
        "embed.norm": "embeddings.LayerNorm",
        **{f"layers.{{}}.{ours}": f"transformer.layer.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    },
    heads={"head.dense": "pre_classifier", "head.output": "classifier"},
    whole=("pre_classifier", "classifier"),
    activation="activation",
)
