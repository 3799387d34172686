"""Where and in which numbers to compute: device, precision, its peak rate, its memory, determinism."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import re
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llmtool.core.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8"]

MEASURING_SECONDS = 0.05


def resolve_device(name: DeviceName) -> torch.device:
    """The device of that name; "auto" is a GPU when there is one. ConfigError when it is absent."""
    if name == "cpu":
        return torch.device("cpu")
    reason = _without_cuda()
    if reason is None:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ConfigError(f"device: cuda was asked for, but {reason}; `device: auto` takes what there is")
    return torch.device("cpu")


def _without_cuda() -> str | None:
    """Why there is no CUDA device; None when there is one."""
    with warnings.catch_warnings(
        record=True
    ) as said:  # torch warns when the driver is too old, and says so best
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without it"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"no device is visible (CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r})"
    return " ".join(str(said[0].message).split()) if said else "no CUDA device was found"


@dataclass(frozen=True)
class Precision:
    """The numbers that a model computes in; its weights stay float32.

    name: what was resolved, never "auto". dtype: what matrix products run in under autocast; None for no
    autocast.
    tf32: whether float32 products may round their inputs to 10 bits of mantissa. scaler: whether gradients
    need scaling. eight: whether training multiplies in eight bits inside the blocks (models.fp8).
    """

    name: str
    dtype: torch.dtype | None
    tf32: bool = False
    scaler: bool = False
    eight: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context for forward passes and losses."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)

    def apply(self) -> None:
        """Set how this process multiplies float32 matrices (a global of torch): in full, or as TF32."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = (
            self.tf32
        )  # torch's default lets convolutions, and only them, use TF32


PRECISIONS = {
    "fp32": Precision("fp32", None),
    "tf32": Precision("tf32", None, tf32=True),
    "bf16": Precision("bf16", torch.bfloat16),
    "fp16": Precision("fp16", torch.float16, scaler=True),
    "fp8": Precision("fp8", torch.bfloat16, eight=True),
}


