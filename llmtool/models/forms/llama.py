"""The form of Llama 1 to 3 and of what is built like it, such as SmolLM: model_type llama, LlamaForCausalLM.

Names are Hugging Face's own. Read: grouped keys, a head's own width, biases, tied embeddings, and rotary
scaling of the kinds linear, dynamic, llama3, yarn and longrope. Refused: another activation than SiLU,
windows.
"""

from llmtool.models.forms.rotary import BIAS, OPTIONS, SILU, SIZES, RotaryForm

LLAMA = RotaryForm(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    sizes=SIZES,
    options=OPTIONS | BIAS | {"mlp_bias": "mlp_bias"},
    fixed=SILU,
)
