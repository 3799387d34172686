"""Small models and their inputs, for the tests of what adapts a model."""

import torch

from llmtool.core.contracts import Classes, Features, NextToken, Tokens
from llmtool.models.accounting import saved
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig

ARCHITECTURES = ["gpt2", "llama", "qwen3", "qwen2", "gemma2", "phi3"]
QUERIES = dict.fromkeys(ARCHITECTURES, "q_proj") | {"gpt2": "c_attn", "phi3": "qkv_proj"}


def transformer(architecture, seed=0, **keys):
    torch.manual_seed(seed)
    config = TransformerConfig(architecture=architecture, depth=2, heads=4, width=32, context=16, **keys)
    return config.build(Tokens(61), NextToken(61)).eval()


def mlp(outputs=Classes(3), **keys):  # noqa: B008
    torch.manual_seed(0)
    return MLPConfig(hidden=[8, 6], **keys).build(Features(5), outputs).eval()


def stir(model, seed=7):
    """Give every trained weight a value of its own, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids():
    return torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(2))


def rows():
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(2))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved_bytes(model, rows, tokens, precision="fp32", device="cpu", packed=False):
    """Bytes that the forward pass keeps for the backward pass, as the account has them."""
    return saved(model, rows, tokens, precision, device, packed).bytes()
