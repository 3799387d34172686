"""The vision transformer in the forms of ViT, DeiT and DINOv2: a picture, cut into patches, to classes.

Which names Hugging Face's checkpoints have for these modules stands in models/forms/.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import DERIVED, Section
from llmtool.core.contracts import Classes, Images, InputSpec, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.models.attention import attention
from llmtool.models.headed import Headed, of_pictures
from llmtool.models.layers import DropPath, LayerScale, Linear
from llmtool.models.plan import Plan

MAX_PATCHES = 65_536  # of a picture: attention is quadratic in them


class ViTConfig(Section):
    """A vision transformer: a picture is cut into patches, and every patch sees all others."""

    family: Literal["vit"] = Field(default="vit", description="a vision transformer for pictures")
    architecture: Literal["vit", "deit", "dinov2"] = Field(
        default="vit",
        description="vit: the class token is read; deit: a token for distillation stands beside it; dinov2: "
        "with layer scale, and the mean of the patches is read beside the class token",
    )
    patch: int = Field(default=16, gt=0, le=1024, description="height and width of a patch, in pixels")
    depth: int = Field(default=6, gt=0, le=512, description="number of blocks")
    heads: int = Field(
        default=3, gt=0, le=1024, description="attention heads in a block; they divide the width"
    )
    width: int = Field(default=192, gt=0, le=65_536, description="size of a patch's vector")
    feed_forward: int = Field(
        default=DERIVED,
        gt=0,
        le=1_048_576,
        description="width inside a block's feed-forward part; default: 4 x width, and for dinov2 a multiple "
        "of the width",
    )
    gated: bool = Field(
        default=False,
        description="dinov2: the feed-forward part is SwiGLU, two thirds as wide for as many weights",
    )
    registers: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="vit, dinov2: tokens beside the patches that blocks may write to",
    )
    patch_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of each picture's patches that training does not see"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of values set to zero in training")
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dinov2: share of rows that each block's parts leave out in training",
    )
    layer_scale: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="dinov2: what a block's parts are scaled by at the start, learned from there; default: 1",
    )
    norm_epsilon: float = Field(
        default=DERIVED,
        gt=0,
        lt=1,
        description="added to the variance in norms; default: 1e-12, for dinov2 1e-6",
    )

    accepts: ClassVar[tuple[type, ...]] = (Images,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "pictures: a pretrained one is fine-tuned on some hundred pictures of a class; trained from the "
        "start it wants a million and more, and a convnet is better on fewer"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        dino = self.architecture == "dinov2"
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        derived = {
            "feed_forward": 4 * self.width,
            "norm_epsilon": 1e-6 if dino else 1e-12,
            "layer_scale": 1.0 if dino else None,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for everybody but the one who makes it
        if dino and self.feed_forward % self.width:
            raise ValueError(f"feed_forward {self.feed_forward} is not a multiple of width {self.width}")
        for name in ("gated", "registers", "drop_path", "layer_scale"):
            known = dino or (name == "registers" and self.architecture == "vit")
            if getattr(self, name) and not known:
                raise ValueError(f"{name} is for architecture: dinov2; {self.architecture} has none")
        return self

    @property
    def inner(self) -> int:
        """The width inside the feed-forward part as it is: of SwiGLU two thirds, up to a multiple of 8."""
        return (self.feed_forward * 2 // 3 + 7) // 8 * 8 if self.gated else self.feed_forward

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> ViT:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        inputs, outputs = of_pictures("vit", inputs, outputs)
        for side in (inputs.height, inputs.width):
            if side % self.patch:
                raise ConfigError(
                    f"model.patch: pictures of {inputs.height} x {inputs.width} pixels do not divide into "
                    f"patches of {self.patch}"
                )
        patches = (inputs.height // self.patch) * (inputs.width // self.patch)
        if patches > MAX_PATCHES:
            raise ConfigError(
                f"model.patch {self.patch} makes {patches:,} patches of pictures of {inputs.height} x "
                f"{inputs.width} pixels; at most {MAX_PATCHES:,} are supported"
            )
        return ViT(self, inputs, outputs)


class ViT(Headed):
    """A vision transformer with a head on what stands for the picture.

    Without a head it gives the features that one would read.
    teacher: the head is two, on the class and on the distillation token (DeiT).
    """

    config: ViTConfig
    inputs: Images

    def __init__(
        self, config: ViTConfig, inputs: Images, outputs: Classes | Values | None, teacher: bool = False
    ) -> None:
        super().__init__(config, inputs, outputs)
        self.features = 2 * config.width if config.architecture == "dinov2" else config.width
        self.embed = Patches(config, inputs)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head: nn.Module = nn.Identity()
        if outputs is not None:
            self.head = TwoHeads(config.width, outputs.n) if teacher else Linear(self.features, outputs.n)
        _initialise(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.layers)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The patches' projection with the positions and the tokens beside them."""
        return [self.embed]

    @property
    def plan(self) -> Plan:
        """How its layers are split among ranks."""
        return {
            "layers.*.attention": "entry",
            "layers.*.attention.query": "columns",
            "layers.*.attention.key": "columns",
            "layers.*.attention.value": "columns",
            "layers.*.attention.output": "rows",
            "layers.*.feed_forward": "entry",
            "layers.*.feed_forward.gate": "columns",
            "layers.*.feed_forward.widen": "columns",
            "layers.*.feed_forward.narrow": "rows",
        }

    def flops(self, tokens: int = 1) -> int:
        """FLOPs of one picture of the size of `inputs`, forward and backward; pixels need no gradient."""
        c = self.config
        patches = self.embed.grid[0] * self.embed.grid[1]
        length = patches + self.embed.beside
        matrices = 4 * c.width**2 + (3 if c.gated else 2) * c.width * c.inner
        attention = 4 * length * length * c.width  # scores and their weighted sum
        head = 2 * sum(p.numel() for p in self.head.parameters() if p.ndim == 2)
        first = 2 * patches * c.width * self.inputs.channels * c.patch**2
        return 3 * (c.depth * (2 * length * matrices + attention) + head) + 2 * first

    def hidden(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, P, D): the class token, those beside it (embed.beside in all), the patches."""
        x = self.embed(inputs)
        for block in self.layers:
            x = block(x)
        return self.norm(x)

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, c, h, w) -> (B, C). Pictures have no segments; every model takes the argument.

        Pictures of another size than `inputs` are taken too: positions are interpolated.
        """
        x = self.hidden(inputs)
        if isinstance(self.head, TwoHeads):
            return self.head(x[:, :2])
        if self.config.architecture == "dinov2":
            return self.head(torch.cat((x[:, 0], x[:, self.embed.beside :].mean(dim=1)), dim=1))
        return self.head(x[:, 0])


