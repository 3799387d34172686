"""The form of DeiT: model_type deit, with one head (DeiTForImageClassification) or two (... WithTeacher)."""

from __future__ import annotations

from typing import Any

from torch import nn

from llmtool.core.contracts import Classes, Images, Values
from llmtool.models.forms.vit import VIT, ViTForm
from llmtool.models.vit import TwoHeads, ViT

TEACHER = "DeiTForImageClassificationWithTeacher"


class DeiTForm(ViTForm):
    """ViT with a distillation token, and perhaps a second head on it."""

    def make(self, config: Any, inputs: Images, outputs: Classes | Values | None, named: str) -> nn.Module:
        """With one head, two, or none."""
        return ViT(config, inputs, outputs, teacher=named == TEACHER)

    def write(self, model: nn.Module) -> dict[str, Any]:
        """The class of theirs that has as many heads."""
        form = super().write(model)
        return form | ({"architectures": [TEACHER]} if isinstance(model.head, TwoHeads) else {})


DEIT = DeiTForm(
    model_type="deit",
    heads=("DeiTForImageClassification", TEACHER),
    bodies=("DeiTModel",),
    prefix="deit.",
    sizes=VIT.sizes,
    options=VIT.options,
    fixed=VIT.fixed,
    modules=VIT.modules,
    names=VIT.names
    | {"head.from_class": "cls_classifier", "head.from_distillation": "distillation_classifier"},
)
