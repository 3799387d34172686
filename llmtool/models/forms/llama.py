"""The form of Llama: model_type llama, LlamaForCausalLM. Names are Hugging Face's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.forms.decoder import DecoderForm
from llmtool.models.forms.form import number
from llmtool.models.transformer import TransformerConfig

SIZES = {
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_size": "width",
    "max_position_embeddings": "context",
    "intermediate_size": "feed_forward",
}
OPTIONS = {
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_width",
    "rms_norm_eps": "norm_epsilon",
    "residual_dropout": "dropout",  # ours: transformers keeps it and does not know it
}
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
}


class RotaryForm(DecoderForm):
    """Llama and its relatives, whose positions are rotary."""

    unused = re.compile(r"rotary_emb\.inv_freq$")  # old files contain what is computed nowadays

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The base of the rotary angles."""
        if any(kind != "full_attention" for kind in data.get("layer_types") or []):
            raise ConfigError(f"{path}: layer_types: only full_attention is supported")
        rope = data.get("rope_parameters") or {}
        if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
            raise ConfigError(f"{path}: rope_parameters: only the default rotary positions are supported")
        return {"rope_theta": number({**data, **rope}, "rope_theta", path, default=10_000.0)}

    def more_written(self, config: TransformerConfig) -> dict[str, Any]:
        """The same where transformers 5 looks for it and where those before it do."""
        theta = config.rope_theta
        return {
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "rope_theta": theta,
            "attention_dropout": 0.0,
        }


LLAMA = RotaryForm(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    sizes=SIZES,
    options=OPTIONS,
    fixed=FIXED | {"mlp_bias": (False,)},
)
