"""Model families. To add one: a file beside these and its name in the union below.

Every member is a Section with the tag `family`, what it `accepts` and `gives` (spec types), when it `suits`,
and `build(inputs, outputs)`. Every model built has `config`, `inputs`, `outputs`, `blocks` (from the input
on), `embeddings`, `head_name` (the module that `replace_head` and `method: {kind: head}` mean) and
`forward(inputs, segments=None)`. One that is several models at once has `members(inputs, segments=None)` too:
what each of them says, (B, K, C). Its loss is the mean of theirs; `forward` gives their common answer.
"""

from typing import Annotated

from pydantic import Field

from llmtool.models.bag import BagConfig
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.convnext import ConvNeXtConfig
from llmtool.models.encoder import EncoderConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.tabm import TabMConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.models.vit import ViTConfig

ModelConfig = Annotated[
    MLPConfig
    | TabMConfig
    | ConvNetConfig
    | ConvNeXtConfig
    | ViTConfig
    | BagConfig
    | EncoderConfig
    | TransformerConfig,
    Field(discriminator="family"),
]
