"""What a training would need of memory if it were set up otherwise, by accounts of models without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmtool.core.config import Section
from llmtool.core.devices import published_peak
from llmtool.core.errors import ConfigError
from llmtool.models.accounting import Memory, copy_on, memory, saved
from llmtool.models.activations import Activations
from llmtool.models.adapters import AdapterMethod, FullConfig, LoRAConfig
from llmtool.models.layers import statistics
from llmtool.models.recompute import learning_blocks
from llmtool.stages.fitting import Choices, Proposal, Setup, Speed, propose
from llmtool.stages.room import average_bytes, packed, tokens_of
from llmtool.stages.settings import CPU_RATE, REACHED
from llmtool.training import TrainConfig

PART = 1e-3  # seconds that a part of a batch takes beside its FLOPs: some hundred calls of kernels, about
LIKE = "NVIDIA H200"  # whose rates stand for a GPU's; what counts is how they stand to each other


class ModelNeeds:
    """What a step needs in any setup of a training.

    model: as it is trained, on any device. config: of the model, where another size of it is a choice. less:
    bytes that its weights will have less than here (in four bits).
    """

    def __init__(
        self,
        model: nn.Module,
        config: Section | None,
        device: str,
        card: dict[str, Any] | None,
        less: int = 0,
    ) -> None:
        self.model, self.config, self.device, self.card, self.less = model, config, device, card, less
        self._models: dict[tuple[int | None, int | None, str], nn.Module] = {}
        self._kept: dict[tuple[Any, ...], Activations] = {}

    def __call__(self, setup: Setup) -> Memory:
        """Of the setup."""
        key = (setup.context, setup.depth, setup.method)
        if not self._models:  # the first one asked for is the model as it is
            self._models[key] = self.model
        if key not in self._models:
            self._models[key] = self._made(setup)
        model, here = self._models[key], (*key, setup.rows, setup.precision)
        if here not in self._kept:
            tokens = tokens_of(model)
            mixed = packed(self.card, tokens)
            self._kept[here] = saved(model, setup.rows, tokens, setup.precision, self.device, mixed)
        optimizer: Any = setup.optimizer
        found = memory(model, optimizer, self._kept[here].bytes(setup.recomputed), self.device)
        average = average_bytes(model) if setup.ema else 0
        return replace(found, weights=found.weights - self.less, optimizer=found.optimizer + average)

    def _made(self, setup: Setup) -> nn.Module:
        given: Any = self.model
        model = given
        with torch.device("meta"):
            if self.config is not None and (setup.context, setup.depth) != sizes_of(self.config):
                sizes = {"context": setup.context, "depth": setup.depth}
                config: Any = self.config.model_copy(update={k: v for k, v in sizes.items() if v is not None})
                model = config.build(given.inputs, given.outputs)
        return adapted(model, LoRAConfig(kind="lora")) if setup.method == "lora" else model


def sizes_of(config: Section | None) -> tuple[int | None, int | None]:
    """Context and depth of a model that a file may have otherwise; None where it has no such key."""
    context, depth = (getattr(config, name, None) for name in ("context", "depth"))
    return (context if isinstance(context, int) else None, depth if isinstance(depth, int) else None)


def setup_of(
    section: str, fit: TrainConfig, batch: int, rows: int, precision: str, config: Section | None
) -> Setup:
    """The setup that a section of a file asks for; batch, rows: as they are resolved.

    config: of the model, where the file names its sizes.
    """
    asked = fit.activation_checkpointing
    context, depth = sizes_of(config)
    return Setup(
        section=section,
        batch=batch,
        rows=rows,
        recomputed=asked if isinstance(asked, int) else 0,
        precision=precision,
        ema=fit.ema is not None,
        optimizer=fit.optimizer.name,
        method=getattr(getattr(fit, "method", None), "kind", "full"),
        context=context,
        depth=depth,
    )


def adapted(model: nn.Module, method: AdapterMethod | None) -> nn.Module:
    """The model as it is trained by a method of fine-tuning, without its weights; none of it in four bits,
    which need the weights themselves."""
    if method is None or isinstance(method, FullConfig):
        return model
    if isinstance(method, LoRAConfig):
        method = method.model_copy(update={"quantise": "none"})
    made = copy_on(model, "meta")
    with torch.device("meta"):
        method.apply(made)
    return made


def proposals(
    setup: Setup, needs: ModelNeeds, flops: tuple[float, float], device_bytes: int
) -> list[Proposal]:
    """What makes a training fit (stages.fitting). flops: of a row, forward and backward."""
    model = needs.model
    choices = Choices(
        blocks=len(learning_blocks(model)),
        halved=setup.precision in ("fp32", "tf32"),
        norms=bool(statistics(model)),
        lora=setup.section == "finetune" and setup.method == "full" and _takes_updates(model),
    )
    if needs.device == "cuda":
        rates = {name: REACHED * (published_peak(LIKE, name) or 0.0) for name in ("fp32", "tf32", "bf16")}
    else:
        rates = dict.fromkeys(("fp32", "bf16"), CPU_RATE)  # where bf16 is faster is another question
    return propose(setup, needs, device_bytes, choices, Speed(*flops, rates, PART))


def _takes_updates(model: nn.Module) -> bool:
    try:
        adapted(model, LoRAConfig(kind="lora"))
    except ConfigError:
        return False
    return True
