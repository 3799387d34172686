"""What the forms of encoders share: a table of keys and a name map each, heads that are there or not yet.

A checkpoint of the body alone, or one whose head is for another task (masked words), has no outputs: they
come with the head that fine-tuning gives it. Its pooler goes too: a new one learns as well or better
(https://arxiv.org/abs/2006.05987).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.encoder import Encoder, EncoderConfig
from llmtool.models.forms.form import Form, Stored, refuse_foreign, refuse_other_values, whole_number
from llmtool.models.forms.heads import FEATURES, POOLING, labels_of, labels_written, outputs_of

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


@dataclass(kw_only=True)
class EncoderForm(Form):
    """An encoder whose configuration is a table.

    sizes: Hugging Face's key -> ours, for what a configuration must say. options: the same for what it may
    leave out or have as null, and then our default holds. fixed: key -> the values that our modules do.
    names: module of ours -> where it lies, those of a block with {} for its number; heads: the same of the
    head; whole: their modules that the head is made of. pools: whether they have a key for pooling by mean.
    """

    model_type: str
    architectures: tuple[str, ...]
    prefix: str = ""
    sizes: dict[str, str]
    options: dict[str, str]
    fixed: dict[str, tuple[Any, ...]]
    names: dict[str, str]
    heads: dict[str, str]
    whole: tuple[str, ...]
    activation: str = "hidden_act"
    pools: bool = False
    unused = re.compile(
        r"position_ids$|(^|\.)pooler\.|^cls\.|^lm_head\.|^vocab_|^head\.|^decoder\.|rotary_emb|inv_freq$"
    )

    def owns(self, model: nn.Module) -> bool:
        """An encoder of the architecture that is named like the model_type."""
        return isinstance(model, Encoder) and model.config.architecture == self.model_type

    def renamed(self, key: str) -> str:
        """Norms of the first BERT files have TensorFlow's names."""
        return re.sub(r"(LayerNorm\.)(gamma|beta)$", lambda m: m[1] + _NEWER[m[2]], key)

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module on torch's current device."""
        refuse_foreign(data, self, path)
        refuse_other_values(data, self.fixed, path)
        values: dict[str, Any] = {"family": "encoder", "architecture": self.model_type}
        for key, ours in self.sizes.items():
            values[ours] = whole_number(data, key, path)
        for key, ours in self.options.items():
            if data.get(key) is not None:
                values[ours] = data[key]
        chosen = data.get(self.activation, "gelu")
        if chosen not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(
                f"{path}: {self.activation}: {str(chosen)[:100]!r} is not supported ({known} are)"
            )
        values["activation"] = ACTIVATIONS[chosen]
        if data.get(POOLING) is not None:
            values["pooling"] = data[POOLING]
        values |= self.more(data, path)
        config = EncoderConfig.model_validate(values)
        named = data.get("architectures") or [""]
        has_head = named[0] == self.architectures[0] or data.get(POOLING) is not None
        features = whole_number(data, FEATURES, path) if FEATURES in data else 0
        inputs = Tokens(whole_number(data, "vocab_size", path), features=features)
        model = Encoder(config, inputs, outputs_of(data, path) if has_head else None)
        model.labels = labels_of(data) if has_head else None
        return model

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Hugging Face's keys."""
        assert isinstance(model, Encoder)
        config = model.config
        form: dict[str, Any] = {"vocab_size": model.inputs.vocabulary}
        form |= {
            key: getattr(config, ours)
            for key, ours in {**self.sizes, **self.options}.items()
            if getattr(config, ours) is not None
        }
        form |= {key: values[0] for key, values in self.fixed.items() if values[0] is not None}
        form[self.activation] = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
        form |= {"pad_token_id": config.padding, "dtype": "float32", **self.more_written(config)}
        if self._head_is_ours(model):
            form |= {POOLING: config.pooling, "architectures": [self.architectures[1]]}
        if model.inputs.features:
            form[FEATURES] = model.inputs.features
        if model.outputs is None:
            return form | {"architectures": [self.architectures[1]]}
        return form | labels_written(model.labels, model.head.output.out_features, model.outputs)

    def stored(self, model: nn.Module) -> dict[str, Stored]:
        """The name map, by module."""
        assert isinstance(model, Encoder)
        names = [name for name in model.state_dict() if model.outputs or not name.startswith("head.")]
        parts = [name.rpartition(".") for name in names]
        places = [f"{self.module_name(model, module)}.{leaf}" for module, _, leaf in parts]
        return {name: Stored(place) for name, place in zip(names, places, strict=True)}

    def module_name(self, model: nn.Module, name: str) -> str:
        """Of a module that has weights."""
        if name.startswith("head."):
            return name if self._head_is_ours(model) else self.heads[name]
        parts = name.split(".")
        if parts[0] != "layers":
            return self.prefix + self.names[name]
        return self.prefix + self.names[".".join(["layers.{}", *parts[2:]])].format(parts[1])

    def head_modules(self, model: nn.Module) -> list[str]:
        """The modules beside the body."""
        return ["head"] if self._head_is_ours(model) else list(self.whole)

    def _head_is_ours(self, model: nn.Module) -> bool:
        """Whether transformers has no class with such a head."""
        assert isinstance(model, Encoder)
        return (model.config.pooling == "mean" and not self.pools) or model.inputs.features > 0

    def more(self, data: dict[str, Any], path: Path) -> dict[str, Any]:
        """Keys of ours that no table can give."""
        return {}

    def more_written(self, config: EncoderConfig) -> dict[str, Any]:
        """Keys of theirs that no table can give."""
        return {}


_NEWER = {"gamma": "weight", "beta": "bias"}
