"""The form of OLMo 2: model_type olmo2, Olmo2ForCausalLM. Llama with norms after attention and feed-forward.

Names are Hugging Face's own. Queries and keys are normalised over all heads at once.
"""

from llmtool.models.forms.rotary import BIAS, OPTIONS, SILU, SIZES, RotaryForm

OLMO2 = RotaryForm(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM", "Olmo2Model"),
    sizes=SIZES,
    options=OPTIONS | BIAS,
    fixed=SILU,
)
