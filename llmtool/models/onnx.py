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

from llmtool.core.contracts import Features, Tokens
from llmtool.core.errors import ConfigError, LlmtoolError

FILE = "model.onnx"
EXTRA = "needs the packages of an extra: pip install 'llmtool[export]'"
ROWS, TOKENS = "batch", "length"  # the names of the sizes that are left open
LARGEST = 1e-4  # difference of an output, relative to the largest output where that is above 1


class Graph(nn.Module):
    """The model as a function of one tensor, in its own precision and without anything kept between calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs -> outputs."""
        return self.model(inputs)


def export(model: Any, path: Path) -> dict[str, Any]:
    """Write the float32 model, on the CPU, to `path`; the number of rows (and of tokens) is left open.

    Returns what goes in and comes out, for people. ConfigError: the packages are not installed.
    LlmtoolError: the exporter failed.
    """
    _need("onnx", "onnxscript")
    name, about = _input(model)
    open_sizes: dict[int, Any] = {0: torch.export.Dim(ROWS)}
    if isinstance(model.inputs, Tokens):
        open_sizes[1] = torch.export.Dim(TOKENS, max=model.context)
    was_training = model.training
    model.eval()
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                Graph(model),
                (example(model, rows=2, tokens=min(7, getattr(model, "context", 7))),),
                dynamo=True,
                dynamic_shapes=(open_sizes,),
                input_names=[name],
                output_names=["outputs"],
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=_bytes(model) > 1_500_000_000)  # protobuf's limit is 2 GB
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
    name = session.get_inputs()[0].name
    most = getattr(model, "context", 1)
    found = []
    was_training = model.training
    model.eval()
    try:
        for rows, tokens in ((1, 1), (3, most if most < 64 else 64)):
            inputs = example(model, rows, tokens)
            with torch.no_grad():
                wanted = model(inputs).numpy()
            given = session.run(None, {name: inputs.numpy()})[0]
            difference = float(np.abs(given - wanted).max()) if given.shape == wanted.shape else float("inf")
            found.append({"inputs": list(inputs.shape), "difference": difference})
            if not difference <= LARGEST * max(1.0, float(np.abs(wanted).max())):
                raise LlmtoolError(
                    f"{path}: onnxruntime's outputs differ from the model's by {difference:.2g} "
                    f"on inputs {tuple(inputs.shape)}; the file is not to be used"
                )
    finally:
        model.train(was_training)
    return found


def example(model: Any, rows: int, tokens: int) -> Tensor:
    """Random inputs, the same ones at every call: (rows, F) float32 or (rows, tokens) int64."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model.inputs, Features):
        return torch.randn(rows, model.inputs.width, generator=generator)
    return torch.randint(model.inputs.vocabulary, (rows, tokens), generator=generator)


def _input(model: Any) -> tuple[str, dict[str, Any]]:
    """The input's name in the file, and what goes in and comes out."""
    if isinstance(model.inputs, Features):
        says = "encoded rows: the columns as the card's encoder scales and fills them, not the raw table"
        about = {"input": "features", "shape": [ROWS, model.inputs.width], "type": "float32", "says": says}
        return "features", about
    if isinstance(model.inputs, Tokens):
        says = (
            "token ids; every token sees itself and those before it, so rows may be filled up on the right "
            "with any id"
        )
        about = {"input": "input_ids", "shape": [ROWS, TOKENS], "type": "int64", "says": says}
        return "input_ids", about
    raise ConfigError(f"--to onnx: no form yet for models of {type(model.inputs).__name__.lower()}")


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx: {' and '.join(missing)}: not installed; it {EXTRA}")


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
