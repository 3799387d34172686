"""What a result depends on besides its config and its data: our code, packages, machine, variables."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

import llmtool

PACKAGES = ("torch", "numpy", "pandas", "scikit-learn", "safetensors", "tokenizers", "pydantic")
# an allow-list: tokens and passwords live in the environment too
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "RANK",
    "WORLD_SIZE",
    "SLURM_JOB_ID",
)


@functools.cache
def code_version() -> str:
    """llmtool's version and a hash of its own sources: "0.1.0+3f2a90c1d4e5b687"."""
    package = Path(llmtool.__file__).parent
    digest = xxhash.xxh3_64()
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return f"{llmtool.__version__}+{digest.hexdigest()}"


def processors() -> int:
    """How many this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def other_packages(versions: Mapping[str, Any]) -> list[str]:
    """Packages that an earlier `environment()` had in another version: "torch 2.6.0 (here 2.7.1)"."""
    said = []
    for name, version in (versions.get("packages") or {}).items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if name in PACKAGES and (here := importlib.metadata.version(name)) != version:
                said.append(f"{name} {version} (here {here})")
    return said


def environment() -> dict[str, Any]:
    """Versions, machine and the environment variables that can change a result; loads no library."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    torch = sys.modules.get("torch")  # a command that used the device has loaded it
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else None
    return {
        "llmtool": code_version(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "cpus": processors(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "gpu": gpu,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
