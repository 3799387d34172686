"""What the forms of decoder-only transformers share: a table of keys each, read and written the same way.

Our modules have Hugging Face's own names, so no page of a decoder needs a name map. One that gives classes or
values of texts is ...ForSequenceClassification, which reads the last token that is no padding; where ours
reads the mean, which none of theirs does, the file says that it is a body and how it pools.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import NextToken, OutputSpec, Tokens
from llmtool.models.forms.form import Form, refuse_foreign, refuse_other_values, whole_number
from llmtool.models.forms.heads import POOLING, labels_of, labels_written, outputs_of
from llmtool.models.transformer import Transformer, TransformerConfig


@dataclass
class DecoderForm(Form):
    """A decoder whose configuration is a table.

    sizes: Hugging Face's key -> ours, for what a configuration must say. options: the same for what it may
    leave out or have as null, and then our default holds. fixed: key -> the values that our modules
    implement; the first is theirs when the key is left out. defaults: what is theirs for other keys left out,
    where it is not our default. ties: whether the output layer is the embedding's where nothing is said.
    """

    model_type: str
    architectures: tuple[str, ...]
    sizes: dict[str, str]
    options: dict[str, str]
    fixed: dict[str, tuple[Any, ...]]
    ties: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    prefix: str = "model."

    def __post_init__(self) -> None:
        self.classifier = self.architectures[1].removesuffix("Model") + "ForSequenceClassification"
        self.architectures = (*self.architectures, self.classifier)

    def owns(self, model: nn.Module) -> bool:
        """A transformer of the architecture that is named like the model_type."""
        return isinstance(model, Transformer) and model.config.architecture == self.model_type

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module on torch's current device."""
        refuse_foreign(data, self, path)
        data = {**self.defaults, **data}
        refuse_other_values(data, self.fixed, path)
        values: dict[str, Any] = {"family": "transformer", "architecture": self.model_type}
        for key, ours in self.sizes.items():
            values[ours] = whole_number(data, key, path)
        for key, ours in self.options.items():
            if data.get(key) is not None:
                values[ours] = data[key]
        values["tie_embeddings"] = data.get("tie_word_embeddings", self.ties)
        values |= self.more(data, path)
        if data.get(POOLING) is not None:
            values["pooling"] = data[POOLING]
        vocabulary = whole_number(data, "vocab_size", path)
        outputs: OutputSpec = NextToken(vocabulary)
        if data.get(POOLING) is not None or data.get("architectures") == [self.classifier]:
            outputs = outputs_of(data, path)
        model = TransformerConfig.model_validate(values).build(Tokens(vocabulary), outputs)
        if not model.writes:
            model.labels = labels_of(data)
        return model

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Hugging Face's keys."""
        assert isinstance(model, Transformer)
        keys = {**self.sizes, **self.options}
        form: dict[str, Any] = {"vocab_size": model.inputs.vocabulary}
        form |= {key: getattr(model.config, ours) for key, ours in keys.items()}
        form |= {key: values[0] for key, values in self.fixed.items() if values[0] is not None}
        form |= self.more_written(model.config)
        # theirs would be other models' ids, some beyond a small vocabulary
        form |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        form |= {"tie_word_embeddings": model.config.tie_embeddings, "dtype": "float32"}
        if model.writes:
            return form
        form["architectures"] = [self.classifier]
        if model.config.pooling != "last":
            form |= {"architectures": [self.architectures[1]], POOLING: model.config.pooling}
        return form | labels_written(model.labels, model.score.out_features, model.outputs)

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours that no table can give."""
        return {}

    def more_written(self, config: TransformerConfig) -> dict[str, Any]:
        """Keys of theirs that no table can give."""
        return {}
