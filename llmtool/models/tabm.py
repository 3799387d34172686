"""The efficient ensemble for tables: columns embedded, members that share nearly all their weights."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.contracts import Classes, Features, InputSpec, Labels, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.core.products import linear
from llmtool.models.headed import Headed
from llmtool.models.layers import Linear
from llmtool.models.mlp import ACTIVATIONS

LARGEST = 2**26  # numbers in the matrix from all features to all embedded columns: 256 MiB


class TabMConfig(Section):
    """An ensemble of multilayer perceptrons that share their weights, over embedded columns."""

    family: Literal["tabm"] = Field(
        default="tabm", description="an efficient ensemble of multilayer perceptrons for tables"
    )
    members: int = Field(
        default=8, gt=0, le=1024, description="multilayer perceptrons that share their weights"
    )
    embedding: Annotated[int, Field(ge=0, le=4096)] | Literal["auto"] = Field(
        default="auto",
        description="numbers that each column becomes; 0: the features as they are; auto: 32 with up to 16 "
        "columns, 8 with more than 32, 0 with thousands",
    )
    hidden: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
        default=[256, 256], min_length=1, max_length=256, description="width of each hidden layer"
    )
    activation: Literal["relu", "gelu", "silu"] = Field(
        default="relu", description="the non-linearity after each hidden layer"
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of hidden values set to zero in training"
    )

    accepts: ClassVar[tuple[type, ...]] = (Features,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "tables of numbers and categories, from a thousand rows to a million, where the last bit of accuracy "
        "counts; best with encode.scale: piecewise; a step costs about `members` times an mlp's"
    )

    # What `train` is where the file does not say, found by comparison on the tables of configs/tabular.
    recipe: ClassVar[dict[str, Any]] = {
        "budget": {"epochs": 20},
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "stop": {"patience": 5},
    }

    def embedding_width(self, features: int, columns: int) -> int:
        """Numbers that each of so many columns becomes; ConfigError where these are too many."""
        auto = 32 if columns <= 16 else 16 if columns <= 32 else 8
        width = auto if self.embedding == "auto" else self.embedding
        if features * columns * width <= LARGEST:
            return width
        if self.embedding == "auto":
            return 0
        raise ConfigError(
            f"model.embedding: {columns:,} columns of {features:,} features x {width:,} are too many; "
            "0 leaves the features as they are"
        )

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> TabM:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Features):
            raise ConfigError(f"model.family tabm takes features, not {type(inputs).__name__.lower()}")
        if not isinstance(outputs, Classes | Values):
            raise ConfigError(
                "model.family tabm gives classes or values; language needs model.family: transformer"
            )
        return TabM(self, inputs, outputs)


class ColumnEmbedding(nn.Module):
    """A linear map of each column's features to `width` numbers: of a category that is a table of vectors,
    of a piecewise encoded number the embedding of https://arxiv.org/abs/2203.05556, section 3.4."""

    def __init__(self, columns: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.columns, self.width = columns, width  # features of each column
        self.weight = nn.Parameter(torch.empty(sum(columns), width))
        self.bias = nn.Parameter(torch.empty(len(columns) * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, columns * width)."""
        # one product with the zeros between the columns costs less than a product for each column
        whole = torch.block_diag(*self.weight.split(self.columns))  # (F, columns * width)
        return linear(x, whole.to(x.dtype), self.bias, turned=True)


class Members(nn.Module):
    """A linear layer whose weight all members share; each scales its inputs and outputs by its own factors.

    BatchEnsemble, https://arxiv.org/abs/2002.06715. The members' factors and biases lie in vectors, which no
    optimizer decays.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.members = members
        self.linear = Linear(inputs, outputs, bias=False)
        self.scale_in = nn.Parameter(torch.ones(members * inputs))
        self.scale_out = nn.Parameter(torch.ones(members * outputs))
        self.bias = nn.Parameter(torch.zeros(members * outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, in), or (B, 1, in) for all members alike -> (B, K, out)."""
        scaled = self.linear(x * self.scale_in.view(self.members, -1))
        return torch.addcmul(self.bias.view(self.members, -1), scaled, self.scale_out.view(self.members, -1))


class Heads(nn.Module):
    """A linear layer of its own for each member; the weight is (out, K, in)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, members, inputs))
        self.bias = nn.Parameter(torch.zeros(members * outputs))
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, in) -> (B, K, out)."""
        found = torch.bmm(x.transpose(0, 1), self.weight.permute(1, 2, 0))  # (K, B, out)
        return found.transpose(0, 1) + self.bias.view(x.shape[1], -1)


class Layer(nn.Module):
    """A hidden layer of all members: linear, activation, dropout."""

    def __init__(self, inputs: int, outputs: int, config: TabMConfig) -> None:
        super().__init__()
        self.all = Members(config.members, inputs, outputs)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, K or 1, in) -> (B, K, out)."""
        x = self.activation(self.all(x))
        return x if self.dropout is None else self.dropout(x)


