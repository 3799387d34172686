"""The form of SmolLM3: model_type smollm3, SmolLM3ForCausalLM. Llama, some of whose blocks know no positions.

Names are Hugging Face's own. no_rope_layers has a 0 for each block without positions; default: every fourth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.forms.rotary import BIAS, OPTIONS, SILU, SIZES, RotaryForm
from llmtool.models.transformer import TransformerConfig


class SmolLM3Form(RotaryForm):
    """Blocks without positions, and windows only in those."""

    def windows(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Window, layer types and blocks without positions."""
        depth = min(data["num_hidden_layers"], 512)
        every = data.get("no_rope_layer_interval", 4)
        turned = data.get("no_rope_layers")
        if turned is None:
            if isinstance(every, bool) or not isinstance(every, int) or every < 1:
                raise ConfigError(
                    f"{path}: no_rope_layer_interval: expected a whole number (got {str(every)[:99]})"
                )
            turned = [int((index + 1) % every != 0) for index in range(depth)]
        if not isinstance(turned, list) or len(turned) < depth or not all(one in (0, 1) for one in turned):
            raise ConfigError(f"{path}: no_rope_layers: expected a list of {depth} zeros and ones")
        window = data.get("sliding_window") if data.get("use_sliding_window") else None
        types = data.get("layer_types")
        if types is None:
            windowed = [window is not None and not one for one in turned[:depth]]
            types = ["sliding_attention" if near else "full_attention" for near in windowed]
        unrotated = [index for index, one in enumerate(turned[:depth]) if not one]
        return {"window": window, "layer_types": types, "unrotated": unrotated}

    def windows_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Their keys for the same."""
        return {
            "use_sliding_window": config.window is not None,
            "sliding_window": config.window,
            "layer_types": config.layer_types,
            "no_rope_layers": [int(index not in config.unrotated) for index in range(config.depth)],
        }


SMOLLM3 = SmolLM3Form(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM", "SmolLM3Model"),
    sizes=SIZES,
    options=OPTIONS | BIAS | {"mlp_bias": "mlp_bias"},
    fixed=SILU,
    defaults={"num_key_value_heads": 4},
    ties=True,
)