class Patches(nn.Module):
    """Turns each patch into a vector, adds its position, and puts the tokens that are no patches in front."""

    def __init__(self, config: ViTConfig, inputs: Images) -> None:
        super().__init__()
        self.patch = config.patch
        self.grid = inputs.height // config.patch, inputs.width // config.patch
        placed = 2 if config.architecture == "deit" else 1  # tokens with a position that are no patches
        self.placed, self.beside = placed, placed + config.registers
        self.smooth = config.registers > 0  # DINOv2 with registers was trained with this
        count = self.grid[0] * self.grid[1]
        assert 0 < count <= MAX_PATCHES, "checked by build and by the form"
        self.projection = nn.Conv2d(inputs.channels, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.width)) if placed == 2 else None
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.registers, config.width)) if config.registers else None
        )
        self.positions = nn.Parameter(torch.empty(1, placed + count, config.width))
        self.dropout, self.unseen = nn.Dropout(config.dropout), config.patch_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, P, D). Pixels at the edges that make no whole patch are not seen, and in
        training a random share of the patches of each picture."""
        rows = inputs.shape[0]
        positions = self.positions_for((inputs.shape[2] // self.patch, inputs.shape[3] // self.patch))
        patches = self.projection(inputs).flatten(2).transpose(1, 2)  # (B, D, h/p, w/p) -> (B, h/p * w/p, D)
        tokens = [self.class_token]
        if self.distillation_token is not None:
            tokens.append(self.distillation_token)
        x = torch.cat([*(token.expand(rows, -1, -1) for token in tokens), patches], dim=1) + positions
        if self.training and self.unseen:
            x = torch.cat((x[:, : self.placed], some_of(x[:, self.placed :], self.unseen)), dim=1)
        if self.register_tokens is not None:  # they have no positions
            registers = self.register_tokens.expand(rows, -1, -1)
            x = torch.cat((x[:, : self.placed], registers, x[:, self.placed :]), dim=1)
        return self.dropout(x)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """(1, P, D): positions of so many patches downwards and across, interpolated where there are others.

        https://arxiv.org/abs/2010.11929, section 3.2
        """
        if grid == self.grid:
            return self.positions
        beside, patches = self.positions[:, : self.placed], self.positions[:, self.placed :]
        plane = patches.unflatten(1, self.grid).permute(0, 3, 1, 2)  # (1, h/p, w/p, D) -> (1, D, h/p, w/p)
        plane = F.interpolate(plane, size=grid, mode="bicubic", align_corners=False, antialias=self.smooth)
        return torch.cat((beside, plane.flatten(2).transpose(1, 2)), dim=1)


def some_of(patches: Tensor, share: float) -> Tensor:
    """(B, P, D) -> the same without this share of each row's patches, at least one left, in another order."""
    # https://arxiv.org/abs/2208.07220
    rows, count, width = patches.shape
    kept = max(1, round(count * (1 - share)))
    chosen = torch.rand(rows, count, device=patches.device).argsort(dim=1)[:, :kept]
    return patches.gather(1, chosen[:, :, None].expand(-1, -1, width))


