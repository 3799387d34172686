"""The residual convolutional network, ResNet, for photographs and (with a small stem) for little pictures.

Which names Hugging Face's checkpoints have for these modules stands in models/forms/.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import DERIVED, Section
from llmtool.core.contracts import Classes, Images, InputSpec, OutputSpec, Values
from llmtool.models.headed import Headed, of_pictures
from llmtool.models.layers import Linear

REDUCTION = 4  # a bottleneck works on so many times fewer channels
FEW = 8  # channels, that a register of AVX2 holds

Width = Annotated[int, Field(gt=0, le=65_536)]
Depth = Annotated[int, Field(gt=0, le=512)]


class ConvNetConfig(Section):
    """A residual convolutional network: stages of blocks, each stage on half as many pixels a side."""

    family: Literal["convnet"] = Field(
        default="convnet", description="a residual convolutional network (ResNet) for pictures"
    )
    stem: Literal["large", "small"] = Field(
        default="large",
        description="large: 7 x 7 pixels at a stride of 2 and pooling, for photographs; small: 3 x 3 pixels, "
        "for pictures of some 32 pixels a side",
    )
    stem_width: Width = Field(default=DERIVED, description="channels after the stem; default: 64, small: 16")
    widths: list[Width] = Field(
        default=DERIVED,
        min_length=1,
        max_length=16,
        description="channels of each stage; default: [64, 128, 256, 512], with a small stem [16, 32, 64]",
    )
    depths: list[Depth] = Field(
        default=DERIVED,
        min_length=1,
        max_length=16,
        description="blocks of each stage; default: 2 each (ResNet-18), with a small stem 3 (ResNet-20)",
    )
    block: Literal["basic", "bottleneck"] = Field(
        default="basic",
        description="basic: two convolutions of 3 x 3; bottleneck: one of 3 x 3 between two of 1 x 1 that "
        "lead to a quarter of the channels and back",
    )
    shortcut: Literal["projection", "pooling", "padding"] = Field(
        default="projection",
        description="where a block changes the size, past it goes a convolution of 1 x 1 (projection), the "
        "same on the mean of four pixels instead of one of them (pooling, ResNet-D), or every second pixel "
        "with empty channels around (padding: no weights)",
    )
    zero_init: bool = Field(
        default=False,
        description="blocks begin as their shortcuts alone: the scale of each one's last norm starts at 0",
    )

    accepts: ClassVar[tuple[type, ...]] = (Images,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "pictures: from the start with some thousand and more (a small stem for little ones), or a "
        "pretrained one fine-tuned on some dozens of a class"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        small = self.stem == "small"
        widths = self.widths or ([16, 32, 64] if small else [64, 128, 256, 512])
        derived = {
            "stem_width": 16 if small else 64,
            "widths": widths,
            "depths": [3 if small else 2] * len(widths),
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for everybody but the one who makes it
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths: one each is needed")
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            raise ValueError(f"a bottleneck's widths are multiples of {REDUCTION} (got {self.widths})")
        if self.shortcut == "padding":
            pairs = zip([self.stem_width, *self.widths], self.widths, strict=False)
            if any(after < before or (after - before) % 2 for before, after in pairs):
                raise ValueError(
                    "shortcut: padding needs widths that grow by even numbers from stem_width on"
                )
        return self

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> ConvNet:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        inputs, outputs = of_pictures("convnet", inputs, outputs)
        return ConvNet(self, inputs, outputs)


class ConvNet(Headed):
    """A residual network with a head on the mean of all pixels.

    Without a head it gives the features that one would read.
    """

    config: ConvNetConfig
    inputs: Images

    def __init__(self, config: ConvNetConfig, inputs: Images, outputs: Classes | Values | None) -> None:
        super().__init__(config, inputs, outputs)
        self.features = config.widths[-1]
        small = config.stem == "small"
        self.stem = ConvNorm(inputs.channels, config.stem_width, *((3, 1) if small else (7, 2)))
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        before = config.stem_width
        for number, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            first = Block(config, before, width, stride=2 if number else 1)
            self.stages.append(nn.Sequential(first, *(Block(config, width, width) for _ in range(depth - 1))))
            before = width
        self.head: nn.Module = nn.Identity() if outputs is None else Linear(self.features, outputs.n)
        _initialise(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return [block for stage in self.stages for block in stage.children()]

    @property
    def embeddings(self) -> list[nn.Module]:
        """The stem."""
        return [self.stem]

    def flops(self, tokens: int = 1) -> int:
        """FLOPs of one picture of the size of `inputs`, forward and backward; pixels need no gradient."""
        size = self.inputs.height, self.inputs.width
        first, size = self.stem.flops(size)
        if not isinstance(self.pool, nn.Identity):
            size = halved(size)
        total = 2 * first
        for block in self.blocks:
            assert isinstance(block, Block)
            more, size = block.flops(size)
            total += 3 * more
        return total + 3 * 2 * sum(p.numel() for p in self.head.parameters() if p.ndim == 2)

    def hidden(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, D, h', w'): the channels that the last stage leaves."""
        # the channels of a pixel beside each other: 1.3 times as fast on a CPU, in bf16 3.6 times, measured
        x = self.pool(F.relu(self.stem(inputs.contiguous(memory_format=torch.channels_last))))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, c, h, w) of any size -> (B, C). Pictures have no segments; every model takes the argument."""
        return self.head(self.hidden(inputs).mean(dim=(2, 3)))


class ConvNorm(nn.Module):
    """A convolution whose outputs are normalised over the batch."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c', h', w')."""
        layer = self.convolution
        if layer.kernel_size == (1, 1) and layer.in_channels < FEW and x.device.type == "cpu":
            # with a stride oneDNN writes beyond its memory in the backward pass (torch 2.13, AVX2)
            height, width = layer.stride
            return self.norm(F.conv2d(x[:, :, ::height, ::width], layer.weight))
        return self.norm(layer(x))

    def flops(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Forward FLOPs for pictures of this height and width, and the height and width that come out."""
        if self.convolution.stride[0] == 2:
            size = halved(size)
        return 2 * self.convolution.weight.numel() * size[0] * size[1], size


class BatchNorm(nn.Module):
    """Shifts and scales each channel to mean 0 and variance 1 over the batch, then by learned amounts."""

    # https://arxiv.org/abs/1502.03167; nn.BatchNorm2d, but that a frozen one is left alone

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> the same. A frozen one keeps the statistics that it came with, in training too."""
        several = x.numel() > x.shape[1]  # of one value a channel there is no variance
        learns = self.training and self.weight.requires_grad and several
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, learns)


