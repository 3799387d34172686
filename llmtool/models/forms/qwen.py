"""The forms of Qwen2 (2.5 too) and Qwen3: model_types qwen2 and qwen3, Qwen2ForCausalLM, Qwen3ForCausalLM.

Llama with biases on queries, keys and values (Qwen2), or with normalised queries and keys (Qwen3). Names are
Hugging Face's own. A window holds for the blocks from max_window_layers on, unless layer_types says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError
from llmtool.models.forms.rotary import BIAS, OPTIONS, SILU, SIZES, RotaryForm
from llmtool.models.transformer import TransformerConfig


class QwenForm(RotaryForm):
    """Windows are switched on by a key of their own."""

    def windows(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Window and layer types."""
        used = data.get("use_sliding_window", False)
        window = data.get("sliding_window", 4096) if used else None
        types, first = data.get("layer_types"), data.get("max_window_layers", 28)
        if types is None:
            if isinstance(first, bool) or not isinstance(first, int):
                raise ConfigError(
                    f"{path}: max_window_layers: expected a whole number (got {str(first)[:100]})"
                )
            full = data["num_hidden_layers"] if window is None else min(max(first, 0), 512)
            depth = min(data["num_hidden_layers"], 512)
            types = ["sliding_attention" if index >= full else "full_attention" for index in range(depth)]
        return {"window": window, "layer_types": types}

    def windows_written(self, config: TransformerConfig) -> dict[str, Any]:
        """The same for those who read layer_types and for those who do not."""
        types = config.layer_types
        full = types.index("sliding_attention") if "sliding_attention" in types else config.depth
        return {
            "use_sliding_window": config.window is not None,
            "sliding_window": config.window,
            "max_window_layers": full,
            "layer_types": types,
        }


QWEN2 = QwenForm(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    sizes=SIZES,
    options=OPTIONS,
    fixed=SILU,
)
QWEN3 = QwenForm(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    sizes=SIZES,
    options=OPTIONS | BIAS,
    fixed=SILU,
    defaults={"head_dim": 128},
)
