"""A checkpoint written for others: a Hugging Face directory, an ONNX graph, or a GGUF file for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from llmtool.core import checkpoint, files
from llmtool.core.contracts import NextToken
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data import gguf_vocabulary, special_tokens, templates, tokenizers
from llmtool.models import adapters, gguf, onnx, pretrained
from llmtool.models.huggingface import Through
from llmtool.stages.assemble import say_to_others
from llmtool.stages.checkpoints import CARD_FILE, WHOLE, Start

Format = Literal["safetensors", "onnx", "gguf"]
FORMATS: tuple[Format, ...] = ("safetensors", "onnx", "gguf")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = {"safetensors": tuple(DTYPES), "onnx": ("fp32",), "gguf": (*DTYPES, "q8_0")}
SHARD_BYTES = 5_000_000_000  # of one file of weights, as Hugging Face's own libraries cut them
BESIDE = (tokenizers.FILE, special_tokens.CONFIG, special_tokens.MAP)  # what goes along as it is


@dataclass
class Export:
    """What was written. about: for result.json. said: a line each for a person."""

    about: dict[str, Any]
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def refuse_dtype(to: Format, dtype: str) -> None:
    """ConfigError for a precision that the format is not written in."""
    if dtype not in KINDS[to]:
        raise ConfigError(f"--dtype {dtype}: --to {to} is written in {' or '.join(KINDS[to])}")


def write(start: Start, directory: Path, to: Format, dtype: str) -> Export:
    """Write the model of a checkpoint, an adapter merged into its base, into a new directory.

    ConfigError where the format has no form of the model, LlmtoolError where a check fails.
    """
    refuse_dtype(to, dtype)
    if to != "safetensors" and isinstance(start.model, Through):
        raise ConfigError(f"--to {to}: of a model that transformers runs only --to safetensors is written")
    if to == "onnx":
        return _onnx(start, directory)
    return _safetensors(start, directory, dtype) if to == "safetensors" else _gguf(start, directory, dtype)


def _safetensors(start: Start, directory: Path, dtype: str) -> Export:
    """Hugging Face's layout; with our card too where the checkpoint has one, so that it is one of ours."""
    model: Any = start.model
    if start.dataset is not None:  # the file of a base says nothing of what its adapter learned
        say_to_others(model, start.card)
    ends = ends_of(start)
    if isinstance(model.outputs, NextToken) and ends:
        carried = {**vars(model).get("carried", {}), "eos_token_id": ends if len(ends) > 1 else ends[0]}
        if (begin := (start.card["encoder"].get("tokenizer") or {}).get("begin")) is not None:
            carried.setdefault("bos_token_id", begin)
        vars(model)["carried"] = carried
        files.write_json(directory / pretrained.GENERATION_FILE, carried)
    pretrained.save(model, directory, DTYPES[dtype], SHARD_BYTES)
    for name in BESIDE:
        if (path := start.tokenizer / name).is_file():
            files.write_bytes(directory / name, path.read_bytes())
    template, template_hash = _template(start)
    if template is not None and (templates.own(directory) or [None])[-1] != template:
        files.write_bytes(directory / templates.FILE, template.encode())
    card = start.directory / CARD_FILE
    if card.is_file():
        about = files.read_json(card)
        files.write_json(directory / CARD_FILE, {**about, "base": None})
    config = pretrained.file_config(model)
    name = config["architectures"][0]
    ours = str(config["model_type"]).startswith("llmtool_")
    said = [] if ours else [f"transformers loads it as {name}"]
    return Export({"architecture": name, "ends": ends, "template": template_hash}, said)


def _onnx(start: Start, directory: Path) -> Export:
    path = directory / onnx.FILE
    about = onnx.export(start.model, path)
    checked = onnx.check(start.model, path)
    if checked is None:
        notes, said = ["onnxruntime is not installed: the file was not run beside the model"], []
    else:
        most = max(found["difference"] for found in checked)
        shapes = " and ".join("x".join(map(str, found["inputs"])) for found in checked)
        notes, said = [], [f"onnxruntime gives the same on inputs {shapes}: at most {most:.1g} apart"]
    for name, its in about["inputs"].items():
        said.append(f"input {name} ({', '.join(map(str, its['shape']))}) {its['type']}: {its['says']}")
    said.append(f"outputs {about['outputs']}")
    return Export({"graph": about, "checked": checked}, said, notes)


def _gguf(start: Start, directory: Path, dtype: str) -> Export:
    model: Any = start.model
    gguf.layout_of(model)
    if not (start.tokenizer / tokenizers.FILE).is_file():
        raise ConfigError(f"--to gguf: {start.directory}: no {tokenizers.FILE}, and the file holds it too")
    template, template_hash = _template(start)
    words = gguf_vocabulary.read(start.tokenizer, model.inputs.vocabulary, ends_of(start), template)
    more = {"llmtool.weights": start.hash}
    if template_hash is not None:
        more["llmtool.chat_template"] = template_hash
    kind: Any = dtype
    types = gguf.write(model, directory / gguf.FILE, words, kind, name_of(start.directory), more)
    counts = {name: list(types.values()).count(name) for name in sorted(set(types.values()))}
    context = gguf.context_of(model)
    notes = list(words.notes)
    if context < model.context:
        notes.append(f"llama.cpp has no window here: the file says {context} tokens of {model.context}")
    said = [f"{len(types)} tensors ({', '.join(f'{count} {name}' for name, count in counts.items())})"]
    about = {"architecture": gguf.layout_of(model).name, "tensors": counts, "context": context}
    about |= {"tokenizer": f"{words.kind}, {words.pre}", "template": template_hash}
    return Export(about, said, notes)


def name_of(directory: Path) -> str:
    """What a person calls the model: its directory, or the run that it is a checkpoint of."""
    place = directory.resolve()
    return place.parents[2].name if place.parent.name == "checkpoints" else place.name


def ends_of(start: Start) -> list[int]:
    """The ids that end a text: where it learned to stop, then those it came with, then its tokenizer's."""
    carried = vars(start.model).get("carried", {}).get("eos_token_id")
    ends = carried if isinstance(carried, list) else [carried]
    stop = start.card["encoder"].get("stop") or []
    tokenizer = start.card["encoder"].get("tokenizer") or {}
    return [end for end in dict.fromkeys([*stop, *ends, tokenizer.get("end")]) if end is not None]


def _template(start: Start) -> tuple[str | None, str | None]:
    """The chat template beside the model and its hash; LlmtoolError where it learned with another one."""
    found = next(filter(None, map(templates.own, start.places)), None)
    if found is None:
        return None, None
    learned = start.card["encoder"].get("template")
    name = templates.hash_of(found[1])
    if learned is not None and learned["hash"] != name:
        raise LlmtoolError(
            f"{start.directory}: the chat template beside it ({name}) is not the one that it learned with "
            f"({learned['hash']})"
        )
    return found[1], name


def whole(start: Start, method: adapters.AdapterMethod, parent: Path) -> Path:
    """The directory of the whole model that a new adapter lies beside: the start's, or, where that is an
    adapter itself, a new one in `parent`, into which its merged model is written."""
    if start.base is None or not isinstance(method, adapters.LoRAConfig):
        return start.directory

    def merged(directory: Path) -> None:
        write(start, directory, "safetensors", "fp32")

    files.remove_tree(parent / WHOLE)  # of an earlier session
    return checkpoint.save(parent, WHOLE, merged)
