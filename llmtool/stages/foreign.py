"""Models and PEFT adapters that others made: what goes in, what comes out, what lies beneath, their hash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmtool.core import files, hub
from llmtool.core.contracts import Classes, Images, Labels, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError, DataError, LlmtoolError
from llmtool.core.files import HashFile
from llmtool.data import special_tokens, templates, tokenizers
from llmtool.data.tokenizers import FileTokenizer
from llmtool.models import peft_files, preprocessing, pretrained

# All that is read of such a directory, beside what may name its special tokens; what else lies there (code,
# pickles, drawings) is not looked at.
READ = (
    pretrained.CONFIG_FILE,
    peft_files.ADAPTER_CONFIG,
    pretrained.GENERATION_FILE,
    preprocessing.FILE,
    tokenizers.FILE,
    special_tokens.CONFIG,
    templates.FILE,
    "*.safetensors",
    "*.safetensors.index.json",
)


def is_foreign(directory: Path) -> bool:
    """Whether this looks like the directory of a model, or of an adapter."""
    return any((directory / name).is_file() for name in (pretrained.CONFIG_FILE, peft_files.ADAPTER_CONFIG))


@contextmanager
def unusable() -> Iterator[None]:
    """What is wrong with files of others is a mistake of the setting that names them: exit code 2, not 1."""
    try:
        yield
    except LlmtoolError as error:
        if type(error) is not LlmtoolError:
            raise
        raise ConfigError(str(error)) from None


def base_of(directory: Path) -> Path | None:
    """The model under an adapter of PEFT's, fetched where it is one of the hub; None for a whole model.
    ConfigError where it is not here and no commit on the hub."""
    if not (directory / peft_files.ADAPTER_CONFIG).is_file():
        return None
    form = pretrained.read_json(directory / peft_files.ADAPTER_CONFIG)
    named, revision = str(form.get("base_model_name_or_path")), form.get("revision")
    for base in (Path(named), directory / named):
        if base.is_dir():
            return base
    if hub.NAME.fullmatch(hub.SCHEME + named) and isinstance(revision, str):
        return hub.snapshot(f"{hub.SCHEME}{named}@{revision}")
    raise ConfigError(
        f"{directory}: is an adapter of {named}, which is no directory here; in its "
        f"{peft_files.ADAPTER_CONFIG} (of a copy, if this is the hub's cache) set base_model_name_or_path to "
        "where the model lies, or `revision` to the commit of that name on the hub"
    )


def task_and_card(directory: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The task of the model (None: it has no head) and the card of data that it takes, as ours have them."""
    model: Any = pretrained.skeleton(directory)
    inputs, outputs = model.inputs, model.outputs
    if isinstance(inputs, Tokens) and not isinstance(outputs, NextToken):
        return _of_texts(directory, model)
    if isinstance(inputs, Images):
        return _of_pictures(directory, model)
    if not isinstance(inputs, Tokens) or not isinstance(outputs, NextToken):
        raise ConfigError(
            f"{directory}: only language models, encoders and models for pictures are read from a directory "
            "of others'"
        )
    card = {
        "encoding": "tokens",
        "inputs": {"kind": "tokens", "vocabulary": inputs.vocabulary},
        "targets": {"kind": "next_token", "vocabulary": outputs.vocabulary},
        "encoder": {"as": "tokens", "tokenizer": _tokenizer(directory), **_template(directory)},
    }
    return {"kind": "language"}, card


def _of_texts(directory: Path, model: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The same of a model for classes or values of texts; an encoder's head may be missing."""
    card: dict[str, Any] = {
        "encoding": "text",
        "inputs": {"kind": "tokens", "vocabulary": model.inputs.vocabulary, "length": model.context},
        "encoder": {"as": "text", "tokenizer": _tokenizer(directory)},
    }
    return _with_head(model, card)


def _of_pictures(directory: Path, model: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The same of a model for pictures, whose pixels are standardised as the file beside it says."""
    path = directory / preprocessing.FILE
    found = preprocessing.read(path)
    how = None if found is None else asdict(preprocessing.standardisation(found, path))
    card: dict[str, Any] = {
        "encoding": "images",
        "inputs": {"kind": "images", **asdict(model.inputs)},
        "encoder": {"as": "images", "standardisation": how},
    }
    return _with_head(model, card)


def _with_head(model: Any, card: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Task and card with what comes out, if it has a head. Values are taken to be in their own units."""
    if model.outputs is None:
        return None, card | {"targets": {"kind": "nothing"}}
    assert isinstance(model.outputs, Classes | Values)
    names = model.labels or [f"LABEL_{number}" for number in range(model.outputs.n)]
    if isinstance(model.outputs, Labels):
        return {"kind": "multilabel"}, card | {"targets": {"kind": "labels", "names": names}}
    if isinstance(model.outputs, Classes):
        return {"kind": "classification"}, card | {"targets": {"kind": "classes", "names": names}}
    plain = {"mean": [0.0] * model.outputs.n, "scale": [1.0] * model.outputs.n}
    return {"kind": "regression"}, card | {"targets": {"kind": "values", "names": names, **plain}}


def speech(directory: Path) -> dict[str, Any]:
    """What an adapter's directory has itself of an encoder's state: tokenizer and chat template."""
    tokenizer = _tokenizer(directory)
    return ({} if tokenizer is None else {"tokenizer": tokenizer}) | _template(directory)


def _tokenizer(directory: Path) -> dict[str, Any] | None:
    """The state of the tokenizer beside the model; None where there is no tokenizer.json."""
    if not (directory / tokenizers.FILE).is_file():
        return None
    try:
        return FileTokenizer(kind="file", path=str(directory)).fit(lambda: iter(())).state()
    except DataError as error:
        raise ConfigError(str(error)) from None


def _template(directory: Path) -> dict[str, Any]:
    """The chat template beside the model, if there is one, as an encoder's state has it."""
    found = templates.own(directory)
    if found is None:
        return {}
    return {"template": {"name": f"of {directory}", "hash": templates.hash_of(found[1]), "text": found[1]}}


def fingerprint(directory: Path, hash_file: HashFile | None = None) -> str:
    """One hash of all the files that are read of the directory."""
    named = (path for pattern in READ for path in directory.glob(pattern))
    found = sorted({*named, *special_tokens.files(directory)})
    hashes = {path.name: (hash_file or _hash)(path) for path in found if path.is_file()}
    return files.hash_bytes(files.json_bytes(hashes))


def _hash(path: Path) -> str:
    """A file's hash; asked for often, and large."""
    found = path.stat()
    return _remembered(str(path.absolute()), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _remembered(path: str, size: int, changed: int) -> str:
    return files.hash_file(Path(path))
