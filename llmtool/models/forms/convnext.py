"""The form of ConvNeXt: model_type convnext, ConvNextForImageClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Classes, Images, Values
from llmtool.core.errors import ConfigError
from llmtool.models.convnext import ConvNeXt, ConvNeXtConfig
from llmtool.models.forms.vision import VisionForm, one_side, whole_numbers


class ConvNeXtForm(VisionForm):
    """Stages of blocks; the stem's patch is theirs too."""

    family = ConvNeXtConfig

    def owns(self, model: nn.Module) -> bool:
        """A ConvNeXt."""
        return isinstance(model, ConvNeXt)

    def make(self, config: Any, inputs: Images, outputs: Classes | Values | None, named: str) -> nn.Module:
        """With a head, or none."""
        return ConvNeXt(config, inputs, outputs)

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The patch and the stages."""
        widths, depths = (whole_numbers(data, key, path) for key in ("hidden_sizes", "depths"))
        if data.get("num_stages", len(widths)) != len(widths):
            raise ConfigError(
                f"{path}: num_stages: {str(data['num_stages'])[:100]} for {len(widths)} hidden_sizes"
            )
        return {"patch": one_side(data, "patch_size", 4, path), "widths": widths, "depths": depths}

    def more_written(self, config: Any) -> dict[str, Any]:
        """The patch and the stages."""
        stages = {"hidden_sizes": config.widths, "depths": config.depths, "num_stages": len(config.widths)}
        return stages | {"patch_size": config.patch}


CONVNEXT = ConvNeXtForm(
    model_type="convnext",
    heads=("ConvNextForImageClassification",),
    bodies=("ConvNextModel",),
    prefix="convnext.",
    sizes={},
    options={
        "drop_path_rate": "drop_path",
        "layer_scale_init_value": "layer_scale",
        "layer_norm_eps": "norm_epsilon",
    },
    fixed={"hidden_act": ("gelu",)},
    names={
        "stem.convolution": "embeddings.patch_embeddings",
        "stem.norm": "embeddings.layernorm",
        "stages.{}.shrink.norm": "encoder.stages.{}.downsampling_layer.0",
        "stages.{}.shrink.convolution": "encoder.stages.{}.downsampling_layer.1",
        "stages.{}.blocks.{}.convolution": "encoder.stages.{}.layers.{}.dwconv",
        "stages.{}.blocks.{}.norm": "encoder.stages.{}.layers.{}.layernorm",
        "stages.{}.blocks.{}.widen": "encoder.stages.{}.layers.{}.pwconv1",
        "stages.{}.blocks.{}.narrow": "encoder.stages.{}.layers.{}.pwconv2",
        "stages.{}.blocks.{}.scale.scale": "encoder.stages.{}.layers.{}.layer_scale_parameter",
        "norm": "layernorm",
        "head": "classifier",
    },
)
