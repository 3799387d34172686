"""The forms of ResNet: model_type resnet (ResNetForImageClassification), and our own for small pictures.

Theirs has no sizes of pictures, as any will do; what we write has, for whoever wants to know. A small stem
and shortcuts that pool or have no weights are in none of their classes: such a model is written as
llmtool_convnet, under our own names and keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.contracts import Classes, Images, Values
from llmtool.models.convnet import ConvNet, ConvNetConfig
from llmtool.models.forms.own import Own
from llmtool.models.forms.vision import VisionForm, whole_numbers


class ResNetForm(VisionForm):
    """A residual network with a large stem and projections."""

    family = ConvNetConfig

    def owns(self, model: nn.Module) -> bool:
        """A residual network that their class can express."""
        return isinstance(model, ConvNet) and not is_our_own(model.config)

    def make(self, config: Any, inputs: Images, outputs: Classes | Values | None, named: str) -> nn.Module:
        """With a head, or none."""
        return ConvNet(config, inputs, outputs)

    def filler(self, model: nn.Module) -> dict[str, Tensor]:
        """How many batches a norm has seen, which only an average over all of them would read."""
        places = [place.name for place in self.stored(model).values() if place.name.endswith(".running_mean")]
        return {place.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for place in places}

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """The stages; theirs are bottlenecks where it does not say."""
        block = data.get("layer_type") or "bottleneck"
        widths, depths = (whole_numbers(data, key, path) for key in ("hidden_sizes", "depths"))
        return {"widths": widths, "depths": depths, "block": block}

    def more_written(self, config: Any) -> dict[str, Any]:
        """The stages."""
        return {"hidden_sizes": config.widths, "depths": config.depths}


class OwnForm(Own, ResNetForm):
    """A residual network that their class cannot express."""

    family_name = "convnet"

    def owns(self, model: nn.Module) -> bool:
        """A residual network with a small stem, or other shortcuts."""
        return isinstance(model, ConvNet) and is_our_own(model.config)


def is_our_own(config: ConvNetConfig) -> bool:
    """Whether no class of theirs can express it."""
    return config.stem == "small" or config.shortcut != "projection"


RESNET = ResNetForm(
    model_type="resnet",
    heads=("ResNetForImageClassification",),
    bodies=("ResNetModel",),
    prefix="resnet.",
    sizes={"embedding_size": "stem_width"},
    options={"layer_type": "block"},
    fixed={
        "hidden_act": ("relu",),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
    },
    names={
        "stem.convolution": "embedder.embedder.convolution",
        "stem.norm": "embedder.embedder.normalization",
        "stages.{}.{}.parts.{}.convolution": "encoder.stages.{}.layers.{}.layer.{}.convolution",
        "stages.{}.{}.parts.{}.norm": "encoder.stages.{}.layers.{}.layer.{}.normalization",
        "stages.{}.{}.shortcut.convolution": "encoder.stages.{}.layers.{}.shortcut.convolution",
        "stages.{}.{}.shortcut.norm": "encoder.stages.{}.layers.{}.shortcut.normalization",
        "head": "classifier.1",
    },
)
OWN_CONVNET = OwnForm(
    model_type="llmtool_convnet",
    heads=("ConvNet",),
    bodies=("ConvNetBody",),
    prefix="",
    sizes={},
    options={},
    fixed={},
    names={},
)
