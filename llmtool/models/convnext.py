"""The convolutional network in the transformer's manner, ConvNeXt: pictures to classes.

Which names Hugging Face's checkpoints have for these modules stands in models/forms/.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.contracts import Classes, Images, InputSpec, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.models.convnet import Depth, Width
from llmtool.models.headed import Headed, of_pictures
from llmtool.models.layers import DropPath, LayerScale, Linear

EPSILON = 1e-6  # of all norms but the last
KERNEL, WIDER = 7, 4


class ConvNeXtConfig(Section):
    """ConvNeXt: wide convolutions on each channel alone, then linear layers on each pixel alone."""

    family: Literal["convnext"] = Field(
        default="convnext", description="a convolutional network in the transformer's manner for pictures"
    )
    patch: int = Field(
        default=4,
        gt=0,
        le=64,
        description="pixels a side that the stem makes one of: 4, or 1 for little pictures",
    )
    widths: list[Width] = Field(
        default=[96, 192, 384, 768], min_length=1, max_length=16, description="channels of each stage"
    )
    depths: list[Depth] = Field(
        default=[3, 3, 9, 3], min_length=1, max_length=16, description="blocks of each stage"
    )
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of rows that the last block leaves out in training; at the first it is none",
    )
    layer_scale: float = Field(
        default=1e-6,
        ge=0,
        le=10,
        description="what blocks are scaled by at first, learned from there; 0: not",
    )
    norm_epsilon: float = Field(
        default=1e-12, gt=0, lt=1, description="added to the variance in the last norm (in the others: 1e-6)"
    )

    accepts: ClassVar[tuple[type, ...]] = (Images,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "pictures: a pretrained one is fine-tuned on some dozens of a class; trained from the start it wants "
        "a million, and on fewer a convnet learns faster"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths: one each is needed")
        return self

    @property
    def smallest(self) -> int:
        """The fewest pixels a side that leave one at the end."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> ConvNeXt:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        inputs, outputs = of_pictures("convnext", inputs, outputs)
        if min(inputs.height, inputs.width) < self.smallest:
            raise ConfigError(
                f"model.patch {self.patch} and {len(self.widths)} stages leave nothing of pictures of "
                f"{inputs.height} x {inputs.width} pixels (at least {self.smallest} a side)"
            )
        return ConvNeXt(self, inputs, outputs)


class ConvNeXt(Headed):
    """ConvNeXt with a head on the normalised mean of all pixels.

    Without a head it gives the features that one would read.
    """

    config: ConvNeXtConfig
    inputs: Images

    def __init__(self, config: ConvNeXtConfig, inputs: Images, outputs: Classes | Values | None) -> None:
        super().__init__(config, inputs, outputs)
        self.features = config.widths[-1]
        self.stem = Shrink(inputs.channels, config.widths[0], config.patch, norm_first=False)
        self.stages = nn.ModuleList(Stage(config, number) for number in range(len(config.widths)))
        self.norm = nn.LayerNorm(self.features, eps=config.norm_epsilon)
        self.head: nn.Module = nn.Identity() if outputs is None else Linear(self.features, outputs.n)
        _initialise(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return [block for stage in self.stages for block in stage.get_submodule("blocks").children()]

    @property
    def embeddings(self) -> list[nn.Module]:
        """The stem."""
        return [self.stem]

    def flops(self, tokens: int = 1) -> int:
        """FLOPs of one picture of the size of `inputs`, forward and backward; pixels need no gradient."""
        c = self.config
        height, width = self.inputs.height // c.patch, self.inputs.width // c.patch
        total, before = 0, 0
        for number, (channels, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            if number:
                height, width = height // 2, width // 2
                total += 3 * 2 * height * width * 4 * before * channels
            else:
                total += 2 * 2 * height * width * c.patch**2 * self.inputs.channels * channels
            pixel = KERNEL**2 * channels + 2 * WIDER * channels**2
            total += 3 * 2 * depth * height * width * pixel
            before = channels
        return total + 3 * 2 * sum(p.numel() for p in self.head.parameters() if p.ndim == 2)

    def hidden(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, D, h', w'): the channels that the last stage leaves."""
        x = self.stem(inputs)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, c, h, w) of any size from config.smallest on -> (B, C).

        Pictures have no segments; every model takes the argument.
        """
        return self.head(self.norm(self.hidden(inputs).mean(dim=(2, 3))))


class Shrink(nn.Module):
    """Makes one pixel of each square of so many, and normalises its channels, before that or after."""

    def __init__(self, before: int, after: int, side: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(before if norm_first else after, eps=EPSILON)
        self.convolution = nn.Conv2d(before, after, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c', h', w')."""
        if self.norm_first:
            return self.convolution(_over_channels(self.norm, x))
        return _over_channels(self.norm, self.convolution(x))


class Stage(nn.Module):
    """Blocks of one width, on half as many pixels a side as the stage before."""

    def __init__(self, config: ConvNeXtConfig, number: int) -> None:
        super().__init__()
        width, before = config.widths[number], config.widths[max(number - 1, 0)]
        self.shrink = Shrink(before, width, 2, norm_first=True) if number else nn.Identity()
        last = max(sum(config.depths) - 1, 1)
        first = sum(config.depths[:number])
        self.blocks = nn.Sequential(
            *(
                Block(config, width, config.drop_path * at / last)
                for at in range(first, first + config.depths[number])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c', h', w')."""
        return self.blocks(self.shrink(x))


class Block(nn.Module):
    """A wide convolution on each channel, two linear layers on each pixel, added to what went in."""

    # https://arxiv.org/abs/2201.03545

    def __init__(self, config: ConvNeXtConfig, width: int, drop_path: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.widen = Linear(width, WIDER * width)
        self.narrow = Linear(WIDER * width, width)
        self.scale = LayerScale(width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> the same."""
        y = self.convolution(x).permute(0, 2, 3, 1)  # (B, c, h, w) -> (B, h, w, c)
        y = self.scale(self.narrow(F.gelu(self.widen(self.norm(y)))))
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # (B, h, w, c) -> (B, c, h, w)


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """(B, c, h, w), each pixel's channels normalised."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, h, w, c) and back


def _initialise(model: ConvNeXt) -> None:
    """Weights from a normal distribution cut off at two deviations, biases zero, as the original has them."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
