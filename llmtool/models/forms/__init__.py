"""The forms of checkpoints that are read and written, a page each. To add one: a page and a name below.

A page says the model_type and class names, how config.json becomes our configuration and back, what is
refused, and the name map (our tensor -> where it lies in the file); `form.py` says what is asked of it.
"""

from torch import nn

from llmtool.models.forms.bag import BagForm
from llmtool.models.forms.bert import BERT
from llmtool.models.forms.convnext import CONVNEXT
from llmtool.models.forms.deit import DEIT
from llmtool.models.forms.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from llmtool.models.forms.distilbert import DISTILBERT
from llmtool.models.forms.form import Form
from llmtool.models.forms.gemma import GEMMA2, GEMMA3
from llmtool.models.forms.gpt2 import GPT2
from llmtool.models.forms.llama import LLAMA
from llmtool.models.forms.mistral import MISTRAL
from llmtool.models.forms.mlp import MLPForm
from llmtool.models.forms.modernbert import MODERNBERT
from llmtool.models.forms.olmo2 import OLMO2
from llmtool.models.forms.phi3 import PHI3
from llmtool.models.forms.qwen import QWEN2, QWEN3
from llmtool.models.forms.resnet import OWN_CONVNET, RESNET
from llmtool.models.forms.roberta import ROBERTA
from llmtool.models.forms.smollm3 import SMOLLM3
from llmtool.models.forms.tabm import TabMForm
from llmtool.models.forms.vit import OWN_VIT, VIT

FORMS: tuple[Form, ...] = (
    # decoders
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    SMOLLM3,
    # encoders
    BERT,
    DISTILBERT,
    ROBERTA,
    MODERNBERT,
    # models for pictures
    VIT,
    DEIT,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    RESNET,
    CONVNEXT,
    # our own
    MLPForm(),
    TabMForm(),
    BagForm(),
    OWN_CONVNET,
    OWN_VIT,
)


def form_of(model: nn.Module) -> Form:
    """The form that a model is written in; one that transformers runs brings its own."""
    return vars(model).get("form") or next(form for form in FORMS if form.owns(model))
