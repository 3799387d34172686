"""The forms of Gemma 2 and of Gemma 3's text models: model_types gemma2 and gemma3_text, ...ForCausalLM.

Names are Hugging Face's own. Blocks with a window alternate with others (Gemma 2) or are five of six (Gemma
3), unless layer_types says which. Gemma 3 has a base of rotary angles for each of the two, and its scaling
holds for blocks that see everything. Refused: models with images (model_type gemma3), attention both ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.forms.form import number
from llmtool.models.forms.rotary import BIAS, OPTIONS, SIZES, RotaryForm
from llmtool.models.transformer import TransformerConfig

CAPS = {
    "attn_logit_softcapping": "attention_soft_cap",
    "final_logit_softcapping": "logit_soft_cap",
    "query_pre_attn_scalar": "query_scale",
}
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (None, False),
}
DEFAULTS = {"num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}


class GemmaForm(RotaryForm):
    """Windows in some blocks."""

    every: int = 2

    def windows(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Window and layer types."""
        every = data.get("sliding_window_pattern", data.get("_sliding_window_pattern", self.every))
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(
                f"{path}: sliding_window_pattern: expected a whole number (got {str(every)[:100]})"
            )
        types = data.get("layer_types")
        if types is None:
            depth = min(data["num_hidden_layers"], 512)
            types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(depth)]
        used = not isinstance(types, list) or "sliding_attention" in types
        return {"window": data.get("sliding_window") if used else None, "layer_types": types}

    def windows_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Window and layer types; a model without a window says so by the types alone."""
        return {"sliding_window": config.window or config.context, "layer_types": config.layer_types}


class Gemma3Form(GemmaForm):
    """Two bases of rotary angles."""

    every = 6

    def rotary(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Theirs are a mapping for each type of block, or keys of their own in older files."""
        both = data.get("rope_parameters") or {}
        scaling = data.get("rope_scaling") or {}
        parts = (
            [both, scaling, *(both.get(kind) or {} for kind in TYPES)] if isinstance(both, dict) else [both]
        )
        if not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"{path}: rope_parameters: expected a mapping of mappings")
        full, near = (both.get(kind) or {} for kind in TYPES)
        full = {**full, **scaling}
        if near.get("rope_type", "default") != "default":
            raise ConfigError(f"{path}: rope_parameters: sliding_attention: only the default is supported")
        theta = number({**data, **full}, "rope_theta", path, default=1_000_000.0)
        older = number(data, "rope_local_base_freq", path, default=10_000.0)
        near_theta = number(near, "rope_theta", path, default=older)
        return {
            "rope_theta": theta,
            "rope_theta_window": near_theta,
            "rope_scaling": self.scaling(full, data, path),
        }

    def rotary_written(self, config: TransformerConfig) -> dict[str, Any]:
        """The same where transformers 5 looks for it and where those before it do."""
        full = self.scaling_written(config)
        written = {
            "rope_parameters": {
                "full_attention": full | {"rope_theta": config.rope_theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_window},
            },
            "rope_theta": config.rope_theta,
            "rope_local_base_freq": config.rope_theta_window,
        }
        return written if config.rope_scaling is None else written | {"rope_scaling": full}


TYPES = ("full_attention", "sliding_attention")
GEMMA2 = GemmaForm(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    sizes=SIZES,
    options=OPTIONS | BIAS | CAPS,
    fixed=FIXED,
    defaults=DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ties=True,
)
GEMMA3 = Gemma3Form(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    sizes=SIZES,
    options=OPTIONS | BIAS | CAPS,
    fixed=FIXED,
    defaults=DEFAULTS,
    ties=True,
)
