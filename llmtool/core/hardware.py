"""Devices by name: memory, bandwidth, matrix rates and board power as published, or as a user's file says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from pydantic import Field

from llmtool.core import config
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError

HERE = "this machine"


@dataclass(frozen=True)
class Device:
    """What is known of a device; None: not published, or not said.

    kind: "cuda" or "cpu". memory: bytes. bandwidth: bytes a second to and from its memory. flops: dense
    matrix products, FLOP/s by precision. watts: of the whole board at full work. source: of the figures.
    """

    name: str
    pattern: str = ""  # of the names that torch.cuda.get_device_name gives
    kind: str = "cuda"
    memory: float | None = None
    bandwidth: float | None = None
    flops: dict[str, float] = field(default_factory=dict)
    watts: float | None = None
    price_per_hour: float | None = None
    currency: str = ""
    curves: float | None = None  # of a CPU: exponentials a second
    call: float | None = None  # of a CPU: seconds of an operation on next to nothing
    small: float | None = None  # of a CPU: FLOP/s in float32 of what `core.products` leaves to PyTorch
    source: str = "published"


def _gpu(
    name: str, pattern: str, gigabytes: float, gigabytes_per_second: float, watts: float, **teraflops: float
) -> Device:
    flops = {precision: rate * 1e12 for precision, rate in teraflops.items()}
    return Device(
        name, pattern, "cuda", gigabytes * 1e9, gigabytes_per_second * 1e9, flops, watts, source="NVIDIA"
    )


# From NVIDIA's data sheets and product briefs of H200, H100 (SXM, PCIe, NVL), A100 (40 and 80 GB), L40S, L4,
# T4 and V100, and from its architecture white papers of Ada (RTX 4090) and GA102 (RTX 3090): memory, its
# bandwidth, board power (the highest that may be set), and dense peaks (without sparsity) at boost clock,
# where fp8, fp16 and bf16 accumulate in fp32, as PyTorch's products do. Names in full, as torch.cuda
# (get_device_name) gives them: a MIG slice, a laptop or an export variant is another device and is measured.
# V100 PCIe and H100 PCIe agree with their product briefs; the others' bandwidth and power with lists.
# https://www.nvidia.com/en-us/data-center/h200/  https://www.nvidia.com/en-us/data-center/h100/
# https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
# https://www.nvidia.com/en-us/data-center/l40s/  https://www.nvidia.com/en-us/data-center/l4/
# https://www.nvidia.com/en-us/data-center/tesla-t4/  https://www.nvidia.com/en-us/data-center/v100/
HOPPER = {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9}
AMPERE = {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}
TABLE = [
    _gpu("H200", r"NVIDIA H200", 141, 4800, 700, **HOPPER),
    _gpu("H100 SXM", r"NVIDIA H100 80GB HBM3", 80, 3350, 700, **HOPPER),
    _gpu(
        "H100 NVL",
        r"NVIDIA H100 NVL",
        94,
        3900,
        400,
        fp32=60.0,
        tf32=417.5,
        bf16=835.5,
        fp16=835.5,
        fp8=1670.5,
    ),
    _gpu(
        "H100 PCIe",
        r"NVIDIA H100 PCIe",
        80,
        2000,
        350,
        fp32=51.2,
        tf32=378.0,
        bf16=756.5,
        fp16=756.5,
        fp8=1513.0,
    ),
    _gpu("A100 SXM 80 GB", r"(NVIDIA )?A100-SXM4-80GB", 80, 2039, 400, **AMPERE),
    _gpu("A100 SXM 40 GB", r"(NVIDIA )?A100-SXM4-40GB", 40, 1555, 400, **AMPERE),
    _gpu("A100 PCIe 80 GB", r"(NVIDIA )?A100 80GB PCIe", 80, 1935, 300, **AMPERE),
    _gpu("A100 PCIe 40 GB", r"(NVIDIA )?A100-PCI[Ee]-40GB", 40, 1555, 250, **AMPERE),
    _gpu("L40S", r"NVIDIA L40S", 48, 864, 350, fp32=91.6, tf32=183.0, bf16=362.0, fp16=362.0, fp8=733.0),
    _gpu("L4", r"NVIDIA L4", 24, 300, 72, fp32=30.3, tf32=60.0, bf16=121.0, fp16=121.0, fp8=242.5),
    _gpu(
        "RTX 4090",
        r"NVIDIA GeForce RTX 4090",
        24,
        1008,
        450,
        fp32=82.6,
        tf32=82.6,
        bf16=165.2,
        fp16=165.2,
        fp8=330.3,
    ),
    _gpu("RTX 3090", r"NVIDIA GeForce RTX 3090", 24, 936, 350, fp32=35.6, tf32=35.6, bf16=71.2, fp16=71.2),
    _gpu("T4", r"(NVIDIA |Tesla )?T4", 16, 320, 70, fp32=8.1, fp16=65.0),
    _gpu("V100 SXM2 32 GB", r"Tesla V100-SXM2-32GB", 32, 900, 300, fp32=15.7, fp16=125.0),
    _gpu("V100 SXM2 16 GB", r"Tesla V100-SXM2-16GB", 16, 900, 300, fp32=15.7, fp16=125.0),
    _gpu("V100 PCIe 32 GB", r"Tesla V100-PCIE-32GB", 32, 900, 250, fp32=14.0, fp16=112.0),
    _gpu("V100 PCIe 16 GB", r"Tesla V100-PCIE-16GB", 16, 900, 250, fp32=14.0, fp16=112.0),
]


def published(name: str) -> Device | None:
    """The device that torch calls so; None when it is not in the table."""
    return next((each for each in TABLE if re.fullmatch(each.pattern, name) and "MIG" not in name), None)


# --- what a user's file says ------------------------------------------------------------------------------


class UserDevice(Section):
    """One device of a user's file. What is left out is the table's, where the name is one of it."""

    name: str = Field(description=f'a name of the table, of your own, or "{HERE}"')
    memory_gb: float | None = Field(default=None, gt=0, description="memory in GB (1e9 bytes)")
    bandwidth_gb: float | None = Field(default=None, gt=0, description="GB a second to and from its memory")
    teraflops: dict[str, float] | None = Field(
        default=None, description="dense matrix products by precision: {fp32: 19.5, bf16: 312}"
    )
    watts: float | None = Field(default=None, gt=0, description="power at full work")
    price_per_hour: float | None = Field(default=None, ge=0, description="what an hour of it costs")


class UserDevices(Section):
    """A file of devices, for `describe --devices`."""

    currency: str = Field(default="", description="of the prices, as it is to be shown: EUR")
    devices: list[UserDevice] = Field(min_length=1, description="devices that are added, or changed")


def read(path: str) -> list[Device]:
    """The table with a user's file over it, the user's own first. ConfigErrors with each error's line."""
    said, document = config.load(path, [], UserDevices)
    made: list[Device] = []
    for index, one in enumerate(said.devices):
        place = document.place(("devices", index))
        if any(_plain(one.name) == _plain(other.name) for other in made):
            raise ConfigError(f"{place}: devices: {one.name!r} stands there twice")
        made.append(_of_user(one, said.currency, place))
    taken = {_plain(each.name) for each in made}
    return made + [each for each in TABLE if _plain(each.name) not in taken]


