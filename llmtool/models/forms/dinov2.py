"""The form of DINOv2: model_type dinov2, or dinov2_with_registers; Dinov2ForImageClassification and so on.

The giant's feed-forward parts are SwiGLU; its two first matrices are one in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.models.forms.form import Stored, whole_number
from llmtool.models.forms.vit import ATTENTION, FIXED, OPTIONS, SIZES, TOKENS, ViTForm, in_memory
from llmtool.models.vit import ViT

BLOCK = {
    "layers.{}.attention_norm": "encoder.layer.{}.norm1",
    "layers.{}.attention_scale.scale": "encoder.layer.{}.layer_scale1.lambda1",
    "layers.{}.feed_forward_norm": "encoder.layer.{}.norm2",
    "layers.{}.feed_forward_scale.scale": "encoder.layer.{}.layer_scale2.lambda1",
    "layers.{}.feed_forward.widen": "encoder.layer.{}.mlp.fc1",
    "layers.{}.feed_forward.narrow": "encoder.layer.{}.mlp.fc2",
}
GATED = {
    "layers.{}.feed_forward.gate": "encoder.layer.{}.mlp.weights_in",
    "layers.{}.feed_forward.widen": "encoder.layer.{}.mlp.weights_in",
    "layers.{}.feed_forward.narrow": "encoder.layer.{}.mlp.weights_out",
}


class Dinov2Form(ViTForm):
    """ViT with layer scale, whose head reads the mean of the patches too."""

    def owns(self, model: nn.Module) -> bool:
        """A DINOv2 without registers."""
        return super().owns(model) and not model.config.registers  # type: ignore[union-attr]

    def filler(self, model: nn.Module) -> dict[str, Tensor]:
        """The token in the place of hidden patches, which only learning to guess them reads."""
        assert isinstance(model, ViT)
        return {f"{self.prefix}embeddings.mask_token": torch.zeros(1, model.config.width)}

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The feed-forward part's width is said as a multiple of the vector's."""
        ratio = whole_number({"mlp_ratio": data.get("mlp_ratio", 4)}, "mlp_ratio", path)
        form = super().more(data, path) | {"architecture": "dinov2"}
        return form | {"feed_forward": ratio * whole_number(data, "hidden_size", path)}

    def more_written(self, config: Any) -> dict[str, Any]:
        """The same back."""
        return super().more_written(config) | {"mlp_ratio": config.feed_forward // config.width}

    def place(self, name: str, model: nn.Module) -> Stored:
        """Of SwiGLU, the gate's rows come first in the matrix that both share."""
        assert isinstance(model, ViT)
        parts = name.split(".")
        if not model.config.gated or parts[2:3] != ["feed_forward"]:
            return super().place(name, model)
        inner, part = model.config.inner, parts[3]
        rows = {"gate": (0, inner), "widen": (inner, 2 * inner)}.get(part)
        where = GATED[f"layers.{{}}.feed_forward.{part}"].format(parts[1])
        return Stored(f"{self.prefix}{where}.{parts[4]}", rows)

    def module_name(self, model: nn.Module, name: str) -> str:
        """In memory the gate is a layer of its own."""
        assert isinstance(model, ViT)
        parts = name.split(".")
        if model.config.gated and parts[2:3] == ["feed_forward"]:
            theirs = {"gate": "gate_proj", "widen": "up_proj", "narrow": "down_proj"}[parts[3]]
            return f"{self.prefix}encoder.layer.{parts[1]}.mlp.{theirs}"
        return super().module_name(model, name)


class RegistersForm(Dinov2Form):
    """DINOv2 with register tokens."""

    def owns(self, model: nn.Module) -> bool:
        """A DINOv2 with registers."""
        return isinstance(model, ViT) and model.config.architecture == "dinov2" and model.config.registers > 0

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """At least one; theirs has four where it does not say."""
        return super().more({"num_register_tokens": 4, **data}, path) | {
            "registers": whole_number({"num_register_tokens": 4, **data}, "num_register_tokens", path)
        }


DINOV2 = Dinov2Form(
    model_type="dinov2",
    heads=("Dinov2ForImageClassification",),
    bodies=("Dinov2Model",),
    prefix="dinov2.",
    sizes=SIZES,
    options=OPTIONS
    | {"layerscale_value": "layer_scale", "drop_path_rate": "drop_path", "use_swiglu_ffn": "gated"},
    fixed=FIXED,
    names=TOKENS | ATTENTION | BLOCK,
    modules=in_memory("encoder.layer.{}"),
)
DINOV2_WITH_REGISTERS = RegistersForm(
    model_type="dinov2_with_registers",
    heads=("Dinov2WithRegistersForImageClassification",),
    bodies=("Dinov2WithRegistersModel",),
    prefix="dinov2_with_registers.",
    sizes=SIZES,
    options=DINOV2.options | {"num_register_tokens": "registers"},
    fixed=FIXED,
    names=DINOV2.names,
    modules=DINOV2.modules,
)
