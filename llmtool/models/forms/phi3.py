"""The form of Phi-3, 3.5 and 4: model_type phi3, Phi3ForCausalLM. Llama with fused matrices.

Names are Hugging Face's own, and so are the matrices: qkv_proj holds queries, keys and values one below the
other, gate_up_proj both first matrices of the feed-forward part; an adapter's names fit others' that way.
Positions may turn a part of each head (partial_rotary_factor), and are stretched by longrope, called su and
yarn in older files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.models.forms.form import number
from llmtool.models.forms.rotary import OPTIONS, SILU, SIZES, RotaryForm, rope_of
from llmtool.models.transformer import TransformerConfig


class Phi3Form(RotaryForm):
    """The original context and the turned share stand beside the scaling."""

    copied_code = frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"})

    def rotary(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours for rotary positions."""
        values = super().rotary(data, path)
        share = number({**data, **rope_of(data, path)}, "partial_rotary_factor", path, default=1.0)
        return values | {"rotary_share": share}

    def scaling(self, rope: dict[str, Any], data: dict[str, Any], path: Path) -> dict[str, Any] | None:
        """Our rope_scaling for theirs."""
        kind = rope.get("rope_type", rope.get("type", "default"))
        original = data.get("original_max_position_embeddings", 4096)
        more = {"original_max_position_embeddings": original} if kind != "default" else {}
        return super().scaling(
            {**rope, "rope_type": "longrope" if kind in ("su", "yarn") else kind, **more}, data, path
        )

    def rotary_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Keys of theirs for rotary positions."""
        written = super().rotary_written(config)
        written["rope_parameters"]["partial_rotary_factor"] = config.rotary_share
        original = written["rope_parameters"].get("original_max_position_embeddings", config.context)
        return written | {
            "partial_rotary_factor": config.rotary_share,
            "original_max_position_embeddings": original,
        }


PHI3 = Phi3Form(
    model_type="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    sizes=SIZES,
    options={key: ours for key, ours in OPTIONS.items() if ours != "dropout"} | {"resid_pdrop": "dropout"},
    fixed=SILU | {"attention_bias": (False,)},
    scalings=("longrope",),
)