def over(measured: Device, said: Device | None) -> Device:
    """A measured device with what the user says of it instead."""
    if said is None:
        return measured
    return replace(
        measured,
        memory=said.memory or measured.memory,
        bandwidth=said.bandwidth or measured.bandwidth,
        flops={**measured.flops, **said.flops},
        watts=said.watts or measured.watts,
        price_per_hour=said.price_per_hour,
        currency=said.currency,
    )


PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8")


def _of_user(said: UserDevice, currency: str, place: str) -> Device:
    known = [each for each in TABLE if _plain(each.name) == _plain(said.name)]
    known = known or [each for each in TABLE if re.fullmatch(each.pattern, said.name)]
    here = _plain(said.name) == HERE
    base = known[0] if known else Device(HERE if here else said.name, source="said by you")
    for precision, rate in (said.teraflops or {}).items():
        if precision not in PRECISIONS or not 0 < rate < math.inf:
            raise ConfigError(
                f"{place}: teraflops: {precision}: {rate:g} (a number above 0 for {', '.join(PRECISIONS)})"
            )
    flops = {precision: rate * 1e12 for precision, rate in (said.teraflops or {}).items()}
    made = replace(
        base,
        memory=said.memory_gb * 1e9 if said.memory_gb else base.memory,
        bandwidth=said.bandwidth_gb * 1e9 if said.bandwidth_gb else base.bandwidth,
        flops={**base.flops, **flops},
        watts=said.watts or base.watts,
        price_per_hour=said.price_per_hour,
        currency=currency,
    )
    if not known and not here and not (made.bandwidth and made.flops and made.memory):
        raise ConfigError(
            f"{place}: {said.name!r} is not in the table (`describe --on all` lists it): a device of your "
            "own needs memory_gb, bandwidth_gb and teraflops"
        )
    return made


def find(wanted: list[str], devices: list[Device]) -> list[Device]:
    """The devices of these names or beginnings of names ("H100"), "all" for each. ConfigError for others."""
    found: list[Device] = []
    for name in wanted:
        some = [each for each in devices if _plain(each.name) == _plain(name)]
        some = some or [each for each in devices if each.pattern and re.fullmatch(each.pattern, name)]
        some = some or [each for each in devices if _plain(each.name).startswith(_plain(name)) and name]
        if name == "all":
            some = list(devices)
        if _plain(name) == HERE:  # predicted for anyway
            continue
        some = [each for each in some if each.name != HERE]
        if not some:
            names = [each.name for each in devices if each.name != HERE]
            near = config.suggest(name, [*names, *(each.split()[0] for each in names)])
            raise ConfigError(
                f"--on {name}: no such device{near} (known: {', '.join(names)}); "
                "--devices FILE.yaml adds others: a list "
                "`devices:` with name, memory_gb, bandwidth_gb, teraflops, watts, price_per_hour"
            )
        found += [each for each in some if each not in found]
    return found


def _plain(name: str) -> str:
    """A name without what may be left out."""
    words = re.sub(r"(\d)\s*(gb)\b", r"\1 \2", name.lower()).replace("-", " ").split()
    return " ".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))
