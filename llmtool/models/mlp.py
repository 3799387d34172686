"""The multilayer perceptron for rows of numbers: its configuration and its module."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.contracts import Classes, Features, InputSpec, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.models.headed import Headed
from llmtool.models.layers import Linear
from llmtool.models.plan import Plan

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class MLPConfig(Section):
    """A multilayer perceptron: linear layers with an activation between them."""

    family: Literal["mlp"] = Field(default="mlp", description="a multilayer perceptron for rows of numbers")
    hidden: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
        default=[256, 256], max_length=256, description="width of each hidden layer; [] is a linear model"
    )
    activation: Literal["relu", "gelu", "silu"] = Field(
        default="relu", description="the non-linearity after each hidden layer"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of hidden values set to zero in training"
    )
    normalization: Literal["none", "layer"] = Field(
        default="none", description="layer: LayerNorm before each activation"
    )

    accepts: ClassVar[tuple[type, ...]] = (Features,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "tables of numbers and categories; a small one trains in seconds on a CPU; with few thousand rows "
        "compare it with gradient-boosted trees, which are often as good on such data"
    )

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> MLP:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Features):
            raise ConfigError(f"model.family mlp takes features, not {type(inputs).__name__.lower()}")
        if not isinstance(outputs, Classes | Values):
            raise ConfigError(
                "model.family mlp gives classes or values; language needs model.family: transformer"
            )
        return MLP(self, inputs, outputs)


class Layer(nn.Module):
    """A hidden layer: linear, norm, activation, dropout."""

    def __init__(self, inputs: int, outputs: int, config: MLPConfig) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs) if config.normalization == "layer" else None
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x)
        x = self.activation(x)
        return x if self.dropout is None else self.dropout(x)


class MLP(Headed):
    """A multilayer perceptron: each row on its own, from its numbers to its outputs."""

    config: MLPConfig
    inputs: Features

    def __init__(self, config: MLPConfig, inputs: Features, outputs: Classes | Values) -> None:
        super().__init__(config, inputs, outputs)
        widths = [inputs.width, *config.hidden]
        self.body = nn.Sequential(*(Layer(a, b, config) for a, b in zip(widths, config.hidden, strict=False)))
        self.head = Linear(widths[-1], outputs.n)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.blocks:
            # He et al. 2015, https://arxiv.org/abs/1502.01852: keeps the variance through rectified layers
            nn.init.kaiming_normal_(layer.linear.weight, nonlinearity="relu")
            nn.init.zeros_(layer.linear.bias)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self) -> list[Layer]:
        """The hidden layers, from the input on."""
        return [layer for layer in self.body if isinstance(layer, Layer)]

    @property
    def embeddings(self) -> list[nn.Module]:
        """None: a row is numbers already."""
        return []

    @property
    def plan(self) -> Plan:
        """How its layers are split among ranks: norms and activations see whole rows."""
        return {"body.*.linear": "gathered"}

    def flops(self, tokens: int = 1) -> int:
        """FLOPs of one row, forward and backward; the first layer's inputs need no gradient."""
        widths = [self.inputs.width, *self.config.hidden, self.head.out_features]
        weights = [a * b for a, b in itertools.pairwise(widths)]
        return 6 * sum(weights) - 2 * weights[0]

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, F) float -> (B, C). Rows have no segments; every model takes the argument."""
        return self.head(self.body(inputs))
