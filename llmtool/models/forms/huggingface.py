"""Any language model that transformers knows, where a file asks for it: `through: transformers`.

Asked for is it by a file's `finetune.through`, which holds while its start is read (`through`), or by the key
`llmtool_through` in a config.json, which we write into what comes of such a model. transformers is given the
configuration alone, checked; the weights are read by our own reader, and no code beside them is run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError, first_line
from llmtool.models.forms.form import Form, Stored, refuse_foreign, whole_number
from llmtool.models.huggingface import (
    PREFIX,
    HuggingFaceConfig,
    Through,
    blocks_of,
    build,
    file_names,
    library,
)

LIBRARY, KEY = "transformers", "llmtool_through"
HINT = (
    f"; a language model that transformers knows can be run by it: finetune.through: {LIBRARY}, or for other "
    f'commands "{KEY}": "{LIBRARY}" in its {{name}}'
)
CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length")
MOST = {  # what a number of a configuration may be at most, by the first that its key matches
    r"layers?$|attention_types": 1024,
    r"experts?$": 4096,
    r"num_labels": 100_000,
    r"position|n_ctx|seq_len|context": 1_048_576,
    r"": 2**31 - 1,
}
REFUSED = re.compile(r"implementation|remote_code|(text|vision|audio)_config$")

_chosen: ContextVar[bool] = ContextVar("through", default=False)


@contextmanager
def through(named: str | None) -> Iterator[None]:
    """Directories that are read meanwhile are run by the library of this name; None: as it was."""
    token = _chosen.set(_chosen.get() or named == LIBRARY)
    try:
        yield
    finally:
        _chosen.reset(token)


def is_chosen(data: Mapping[str, Any], path: Path) -> bool:
    """Whether the model of this config.json is run by transformers."""
    if (named := data.get(KEY, LIBRARY)) != LIBRARY:
        raise ConfigError(f"{path}: {KEY}: {str(named)[:100]!r} is not known (only {LIBRARY!r})")
    return _chosen.get() or KEY in data


def about(model: nn.Module) -> dict[str, str]:
    """What a checkpoint says of how the base under an adapter is read, beside where it is."""
    return {"through": LIBRARY} if isinstance(model, Through) else {}


class HuggingFaceForm(Form):
    """The form of one model: what its config.json said is written again."""

    unused: ClassVar[re.Pattern[str]] = re.compile(
        r"(^|\.)(inv_freq|masked_bias|(attn|attention)\.bias)$"  # tables that older files hold
    )

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.names: dict[str, str] = {}  # of their modules -> of the file

    def read(self, data: dict[str, Any], path: Path) -> nn.Module:
        """The module on torch's current device, the meta device."""
        names = _names()
        self.model_type = str(data.get("model_type"))
        if self.model_type not in names:
            raise ConfigError(
                f"{path}: transformers has no language model of model_type {self.model_type[:100]!r}"
                f"{suggest(self.model_type, list(names))}"
            )
        self.architectures = (names[self.model_type],)
        refuse_foreign(data, self, path)
        for key in data:
            if REFUSED.search(key):
                raise ConfigError(f"{path}: {key} is not supported in a model that transformers runs")
        _refuse_sizes(data, path)
        whole_number(data, "vocab_size", path)
        try:
            return self._wrapped(build(self._config(data)), data, path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except Exception as error:  # whatever another's code says of another's file
            raise ConfigError(f"{path}: transformers does not take it ({first_line(error)})") from None

    def _config(self, data: dict[str, Any]) -> Any:
        mapping = library().models.auto.configuration_auto.CONFIG_MAPPING
        plain = {key: value for key, value in data.items() if key != KEY}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mapping[self.model_type].from_dict({**plain, "dtype": "float32"})

    def _wrapped(self, theirs: Any, data: dict[str, Any], path: Path) -> Through:
        said = (getattr(theirs.config, key, None) for key in CONTEXTS)
        context = next((value for value in said if isinstance(value, int)), None)
        if context is None:
            raise ConfigError(f"it says nowhere how many tokens the model sees; add {CONTEXTS[0]}")
        table, head = theirs.get_input_embeddings(), theirs.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(table, nn.Embedding):
            raise ConfigError(f"{type(theirs).__name__} has no plain output layer and table of ids")
        if not table.num_embeddings == head.out_features == data["vocab_size"]:
            raise ConfigError("vocab_size: the table and the output layer have other sizes")
        config = HuggingFaceConfig(
            architecture=type(theirs).__name__,
            depth=theirs.config.num_hidden_layers,
            width=theirs.config.hidden_size,
            context=context,
            tie_embeddings=head.weight is table.weight,
        )
        blocks_of(theirs, config.depth)
        self.names, self.prefix = file_names(theirs), f"{theirs.base_model_prefix}."
        model = Through(theirs, config, str(path))
        vars(model)["form"] = self
        return model

    def write(self, model: nn.Module) -> dict[str, Any]:
        """Their own keys as they were, and ours, by which we know it again."""
        assert isinstance(model, Through)
        kept = {key: value for key, value in self.data.items() if key not in ("torch_dtype", "_name_or_path")}
        ties = {"tie_word_embeddings": model.config.tie_embeddings}
        return kept | ties | {"dtype": "float32", KEY: LIBRARY}

    def module_name(self, model: nn.Module, name: str) -> str:
        """Their name."""
        return name.removeprefix(PREFIX)

    def head_modules(self, model: nn.Module) -> list[str]:
        """The output layer."""
        return [self.module_name(model, str(model.head_name))]

    def stored(self, model: nn.Module) -> dict[str, Stored]:
        """Every tensor under their name."""
        return {name: Stored(self.names[name.removeprefix(PREFIX)]) for name in model.state_dict()}

    def renamed(self, key: str) -> str:
        """Files that were written with the names of modules are read too."""
        return self.names.get(key, key)


def _names() -> dict[str, str]:
    """model_type -> transformers' class of such a language model."""
    names = library().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return {kind: name if isinstance(name, str) else name[0] for kind, name in names.items()}


def _refuse_sizes(data: Mapping[str, Any], path: Path) -> None:
    """ConfigError for numbers that no model has, before anything is made of them."""
    for key, value in data.items():
        if isinstance(value, dict):
            _refuse_sizes(value, path)
        for one in value if isinstance(value, list) else ():
            _refuse_sizes({key: one}, path)
        most = next(most for pattern, most in MOST.items() if re.search(pattern, key))
        if isinstance(value, int) and abs(value) > most:
            raise ConfigError(f"{path}: {key}: at most {most:,} are taken")
