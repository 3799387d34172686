"""Rotary positions: the tables of angles, and the ways to stretch them over longer texts."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from llmtool.core.config import Section
from llmtool.core.errors import ConfigError
from llmtool.models.cache import Cache, Sight
from llmtool.models.layers import Rotary

Factor = Annotated[float, Field(ge=1, le=1e6, description="how many times longer texts become")]
OriginalContext = Annotated[
    int | None,
    Field(gt=1, le=2**31, description="tokens of a text before it was stretched; default: the context"),
]
AttentionFactor = Annotated[
    float | None, Field(gt=0, le=1e6, description="both tables times this; default: from the factor")
]


class LinearScaling(Section):
    """Every position divided by the factor."""

    # https://arxiv.org/abs/2306.15595

    kind: Literal["linear"] = Field(default="linear", description="every position divided by the factor")
    factor: Factor

    def apply(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """Angles per position (E/2), and the number that cosines and sines are multiplied by."""
        return frequency / self.factor, 1.0


class DynamicScaling(Section):
    """A larger base beyond the context only; within it, which no row here leaves, nothing changes."""

    kind: Literal["dynamic"] = Field(
        default="dynamic", description="stretched beyond the context only: within it, as without"
    )
    factor: Factor

    def apply(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """Angles per position (E/2), and the number that cosines and sines are multiplied by."""
        return frequency, 1.0


class Llama3Scaling(Section):
    """Slow angles divided by the factor, fast ones kept, those between mixed; Llama 3.1's way."""

    # https://arxiv.org/abs/2407.21783; in formulas: https://github.com/meta-llama/llama-models

    kind: Literal["llama3"] = Field(
        default="llama3", description="slow angles divided by the factor, fast ones kept"
    )
    factor: Factor
    low_frequency_factor: float = Field(
        default=1.0, gt=0, le=1e6, description="turns in the original context up to which an angle is slow"
    )
    high_frequency_factor: float = Field(
        default=4.0, gt=0, le=1e6, description="turns in the original context from which an angle is fast"
    )
    original_context: OriginalContext = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError("high_frequency_factor must be above low_frequency_factor")
        return self

    def apply(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """Angles per position (E/2), and the number that cosines and sines are multiplied by."""
        low, high = self.low_frequency_factor, self.high_frequency_factor
        turns = (self.original_context or context) * frequency / (2 * math.pi)
        share = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, 1: fast
        return (1 - share) * frequency / self.factor + share * frequency, 1.0


class YarnScaling(Section):
    """Slow angles divided by the factor and fast ones kept, by their place in the head; sharper attention."""

    # https://arxiv.org/abs/2309.00071

    kind: Literal["yarn"] = Field(
        default="yarn", description="slow angles divided by the factor, fast ones kept; sharper attention"
    )
    factor: Factor
    original_context: OriginalContext = None
    beta_fast: float = Field(
        default=32.0, gt=0, le=1e6, description="turns in the original context of fast ones"
    )
    beta_slow: float = Field(
        default=1.0, gt=0, le=1e6, description="turns in the original context of slow ones"
    )
    truncate: bool = Field(default=True, description="the places of both rounded to whole numbers")
    attention_factor: AttentionFactor = None
    mscale: float | None = Field(
        default=None, gt=0, le=1e6, description="with mscale_all_dim, the way to attention_factor"
    )
    mscale_all_dim: float | None = Field(
        default=None, gt=0, le=1e6, description="with mscale, the way to attention_factor"
    )

    def apply(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """Angles per position (E/2), and the number that cosines and sines are multiplied by."""
        pairs = len(frequency)
        first, last = (
            self._place(turns, 2 * pairs, theta, context) for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        last += 0.001 if first == last else 0
        place = torch.arange(pairs, dtype=torch.float32, device=frequency.device)
        slow = ((place - first) / (last - first)).clamp(0, 1)
        return frequency / self.factor * slow + frequency * (1 - slow), self._sharpness()

    def _place(self, turns: float, width: int, theta: float, context: int) -> float:
        """Where in the head the angle is that turns so many times in the original context."""
        length = self.original_context or context
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def _sharpness(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        grown = 0.1 * math.log(self.factor)
        if self.mscale is not None and self.mscale_all_dim is not None:
            return (self.mscale * grown + 1) / (self.mscale_all_dim * grown + 1)
        return grown + 1


class LongScaling(Section):
    """Every angle divided by a factor of its own, others in texts beyond the original context."""

    # https://arxiv.org/abs/2402.13753

    kind: Literal["longrope"] = Field(default="longrope", description="every angle divided by its own factor")
    short_factor: list[float] = Field(
        min_length=1,
        max_length=32_768,
        description="for texts up to the original context: half a head's width",
    )
    long_factor: list[float] = Field(
        min_length=1, max_length=32_768, description="for longer texts: half a head's width"
    )
    original_context: OriginalContext = None
    factor: float | None = Field(
        default=None, gt=0, le=1e6, description="how many times longer texts become; default: by the contexts"
    )
    attention_factor: AttentionFactor = None

    def apply(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """Angles per position (E/2) of short texts, and what cosines and sines are multiplied by."""
        return self._divided(frequency, self.short_factor), self._sharpness(context)

    def apply_long(self, frequency: Tensor, theta: float, context: int) -> tuple[Tensor, float]:
        """The same of long texts."""
        return self._divided(frequency, self.long_factor), self._sharpness(context)

    @staticmethod
    def _divided(frequency: Tensor, factors: list[float]) -> Tensor:
        return frequency / torch.tensor(factors, dtype=torch.float32, device=frequency.device)

    def _sharpness(self, context: int) -> float:
        original = self.original_context or context
        factor = self.factor or context / original
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


Scaling = Annotated[
    LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling, Field(discriminator="kind")
]


class ScaledRotary(Rotary):
    """Turns queries and keys by an angle that grows with their position."""

    def __init__(self, width: int, context: int, theta: float, scaling: Scaling | None) -> None:
        super().__init__(width, context, theta, None if scaling is None else scaling.apply)
        self.far: Rotary | None = None
        if isinstance(scaling, LongScaling):
            self.original = scaling.original_context or context
            self.far = Rotary(width, context, theta, scaling.apply_long)

    def at(self, sight: Sight, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (T, E/2), or (B, 1, T, E/2) where rows stand at different positions."""
        if sight.row is not None:
            assert sight.places is not None
            cosine, sine = self.at(sight.row, None)
            return cosine[..., sight.places, :], sine[..., sight.places, :]
        near = self(sight.tokens, sight.positions, sight.start)
        if self.far is None:
            return near
        if torch.compiler.is_exporting():  # a graph for texts of any length must not choose
            far = self.far(sight.tokens, sight.positions, sight.start)
            beyond = torch.arange(sight.tokens, device=sight.device)[-1:] >= self.original  # (1,)
            return torch.where(beyond, far[0], near[0]), torch.where(beyond, far[1], near[1])
        if sight.start + sight.tokens <= self.original:
            return near
        far = self.far(sight.tokens, sight.positions, sight.start)
        if cache is not None and self._crosses(sight):
            raise ConfigError(
                f"this model turns keys another way beyond {self.original} tokens: what was kept of those "
                "before cannot be gone on with; give them again, with a new cache"
            )
        if sight.positions is None:
            return far
        long = (_lengths(sight.positions) > self.original)[:, None, :, None]
        return torch.where(long, far[0], near[0]), torch.where(long, far[1], near[1])

    def _crosses(self, sight: Sight) -> bool:
        """Whether a row, some of which was seen before, becomes longer than the original context here."""
        if sight.start == 0 or sight.positions is None:
            return 0 < sight.start <= self.original
        first, last = sight.positions[:, 0], sight.positions[:, -1]
        return bool(((first <= self.original) & (last >= self.original)).any())


def _lengths(positions: Tensor) -> Tensor:
    """(B, T) positions that start again with each document -> (B, T) the length of the token's document."""
    ends = torch.ones_like(positions, dtype=torch.bool)
    ends[:, :-1] = positions[:, 1:] == 0
    index = torch.arange(positions.shape[1], device=positions.device)
    end = torch.where(ends, index, positions.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return positions.gather(1, end) + 1
