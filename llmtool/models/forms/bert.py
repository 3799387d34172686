"""The form of BERT: model_type bert, BertForSequenceClassification; MiniLM's encoders have it too."""

from __future__ import annotations

from typing import Any

from llmtool.models.encoder import EncoderConfig
from llmtool.models.forms.encoder import EncoderForm

SIZES = {
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_size": "width",
    "intermediate_size": "feed_forward",
}
OPTIONS = {
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "dropout",
    "type_vocab_size": "token_types",
    "pad_token_id": "padding",
}
FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
NAMES = {
    "embed.tokens": "embeddings.word_embeddings",
    "embed.positions": "embeddings.position_embeddings",
    "embed.types": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
    "layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.widen": "encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.narrow": "encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "encoder.layer.{}.output.LayerNorm",
}


class BertForm(EncoderForm):
    """Dropout is said three times; our one value goes into all of them."""

    def more_written(self, config: EncoderConfig) -> dict[str, Any]:
        """The dropout of attention; that of the head is the hidden layers'."""
        return {"attention_probs_dropout_prob": config.dropout}


BERT = BertForm(
    model_type="bert",
    architectures=("BertForSequenceClassification", "BertModel", "BertForMaskedLM", "BertForPreTraining"),
    prefix="bert.",
    sizes=SIZES | {"max_position_embeddings": "context"},
    options=OPTIONS,
    fixed=FIXED,
    names=NAMES,
    heads={"head.dense": "bert.pooler.dense", "head.output": "classifier"},
    whole=("pooler", "classifier"),
)
