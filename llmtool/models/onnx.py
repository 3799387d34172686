"""Models as ONNX files: one graph from inputs to outputs, and the proof that it computes the same."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmtool.core.contracts import Classes, Features, Images, Labels, NextToken, Tokens
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models.bag import Bag
from llmtool.models.encoder import Encoder, same_document

FILE = "model.onnx"
EXTRA = "needs the packages of an extra: pip install 'llmtool[export]'"
ROWS, TOKENS = "batch", "length"  # the names of the sizes that are left open
MAX_BYTES = 1_500_000_000  # of weights inside the file; more lie beside it, for a protobuf ends at 2 GB
LARGEST = 1e-4  # difference of an output, relative to the largest output where that is above 1


class Graph(nn.Module):
    """The model as a function of tensors alone, without anything kept between calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs -> outputs."""
        return self.model(inputs)


class DecoderGraph(Graph):
    """Texts of different lengths, filled up on the right, to classes or values: filling is seen by nobody."""

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T) ids, (B, T) int64: 1 at tokens and 0 at filling -> (B, C)."""
        model: Any = self.model
        return model.score(model.pooled(model.hidden(inputs), mask))


class EncoderGraph(Graph):
    """Texts of different lengths in one batch, filled up on the right."""

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T) ids, (B, T) int64: 1 at tokens and 0 at filling -> (B, C)."""
        model: Any = self.model
        hidden = model.body(inputs, None, same_document(mask))
        return model.head(model.pooled(hidden, mask))


def export(model: Any, path: Path) -> dict[str, Any]:
    """Write the float32 model, on the CPU, to `path`; the number of rows (and of tokens) is left open.

    Returns what goes in and comes out, for people. ConfigError: the packages are not installed, or the model
    has no outputs yet. LlmtoolError: the exporter failed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx: {' and '.join(missing)}: not installed; it {EXTRA}")
    if model.outputs is None:
        raise ConfigError("--to onnx: this model has no head yet; fine-tuning gives it one")
    if isinstance(model, Bag):
        raise ConfigError("--to onnx: a bag of n-grams has no such form: ONNX has no hash of its n-grams")
    if isinstance(model.inputs, Tokens) and model.inputs.features:
        raise ConfigError("--to onnx: texts with columns of a table beside them are not written yet")
    about = describe(model)
    sizes: dict[int, Any] = {0: torch.export.Dim(ROWS)}
    if isinstance(model.inputs, Tokens):
        sizes[1] = torch.export.Dim(TOKENS, max=model.context)
    inputs = example(model, rows=3, tokens=min(7, getattr(model, "context", 7)))
    was_training = model.training
    model.eval()
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                graph_of(model),
                inputs,
                dynamo=True,
                dynamic_shapes=tuple(sizes for _ in inputs),
                input_names=list(about["inputs"]),
                output_names=["outputs"],
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=_bytes(model) > MAX_BYTES)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise LlmtoolError(f"{path}: the model could not be written as ONNX ({reason[:300]})") from error
    finally:
        model.train(was_training)
    return about


def check(model: Any, path: Path) -> list[dict[str, Any]] | None:
    """Run the file and the model on random inputs of two shapes; None where onnxruntime is not installed.

    Returns the shapes and the largest differences. LlmtoolError where one is above LARGEST.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = []
    was_training = model.training
    model.eval()
    try:
        for rows, tokens in ((1, 1), (3, _long(model))):
            inputs = example(model, rows, tokens)
            with torch.no_grad():
                wanted = graph_of(model)(*inputs).numpy()
            given = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})[0]
            difference = float(np.abs(given - wanted).max()) if given.shape == wanted.shape else float("inf")
            found.append({"inputs": list(inputs[0].shape), "difference": difference})
            if not difference <= LARGEST * max(1.0, float(np.abs(wanted).max())):
                raise LlmtoolError(
                    f"{path}: onnxruntime's outputs differ from the model's by {difference:.2g} "
                    f"on inputs {tuple(inputs[0].shape)}; the file is not to be used"
                )
    finally:
        model.train(was_training)
    return found


def graph_of(model: nn.Module) -> Graph:
    """What is written: the model as a function of its inputs."""
    if isinstance(model, Encoder):
        return EncoderGraph(model)
    return DecoderGraph(model) if _reads_texts(model) else Graph(model)


def _reads_texts(model: Any) -> bool:
    """Whether it gives one answer for a whole text."""
    return isinstance(model.inputs, Tokens) and not isinstance(model.outputs, NextToken)


def example(model: Any, rows: int, tokens: int) -> tuple[Tensor, ...]:
    """Random inputs, the same ones at every call; of an encoder some rows end early."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model.inputs, Features):
        return (torch.randn(rows, model.inputs.width, generator=generator),)
    if isinstance(model.inputs, Images):
        spec = model.inputs
        return (torch.randn(rows, spec.channels, spec.height, spec.width, generator=generator),)
    ids = torch.randint(model.inputs.vocabulary, (rows, tokens), generator=generator)
    if not _reads_texts(model):
        return (ids,)
    ends = torch.arange(tokens, tokens - rows, -1).clamp(min=1)  # (B,)
    return ids, (torch.arange(tokens) < ends.unsqueeze(1)).long()


def describe(model: Any) -> dict[str, Any]:
    """The inputs by name, each with its shape, type and meaning; what comes out."""
    ids = {"shape": [ROWS, TOKENS], "type": "int64", "says": f"token ids, at most {_context(model)} in a row"}
    if isinstance(model.inputs, Features):
        says = "encoded rows: columns as the card's encoder fills and scales them, not the raw table"
        features = {"shape": [ROWS, model.inputs.width], "type": "float32", "says": says}
        return {"inputs": {"features": features}, "outputs": _outputs(model)}
    if isinstance(model.inputs, Images):
        spec, says = model.inputs, "pictures, resized and standardised as in training"
        pixels = {"shape": [ROWS, spec.channels, spec.height, spec.width], "type": "float32", "says": says}
        return {"inputs": {"pixel_values": pixels}, "outputs": _outputs(model)}
    if _reads_texts(model):
        says = "1 at tokens, 0 at filling, which stands on the right"
        mask = {"shape": [ROWS, TOKENS], "type": "int64", "says": says}
        return {"inputs": {"input_ids": ids, "attention_mask": mask}, "outputs": _outputs(model)}
    ids["says"] = (
        f"{ids['says']}; rows may be filled up on the right with any id, which is not seen before it"
    )
    return {"inputs": {"input_ids": ids}, "outputs": _outputs(model)}


def _outputs(model: Any) -> str:
    if isinstance(model.outputs, NextToken):
        return f"({ROWS}, {TOKENS}, {model.outputs.vocabulary}) logits of the next token"
    what = (
        "logits of labels"
        if isinstance(model.outputs, Labels)
        else "logits of classes"
        if isinstance(model.outputs, Classes)
        else "values, standardised as in training"
    )
    return f"({ROWS}, {model.outputs.n}) {what}"


def _context(model: Any) -> int:
    return getattr(model, "context", 1)


def _long(model: Any) -> int:
    """Tokens of a row that passes each place where a model treats long texts otherwise."""
    config = getattr(model, "config", None)
    scaling = getattr(config, "rope_scaling", None)
    places = (getattr(config, "window", None), getattr(scaling, "original_context", None))
    return min(_context(model), max(64, *(place + 3 for place in places if place), 0))


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter speaks of its own insides, by warnings and by its log; errors come through."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
