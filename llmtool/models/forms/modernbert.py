"""The form of ModernBERT: model_type modernbert, ModernBertForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.encoder import EncoderConfig
from llmtool.models.forms.encoder import EncoderForm
from llmtool.models.forms.form import number, whole_number

LOCAL, GLOBAL = "sliding_attention", "full_attention"
BLOCK = {
    "attention.query_key_value": "attn.Wqkv",
    "attention.output": "attn.Wo",
    "attention_norm": "attn_norm",
    "feed_forward.widen": "mlp.Wi",
    "feed_forward.narrow": "mlp.Wo",
    "feed_forward_norm": "mlp_norm",
}
DROPOUTS = ("attention_dropout", "embedding_dropout", "classifier_dropout")


class ModernBertForm(EncoderForm):
    """Two bases of rotary positions, and which blocks look at the whole text, in files old and new."""

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The two bases, and how often a block is global."""
        rope = data.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ConfigError(f"{path}: rope_parameters: expected a mapping")
        found = {}
        for kind, old, ours, usual in (
            (GLOBAL, "global_rope_theta", "rope_theta", 160_000.0),
            (LOCAL, "local_rope_theta", "local_rope_theta", 10_000.0),
        ):
            about = rope.get(kind) or {}
            if not isinstance(about, dict) or about.get("rope_type", "default") != "default":
                raise ConfigError(f"{path}: rope_parameters: only the default rotary positions are supported")
            found[ours] = number({old: about.get("rope_theta", data.get(old, usual))}, old, path)
        return found | {"global_every": _global_every(data, path)}

    def more_written(self, config: EncoderConfig) -> dict[str, Any]:
        """The same where transformers 5 looks for it and where those before it do."""
        every = config.global_every or 1
        thetas = {GLOBAL: config.rope_theta, LOCAL: config.local_rope_theta}
        return {
            "layer_types": [LOCAL if at % every else GLOBAL for at in range(config.depth)],
            "global_attn_every_n_layers": every,
            "rope_parameters": {k: {"rope_type": "default", "rope_theta": v} for k, v in thetas.items()},
            "global_rope_theta": config.rope_theta,
            "local_rope_theta": config.local_rope_theta,
            **dict.fromkeys(DROPOUTS, config.dropout),
            **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        }


def _global_every(data: dict[str, Any], path: Path) -> int:
    """Every how many blocks the whole text is looked at: the pattern must be that simple."""
    kinds = data.get("layer_types")
    if kinds is None:
        return whole_number({"global_attn_every_n_layers": 3, **data}, "global_attn_every_n_layers", path)
    if not isinstance(kinds, list) or not kinds or len(kinds) > 512:
        raise ConfigError(f"{path}: layer_types: expected a list with the kind of each block")
    every = next((at for at, kind in enumerate(kinds[1:], 1) if kind == GLOBAL), len(kinds))
    if every == len(kinds) and isinstance(told := data.get("global_attn_every_n_layers"), int):
        every = max(every, told)
    if kinds != [LOCAL if at % every else GLOBAL for at in range(len(kinds))]:
        raise ConfigError(f"{path}: layer_types: only the first of every so many blocks may be global")
    return every


MODERNBERT = ModernBertForm(
    model_type="modernbert",
    architectures=("ModernBertForSequenceClassification", "ModernBertModel", "ModernBertForMaskedLM"),
    prefix="model.",
    sizes={
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "hidden_size": "width",
        "intermediate_size": "feed_forward",
        "max_position_embeddings": "context",
    },
    options={
        "norm_eps": "norm_epsilon",
        "mlp_dropout": "dropout",
        "local_attention": "window",
        "classifier_pooling": "pooling",
        "pad_token_id": "padding",
    },
    fixed={
        "norm_bias": (False,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "classifier_bias": (False,),
        "classifier_activation": ("gelu",),
    },
    names={
        "embed.tokens": "embeddings.tok_embeddings",
        "embed.norm": "embeddings.norm",
        "norm": "final_norm",
        **{f"layers.{{}}.{ours}": f"layers.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    },
    heads={"head.dense": "head.dense", "head.norm": "head.norm", "head.output": "classifier"},
    whole=("head", "classifier"),
    activation="hidden_activation",
    pools=True,
)