def resolve_precision(name: PrecisionName, device: torch.device) -> Precision:
    """The precision of that name; "auto" is bf16 on a GPU that has it, else fp32. ConfigError if absent."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        newer = capability >= (8, 0)  # Ampere: the first with bf16 and TF32 units
        if name == "auto":
            return PRECISIONS["bf16" if newer else "fp32"]
        if name in ("bf16", "tf32") and not newer:
            raise ConfigError(
                f"precision: {name} needs a GPU of compute capability 8.0, and "
                f"{describe(device)} has {capability[0]}.{capability[1]}; it can do fp16 and fp32"
            )
        if name == "fp8" and capability < (8, 9):  # Ada: the first with units for it
            raise ConfigError(
                f"precision: fp8 needs a GPU of compute capability 8.9, and {describe(device)} has "
                f"{capability[0]}.{capability[1]}; choose {'bf16' if newer else 'fp16'}"
            )
        return PRECISIONS[name]
    if name == "auto":
        return PRECISIONS["fp32"]
    if name in ("tf32", "fp8"):
        raise ConfigError(f"precision: {name} is a format of NVIDIA GPUs; on the CPU choose fp32 or bf16")
    precision = PRECISIONS[name]
    if precision.dtype is not None and not _cpu_computes_in(precision.dtype):
        raise ConfigError(
            f"precision: this PyTorch ({torch.__version__}) has no {name} on the CPU; choose fp32 or bf16"
        )
    return precision


@functools.cache
def _cpu_computes_in(dtype: torch.dtype) -> bool:
    # older versions warn and go on in float32, some refuse; both are a no
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with torch.autocast("cpu", dtype=dtype):
                weight = torch.ones(2, 2, requires_grad=True)
                product = torch.ones(2, 2) @ weight
            product.float().sum().backward()
        except (RuntimeError, UserWarning):
            return False
        return product.dtype == dtype


# --- what the device can do ---------------------------------------------------------------------------------

# Dense peaks (without sparsity) in TFLOP/s at boost clock, from NVIDIA's documents: data sheets of H200, H100
# (SXM, PCIe, NVL), A100, L4, L40S, T4 and V100; architecture white papers of Ada (RTX 4090) and GA102 (RTX
# 3090), where fp8, fp16 and bf16 accumulate in fp32, as PyTorch's products do. Names in full, as torch.cuda
# (get_device_name) gives them: a MIG slice, a laptop or an export variant is another device and is measured.
PEAKS: list[tuple[str, dict[str, float]]] = [
    (
        r"NVIDIA (H200|H100 80GB HBM3)",
        {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9},
    ),
    (r"NVIDIA H100 NVL", {"fp32": 60.0, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5, "fp8": 1670.5}),
    (r"NVIDIA H100 PCIe", {"fp32": 51.2, "tf32": 378.0, "bf16": 756.5, "fp16": 756.5, "fp8": 1513.0}),
    (r"(NVIDIA )?A100[- ].*", {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}),
    (r"NVIDIA L40S", {"fp32": 91.6, "tf32": 183.0, "bf16": 362.0, "fp16": 362.0, "fp8": 733.0}),
    (r"NVIDIA L4", {"fp32": 30.3, "tf32": 60.0, "bf16": 121.0, "fp16": 121.0, "fp8": 242.5}),
    (r"NVIDIA GeForce RTX 4090", {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2, "fp8": 330.3}),
    (r"NVIDIA GeForce RTX 3090", {"fp32": 35.6, "tf32": 35.6, "bf16": 71.2, "fp16": 71.2}),
    (r"Tesla T4", {"fp32": 8.1, "fp16": 65.0}),
    (r"Tesla V100-SXM2.*", {"fp32": 15.7, "fp16": 125.0}),
    (r"Tesla V100-PCIE.*", {"fp32": 14.0, "fp16": 112.0}),
]


def peak_flops(device: torch.device, precision: Precision) -> tuple[float, str]:
    """The most floating-point operations a second this device does in this precision, and where the figure is
    from.

    NVIDIA's dense peak for a GPU in the table; otherwise (CPUs always) the best of a short matrix product,
    timed once.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (published := published_peak(name, precision.name)) is not None:
            return published, f"NVIDIA's dense {precision.name} peak of {name}"
    return _measured_peak(device, precision), f"measured here with a matrix product in {precision.name}"


def published_peak(name: str, precision: str) -> float | None:
    """FLOP/s from the table for a GPU name; None when it is not there."""
    for pattern, peaks in PEAKS:
        if re.fullmatch(pattern, name) and "MIG" not in name:
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


@functools.cache
def _measured_peak(device: torch.device, precision: Precision) -> float:
    size = 4096 if device.type == "cuda" else 512
    dtype = precision.dtype or torch.float32
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)  # no random stream is touched
    b = a.clone()
    torch.mm(a, b)
    synchronize(device)
    best = float("inf")
    end = time.perf_counter() + MEASURING_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def memory_bytes(device: torch.device) -> int:
    """Bytes of memory on the device; for the CPU the machine's, or what our control group may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not Linux, no control group, or "max"
            total = min(total, int(Path(limit).read_text()))
    return total


def describe(device: torch.device) -> str:
    """The device in words: "NVIDIA H200" or "CPU (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def release_memory() -> None:
    """Hand back to the system what this process has freed; glibc keeps pieces of up to 32 MB for itself."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def recover_memory() -> None:
    """Free what an operation that ran out of memory has left behind, on the GPU too."""
    gc.collect()  # frames and tensors that hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    release_memory()


# --- how it behaves -----------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_determinism(deterministic: bool) -> None:
    """Choose, for this process, operations that give the same bits every time, at some cost in speed on GPUs.

    Call before the first CUDA operation: cuBLAS reads its setting when it starts. An operation that has no
    such form raises RuntimeError.
    """
    if deterministic:
        # https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports the compiler: 0.9 s
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that device or machine have no memory left, in any of torch's ways."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
