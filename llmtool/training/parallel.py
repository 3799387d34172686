"""The `devices:` key and the `parallel:` section: how many processes train together, and who does what."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from llmtool.core.config import Section
from llmtool.core.devices import DeviceName, resolve_device
from llmtool.core.errors import ConfigError
from llmtool.training.budget import seconds

NAMED = re.compile(r"(cpu|cuda):([1-9][0-9]*)")
BESIDE_ON_A_CPU = 8  # processes that any machine is thought to carry


def _checked(given: Any) -> Any:
    number = isinstance(given, int) and not isinstance(given, bool) and given > 0
    if not number and given != "auto" and not (isinstance(given, str) and NAMED.fullmatch(given)):
        raise ValueError(f"expected auto, a number of processes, cpu:n or cuda:n (got {given!r})")
    return given


_NUMBER = {"type": "integer", "minimum": 1}
_WORD = {"type": "string", "pattern": f"^(auto|{NAMED.pattern})$"}
Devices = Annotated[int | str, BeforeValidator(_checked), WithJsonSchema({"anyOf": [_NUMBER, _WORD]})]


def asked(devices: int | str) -> tuple[str | None, int | None]:
    """The kind of device ("cpu", "cuda") and the number that the key itself says; None: it does not."""
    if isinstance(devices, int):
        return None, devices
    named = NAMED.fullmatch(devices)
    return (named[1], int(named[2])) if named else (None, None)


def found(devices: int | str, device: DeviceName) -> tuple[str, int]:
    """The kind of device and how many processes train on this machine, by `devices:` and `device:`.

    auto: all visible GPUs, one process on a CPU. Raises ConfigError for more than there is.
    """
    kind, count = kind_of(devices, device), asked(devices)[1]
    there = torch.cuda.device_count() if kind == "cuda" else max(BESIDE_ON_A_CPU, os.cpu_count() or 1)
    if count is not None and count > there:
        has = f"{there} GPUs are visible" if kind == "cuda" else f"at most {there} processes work on this CPU"
        raise ConfigError(f"devices: {devices}: {has}")
    return kind, count or (there if kind == "cuda" else 1)


def kind_of(devices: int | str, device: DeviceName) -> str:
    """The kind of device that `devices:` and `device:` mean. Raises ConfigError where there is none of it."""
    kind, _ = asked(devices)
    wanted = kind == "cuda" or (kind is None and device != "cpu")
    if wanted and torch.cuda.is_available():  # asking for one would take some of its memory
        kind = "cuda"
    elif wanted:
        try:
            kind = resolve_device("cuda" if kind else device).type
        except ConfigError as error:
            if kind is None:
                raise  # it is `device:` that asks
            raise ConfigError(f"devices: {devices}: {str(error).split('but ')[-1]}") from None
    return kind or "cpu"


class ParallelConfig(Section):
    """How the processes of a training share the work."""

    data: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="ranks that share a batch's rows: ddp: each has the whole model; fsdp: each keeps a part "
        "of weights, gradients and optimizer, and the whole of one block at a time; auto: ddp where a step "
        "fits into the device's memory so, else fsdp",
    )
    tensor: int = Field(
        default=1, gt=0, description="ranks that cut each block's matrices among them (tensor parallel)"
    )
    context: int = Field(
        default=1, gt=0, description="ranks that cut each row's tokens among them (context parallel)"
    )
    offload: bool = Field(
        default=False, description="fsdp: weights and optimizer lie in the host's memory between their uses"
    )
    deadline: str = Field(
        default="10m",
        description='how long ranks wait for one that does not come, such as "90s" or "10m"; then all end, '
        "and the error names it",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.offload and self.data == "ddp":
            raise ValueError("offload: is of data: fsdp; with ddp every rank keeps the whole model")
        try:
            seconds(self.deadline)
        except ValueError as error:
            raise ValueError(f"deadline: {error}") from None
        return self

    @property
    def seconds(self) -> float:
        """The deadline in seconds."""
        return seconds(self.deadline)

    def replicas(self, ranks: int) -> int:
        """Among how many of so many ranks the rows of a batch are cut: the `data` of data x context x tensor.

        Raises ConfigError where tensor and context do not divide them.
        """
        of = f"{ranks} ranks" if ranks > 1 else "one rank (see `devices`)"
        if ranks % self.tensor:
            raise ConfigError(f"parallel.tensor: {self.tensor} does not divide {of}")
        if ranks % (self.tensor * self.context):
            beside = f" with tensor: {self.tensor}" if self.tensor > 1 else ""
            raise ConfigError(f"parallel.context: {self.context}{beside} does not divide {of}")
        return ranks // (self.tensor * self.context)
