"""Where and in which numbers to compute: device, precision, its peak rate, its memory, determinism."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from llmtool.core import hardware, products
from llmtool.core.errors import ConfigError

T = TypeVar("T")
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8"]

MEASURING_SECONDS = 0.05
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # https://man7.org/linux/man-pages/man3/mallopt.3.html
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux's control groups


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
    # torch warns when the driver is too old, and says so best
    with warnings.catch_warnings(record=True) as said:
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
        # torch's default lets convolutions, and only them, use TF32
        torch.backends.cudnn.allow_tf32 = self.tf32


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
def multiplies_bf16(kind: str) -> bool:
    """Whether devices of this kind ("cpu", "cuda") have units for products in bfloat16: GPUs do, and CPUs
    with AMX or AVX512-BF16. Others compute in it at a small part of float32's speed."""
    asked = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("amx_tile", "avx512_bf16"))
    return kind == "cuda" or any(ask() for ask in asked if ask is not None)


def products_in(precision: str, kind: str) -> torch.dtype:
    """What an optimizer's matrix products are computed in, of which few bits matter: as the model's are.

    precision: resolved, never "auto". kind: "cpu" or "cuda".
    """
    full = precision in ("fp32", "tf32") or not multiplies_bf16(kind)
    return torch.float32 if full else torch.bfloat16


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
    found = hardware.published(name)
    return found.flops.get(precision) if found else None


@functools.cache
def _measured_peak(device: torch.device, precision: Precision, threads: int = 0) -> float:
    return _measured_rate(device, precision.dtype or torch.float32, products.product)


def _measured_rate(
    device: torch.device, dtype: torch.dtype, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> float:
    size = 4096 if device.type == "cuda" else 512
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)  # no random stream is touched
    b = a.clone()
    return 2 * size**3 / fastest(device, lambda: multiply(a, b))


def fastest(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    work()
    synchronize(device)
    best = float("inf")
    end = time.perf_counter() + MEASURING_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def figures(device: torch.device, precision: Precision) -> hardware.Device:
    """This device in figures: a GPU of the table as published, all else measured for a fifth of a second.

    Of a CPU they hold for as many threads as torch has now.
    """
    memory = float(memory_bytes(device))
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (known := hardware.published(name)) is not None:
            return replace(known, memory=memory)
    return replace(_measured(device, precision, torch.get_num_threads()), memory=memory)


@functools.cache
def _measured(device: torch.device, precision: Precision, threads: int) -> hardware.Device:
    flops = {precision.name: _measured_peak(device, precision, threads)}
    for name in ("fp32", "bf16"):  # Muon computes in bf16 where there are units for it
        flops.setdefault(name, _measured_peak(device, PRECISIONS[name], threads))
    x = torch.full((16 * 2**20,), 0.5, device=device)  # 64 MB: more than most caches hold
    y = torch.empty_like(x)
    bandwidth = 2 * x.nbytes / fastest(device, lambda: y.copy_(x))
    curves = call = small = None
    if device.type == "cpu":
        if products.HERE:  # else all of them are PyTorch's
            small = _measured_rate(device, torch.float32, torch.mm)
        curves = x.numel() / fastest(device, lambda: torch.exp(x, out=y))
        one = torch.ones(4)
        call = fastest(device, lambda: [one + one for _ in range(100)]) / 100
    return hardware.Device(
        hardware.HERE,
        kind=device.type,
        bandwidth=bandwidth,
        flops=flops,
        curves=curves,
        call=call,
        small=small,
        source=f"measured here, {describe(device)}",
    )


def memory_bytes(device: torch.device) -> int:
    """Bytes of memory on the device; for the CPU the machine's, or what our control groups may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _limits():
        with contextlib.suppress(OSError, ValueError):  # not Linux, no control group, or "max"
            total = min(total, int(limit.read_text()))
    return total


def _limits() -> Iterator[Path]:
    """Files that may limit our memory: of the control group that we are in (a job's, a service's) and of each
    above it, up to the machine's or the container's; of version 2 and of version 1
    (https://man7.org/linux/man-pages/man7/cgroups.7.html)."""
    own = ["0::/", "0:memory:/"]  # where nothing says which group we are in
    with contextlib.suppress(OSError):
        own += OWN_GROUPS.read_text().splitlines()
    for line in own:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        group = (GROUPS / "memory" if kinds else GROUPS) / path.lstrip("/")
        for place in (group, *group.parents):
            yield place / ("memory.limit_in_bytes" if kinds else "memory.max")


def describe(device: torch.device) -> str:
    """The device in words: "NVIDIA H200" or "CPU (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def keep_memory(device: torch.device) -> None:
    """Have the C library keep what a step on a CPU frees for the next one, until `release_memory`.

    glibc hands it back to the system wherever 64 MB of it lie together, and the next step is given it again
    page by page, filled with zeros: compiled steps of peers/'s settings took 1.04 to 1.3 times as long.
    """
    if device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most there is; unset it would stay at 128 kB now
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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


def set_up(device: torch.device, precision: Precision, deterministic: bool) -> None:
    """Set what holds for this whole process, before a model computes on the device."""
    precision.apply()
    set_determinism(deterministic)
    keep_memory(device)


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


def within_memory(work: Callable[..., T], *given: Any) -> T | None:
    """What the work gives, or None where memory ran out. What did not fit is let go by then: inside an
    `except` its traceback would hold it."""
    try:
        return work(*given)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    recover_memory()
    return None
