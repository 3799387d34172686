"""The form of Mistral: model_type mistral, MistralForCausalLM. Llama with one sliding window for all blocks.

Names are Hugging Face's own. sliding_window null (as from version 0.2 of the 7B on) means no window.
"""

from llmtool.models.forms.rotary import OPTIONS, SILU, SIZES, RotaryForm

MISTRAL = RotaryForm(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    sizes=SIZES,
    options=OPTIONS,
    fixed=SILU | {"attention_bias": (False,)},
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)