class TabM(Headed):
    """TabM, https://arxiv.org/abs/2410.24210: `members` predictions a row, each learned for itself.

    `members` gives them; `forward` their mean: of classes the logarithm of the mean probability.
    """

    def __init__(self, config: TabMConfig, inputs: Features, outputs: Classes | Values) -> None:
        super().__init__(config, inputs, outputs)
        self.columns = inputs.columns or (1,) * inputs.width
        width = config.embedding_width(inputs.width, len(self.columns))
        self.embedding = ColumnEmbedding(self.columns, width) if width else None
        self.first = len(self.columns) * width or inputs.width  # what each member takes in
        widths = [self.first, *config.hidden]
        self.body = nn.Sequential(*(Layer(a, b, config) for a, b in itertools.pairwise(widths)))
        self.head = Heads(config.members, widths[-1], outputs.n)
        self._initialise()

    def _initialise(self) -> None:
        if self.embedding is not None:
            for weight in self.embedding.weight.split(self.columns):
                bound = 1 / math.sqrt(len(weight))
                nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(self.embedding.bias, -0.5, 0.5)
        for layer in self.blocks:
            nn.init.kaiming_normal_(layer.all.linear.weight, nonlinearity="relu")
        # the members differ from the start by the signs of their inputs, and by nothing else (section 3.3)
        with torch.no_grad():
            self.blocks[0].all.scale_in.bernoulli_().mul_(2).sub_(1)

    @property
    def blocks(self) -> list[Layer]:
        """The hidden layers, from the input on."""
        return [layer for layer in self.body if isinstance(layer, Layer)]

    def flops(self, tokens: int = 1) -> int:
        """FLOPs of one row, forward and backward; the features themselves need no gradient."""
        widths = [self.first, *self.config.hidden, self.head.weight.shape[0]]
        shared = sum(a * b for a, b in itertools.pairwise(widths))
        embedding = self.inputs.width * self.first if self.embedding is not None else 0
        return 6 * self.config.members * shared + 4 * embedding

    @property
    def embeddings(self) -> list[nn.Module]:
        """Of the columns."""
        return [] if self.embedding is None else [self.embedding]

    def members(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, F) float -> (B, K, C), what each member says."""
        x = inputs if self.embedding is None else self.embedding(inputs)
        return self.head(self.body(x.unsqueeze(1)))

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, F) float -> (B, C). Rows have no segments; every model takes the argument."""
        found = self.members(inputs)
        if isinstance(self.outputs, Values):
            return found.mean(dim=1)
        if isinstance(self.outputs, Labels):
            return torch.special.logit(found.float().sigmoid().mean(dim=1), eps=1e-6)
        return F.log_softmax(found.float(), dim=-1).logsumexp(dim=1) - math.log(found.shape[1])
