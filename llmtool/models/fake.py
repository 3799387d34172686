"""Tensors that have shapes and no data, and what torch loads with the first of them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def fake_tensors() -> FakeTensorMode:
    """Within it tensors have no data."""
    loaded()
    return FakeTensorMode()


@functools.cache
def loaded() -> int:
    """Bytes that this process holds from now on because torch loads its compiler with the first fake tensor,
    some 70 MB; 0 where the system does not say."""
    before = _held()
    with FakeTensorMode():
        torch.empty(1)
    return max(0, _held() - before)


def _held() -> int:
    """Bytes in memory that belong to no file."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:  # not Linux
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
