"""The form of ViT: model_type vit, ViTForImageClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Classes, Images, Values
from llmtool.core.errors import ConfigError
from llmtool.models.forms.own import Own
from llmtool.models.forms.vision import VisionForm, one_side
from llmtool.models.vit import MAX_PATCHES, ViT, ViTConfig

SIZES = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
OPTIONS = {"layer_norm_eps": "norm_epsilon", "hidden_dropout_prob": "dropout"}
FIXED: dict[str, tuple[Any, ...]] = {"hidden_act": ("gelu",), "qkv_bias": (True,)}
TOKENS = {  # beside the patches, with the positions of all
    "embed.class_token": "embeddings.cls_token",
    "embed.distillation_token": "embeddings.distillation_token",
    "embed.register_tokens": "embeddings.register_tokens",
    "embed.positions": "embeddings.position_embeddings",
    "embed.projection": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
ATTENTION = {
    "layers.{}.attention.query": "encoder.layer.{}.attention.attention.query",
    "layers.{}.attention.key": "encoder.layer.{}.attention.attention.key",
    "layers.{}.attention.value": "encoder.layer.{}.attention.attention.value",
    "layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
}
FEED_FORWARD = {
    "layers.{}.attention_norm": "encoder.layer.{}.layernorm_before",
    "layers.{}.feed_forward_norm": "encoder.layer.{}.layernorm_after",
    "layers.{}.feed_forward.widen": "encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.narrow": "encoder.layer.{}.output.dense",
}


def in_memory(block: str) -> dict[str, str]:
    """What transformers has called the linear layers of a block since its files got their names."""
    parts = {f"attention.{ours}": f"attention.{ours[0]}_proj" for ours in ("query", "key", "value", "output")}
    parts |= {"feed_forward.widen": "mlp.fc1", "feed_forward.narrow": "mlp.fc2"}
    return {f"layers.{{}}.{ours}": f"{block}.{theirs}" for ours, theirs in parts.items()}


class ViTForm(VisionForm):
    """A vision transformer; DeiT and DINOv2 are this with something more.

    Dropout is said twice; our one value goes into both.
    """

    family = ViTConfig

    def owns(self, model: nn.Module) -> bool:
        """A vision transformer of the architecture that is named like the model_type."""
        return (
            isinstance(model, ViT) and model.config.architecture == self.model_type and not is_our_own(model)
        )

    def make(self, config: Any, inputs: Images, outputs: Classes | Values | None, named: str) -> nn.Module:
        """With one head, or none."""
        return ViT(config, inputs, outputs)

    def inputs(self, data: dict[str, Any], path: Path) -> Images:
        """Pictures of image_size, 224 where that is left out: so many patches have positions."""
        inputs, patch = super().inputs({"image_size": 224, **data}, path), self.patch(data, path)
        patches = (inputs.height // patch) * (inputs.width // patch)
        if not 0 < patches <= MAX_PATCHES:
            raise ConfigError(
                f"{path}: patch_size {patch} makes {patches:,} patches of {inputs.height} x {inputs.width} "
                f"pixels; 1 to {MAX_PATCHES:,} are supported"
            )
        return inputs

    def patch(self, data: dict[str, Any], path: Path) -> int:
        """Height and width of a patch."""
        return one_side(data, "patch_size", 16, path)

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The patch, and which of the three it is."""
        return {"architecture": self.model_type, "patch": self.patch(data, path)}

    def more_written(self, config: Any) -> dict[str, Any]:
        """The patch, and dropout of attention."""
        return {"patch_size": config.patch, "attention_probs_dropout_prob": config.dropout}


def is_our_own(model: ViT) -> bool:
    """Whether no class of theirs can express it: their ViT has no registers."""
    return model.config.architecture == "vit" and model.config.registers > 0


class OwnViTForm(Own, ViTForm):
    """A vision transformer that their class cannot express."""

    family_name = "vit"

    def owns(self, model: nn.Module) -> bool:
        """A plain one with registers."""
        return isinstance(model, ViT) and is_our_own(model)

    def patch(self, data: dict[str, Any], path: Path) -> int:
        """Height and width of a patch."""
        return one_side(self.more(data, path), "patch", 16, path)


VIT = ViTForm(
    model_type="vit",
    heads=("ViTForImageClassification",),
    bodies=("ViTModel",),
    prefix="vit.",
    sizes=SIZES | {"intermediate_size": "feed_forward"},
    options=OPTIONS,
    fixed=FIXED,
    names=TOKENS | ATTENTION | FEED_FORWARD,
    modules=in_memory("layers.{}"),
)
OWN_VIT = OwnViTForm(
    model_type="llmtool_vit",
    heads=("ViT",),
    bodies=("ViTBody",),
    prefix="",
    sizes={},
    options={},
    fixed={},
    names={},
)