class Attention(nn.Module):
    """Each patch gathers from the whole picture what its query finds in their keys."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.head_width, self.dropout = config.width // config.heads, config.dropout
        self.query = Linear(config.width, config.width)
        self.key = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.output = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        query, key, value = (
            part(x).unflatten(2, (-1, self.head_width)).transpose(1, 2)  # (B, P, D) -> (B, H, P, E)
            for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        x = attention(query, key, value, dropout=dropout)
        return self.output(x.transpose(1, 2).flatten(2))  # (B, H, P, E) -> (B, P, D)


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between, on each patch alone."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.widen = Linear(config.width, config.inner)
        self.narrow = Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        return self.narrow(F.gelu(self.widen(x)))


class GatedFeedForward(nn.Module):
    """SwiGLU: a linear layer gated by another, then a third back to the width, on each patch alone."""

    # https://arxiv.org/abs/2002.05202

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gate = Linear(config.width, config.inner)
        self.widen = Linear(config.width, config.inner)
        self.narrow = Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        return self.narrow(F.silu(self.gate(x)) * self.widen(x))


class Block(nn.Module):
    """Attention, then feed-forward, each of the normalised vector, scaled (DINOv2) and added to it."""

    # https://arxiv.org/abs/2010.11929

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        scale = config.layer_scale
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.attention_scale = LayerScale(config.width, scale) if scale else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = GatedFeedForward(config) if config.gated else FeedForward(config)
        self.feed_forward_scale = LayerScale(config.width, scale) if scale else nn.Identity()
        # DINOv2 leaves out rows, the others single values
        self.dropout = DropPath(config.drop_path) if scale else nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        x = x + self.dropout(self.attention_scale(self.attention(self.attention_norm(x))))
        return x + self.dropout(self.feed_forward_scale(self.feed_forward(self.feed_forward_norm(x))))


class TwoHeads(nn.Module):
    """A head on the class token and one on the distillation token; the answer is their mean."""

    # https://arxiv.org/abs/2012.12877

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.from_class = Linear(width, outputs)
        self.from_distillation = Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, D) -> (B, C)."""
        return (self.from_class(x[:, 0]) + self.from_distillation(x[:, 1])) / 2


def _initialise(model: ViT) -> None:
    """Weights from a normal distribution cut off at two deviations, biases zero, as the original has them."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    embed = model.embed
    for token in (embed.class_token, embed.distillation_token, embed.register_tokens, embed.positions):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)
