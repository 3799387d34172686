"""The form of Qwen3: model_type qwen3, Qwen3ForCausalLM. Names are Hugging Face's own."""

from llmtool.models.forms.llama import FIXED, OPTIONS, SIZES, RotaryForm

QWEN3 = RotaryForm(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    sizes=SIZES,
    options=OPTIONS,
    fixed=FIXED,
)