class Block(nn.Module):
    """Convolutions whose result is added to what went in (or to a shortcut of its size)."""

    # https://arxiv.org/abs/1512.03385

    def __init__(self, config: ConvNetConfig, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        if config.block == "basic":
            parts = [ConvNorm(before, after, 3, stride), ConvNorm(after, after, 3)]
        else:  # the stride is in the middle: https://arxiv.org/abs/1706.02677, section 5.1 ("ResNet v1.5")
            inner = after // REDUCTION
            parts = [ConvNorm(before, inner, 1), ConvNorm(inner, inner, 3, stride), ConvNorm(inner, after, 1)]
        self.parts = nn.ModuleList(parts)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            padded = config.shortcut == "padding"
            self.shortcut = Padded(after - before, stride) if padded else ConvNorm(before, after, 1, stride)
            if stride != 1 and config.shortcut == "pooling":  # https://arxiv.org/abs/1812.01187, figure 2
                mean = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
                self.shortcut = nn.Sequential(mean, ConvNorm(before, after, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c', h', w')."""
        y = x
        for number, part in enumerate(self.parts):
            y = part(F.relu(y) if number else y)
        return F.relu(y + self.shortcut(x))

    def flops(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Forward FLOPs for pictures of this height and width, and the height and width that come out."""
        total, past = 0, self.shortcut
        for part in self.parts:
            assert isinstance(part, ConvNorm)
            more, size = part.flops(size)
            total += more
        if isinstance(past, nn.Sequential):
            past = past[1]
        if isinstance(past, ConvNorm):  # of as many pixels as come out
            total += 2 * past.convolution.weight.numel() * size[0] * size[1]
        return total, size


class Padded(nn.Module):
    """Every so many pixels of what went in, with empty channels before and after its own."""

    # option A of https://arxiv.org/abs/1512.03385, section 4.2

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c', h', w')."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.channels // 2, self.channels // 2))


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after a stride of 2 with padding on both sides."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _initialise(model: ConvNet) -> None:
    """He et al. 2015, https://arxiv.org/abs/1502.01852: keeps the variance of gradients through rectified
    layers. The head is torch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Block) and model.config.zero_init:  # https://arxiv.org/abs/1706.02677, 5.1
            last = module.parts[-1]
            assert isinstance(last, ConvNorm)
            nn.init.zeros_(last.norm.weight)
