"""The form of GPT-2: model_type gpt2, GPT2LMHeadModel. Names are Hugging Face's, linear weights (in, out).

OpenAI's own files hold the body alone, without "transformer." before the names, and the causal mask as a
tensor, which is computed nowadays.
"""

from __future__ import annotations

import re
from typing import Any

from llmtool.models.forms.decoder import DecoderForm
from llmtool.models.transformer import TransformerConfig


class GPT2Form(DecoderForm):
    """Dropout is said three times; our one value goes into all of them."""

    unused = re.compile(r"\.attn\.(bias|masked_bias)$")

    def more_written(self, config: TransformerConfig) -> dict[str, Any]:
        """The dropout of embeddings and attention."""
        return {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout}


GPT2 = GPT2Form(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    sizes={"n_layer": "depth", "n_head": "heads", "n_embd": "width", "n_positions": "context"},
    options={"n_inner": "feed_forward", "layer_norm_epsilon": "norm_epsilon", "resid_pdrop": "dropout"},
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    ties=True,
    prefix="transformer.",
)
