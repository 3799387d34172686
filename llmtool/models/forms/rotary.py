"""What the forms of Llama and its relatives share: sizes, windows, rotary positions and their scaling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError
from llmtool.models.forms.decoder import DecoderForm
from llmtool.models.forms.form import number
from llmtool.models.relatives import RELATIVES
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
BIAS = {"attention_bias": "attention_bias"}
SILU: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}

# rope_type -> Hugging Face's key -> ours
SCALINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_context",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    },
    "longrope": {
        "short_factor": "short_factor",
        "long_factor": "long_factor",
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "attention_factor": "attention_factor",
    },
}
# what may stand beside them: said elsewhere, or without a meaning for this kind
BESIDE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


def rope_of(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Their settings of rotary positions, by the old name or the new one."""
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{path}: rope_parameters: expected a mapping")
    return rope


@dataclass
class RotaryForm(DecoderForm):
    """Llama or a relative, whose positions are rotary."""

    unused = re.compile(r"rotary_emb\.inv_freq$")  # old files contain what is computed nowadays
    scalings: tuple[str, ...] = tuple(SCALINGS)

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Windows and rotary positions."""
        values = self.windows(data, path)
        relative = RELATIVES[self.model_type]
        types = data.get("layer_types")
        if "layer_types" not in relative.keys and types is not None:
            kind = "full_attention" if values.get("window") is None else "sliding_attention"
            if not isinstance(types, list) or any(each != kind for each in types):
                raise ConfigError(f"{path}: layer_types: only {kind} is supported for {self.model_type}")
        return values | self.rotary(data, path)

    def more_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Windows, and rotary positions where transformers 5 looks for them and where those before it do."""
        written = self.windows_written(config) | self.rotary_written(config)
        return {"attention_dropout": 0.0, **written}

    def windows(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours for sliding windows."""
        relative = RELATIVES[self.model_type]
        return {"window": data.get("sliding_window")} if "window" in relative.keys else {}

    def windows_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Keys of theirs for sliding windows."""
        relative = RELATIVES[self.model_type]
        return {"sliding_window": config.window} if "window" in relative.keys else {}

    def rotary(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours for rotary positions."""
        rope = rope_of(data, path)
        theta = number({**data, **rope}, "rope_theta", path, default=RELATIVES[self.model_type].theta)
        return {"rope_theta": theta, "rope_scaling": self.scaling(rope, data, path)}

    def scaling(self, rope: dict[str, Any], data: dict[str, Any], path: Path) -> dict[str, Any] | None:
        """Our rope_scaling for theirs."""
        kind = rope.get("rope_type", rope.get("type", "default"))
        known = ["default", *self.scalings]
        if kind not in known:
            raise ConfigError(
                f"{path}: rope_parameters: rope_type {str(kind)[:100]!r} is not known for {self.model_type}"
                f"{suggest(kind, known)} (known: {', '.join(known)})"
            )
        keys = SCALINGS.get(kind, {})
        for key, value in rope.items():
            if key not in BESIDE | set(keys) and value is not None:
                raise ConfigError(f"{path}: rope_parameters: {key[:100]} is not supported for {kind}")
        if kind == "default":
            return None
        share = rope.get("partial_rotary_factor", 1.0)
        if "rotary_share" not in RELATIVES[self.model_type].keys and share != 1:
            raise ConfigError(f"{path}: partial_rotary_factor: only 1 is supported for {self.model_type}")
        ours = {name: rope[key] for key, name in keys.items() if rope.get(key) is not None}
        if kind == "yarn" and "factor" not in ours and isinstance(ours.get("original_context"), int):
            ours["factor"] = data["max_position_embeddings"] / max(ours["original_context"], 1)
        return {"kind": kind, **ours}

    def rotary_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Keys of theirs for rotary positions."""
        rope = self.scaling_written(config) | {"rope_theta": config.rope_theta}
        written = {"rope_parameters": rope, "rope_theta": config.rope_theta}
        return written if config.rope_scaling is None else written | {"rope_scaling": rope}

    def scaling_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Their rope_type and what belongs to it."""
        scaling = config.rope_scaling
        if scaling is None:
            return {"rope_type": "default"}
        pairs = {key: getattr(scaling, name) for key, name in SCALINGS[scaling.kind].items()}
        if "original_max_position_embeddings" in pairs:
            pairs["original_max_position_embeddings"] = (
                pairs["original_max_position_embeddings"] or config.context
            )
        return {"rope_type": scaling.kind} | {key: value for key, value in pairs.items() if value is not None}
