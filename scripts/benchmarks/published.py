"""Figures of others that scaling.py stands on, each with its place; and what we have measured elsewhere."""

from __future__ import annotations

LLAMA = "https://arxiv.org/abs/2407.21783"
TITAN = "https://github.com/pytorch/torchtitan/blob/b5bcd76/benchmarks"
CARD = "https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/MODEL_CARD.md"
DGX = "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"
UPTIME = "https://journal.uptimeinstitute.com/large-data-centers-are-mostly-more-efficient-analysis-confirms/"
PRICES = "https://costnimbus.com/article/gpu-cost-management-ml-teams"
FSDP, TENSOR = "llama3_h100_202412_torchtitan.md", "asyncTP_llama3_h100_2025-06_torchtitan.md"
MEGASCALE = "https://arxiv.org/abs/2402.15627, section 3.5"
NCCL = "https://github.com/NVIDIA/nccl/blob/5067397/src/graph/tuning.cc"

PUBLISHED = {  # name: value, what it is, where it stands
    "8B hours": (1.46e6, "H100 hours of Llama 3.1 8B, about 15 T tokens", CARD),
    "70B hours": (7.0e6, "H100 hours of Llama 3.1 70B, about 15 T tokens", CARD),
    "8B on 8": (6667, "tokens/s a GPU, 8 B, FSDP + compile, bf16, 8 H100 at 500 W", f"{TITAN}/{FSDP}"),
    "8B on 128": (6514, "the same on 128", f"{TITAN}/{FSDP}"),
    "70B on 256": (597.3, "tokens/s a GPU, 70 B, FSDP 32 x tensor 8, 256 H100 at 500 W", f"{TITAN}/{TENSOR}"),
    "70B on 256, async": (652.4, "the same, sums of tensor ranks beside the products", f"{TITAN}/{TENSOR}"),
    "flops 8192": (430e12, "FLOP/s a GPU, 405 B on 8,192 H100", f"{LLAMA}, table 4"),
    "flops 16384": (400e12, "the same on 16,384, in the same batch", f"{LLAMA}, table 4"),
    "batch": (2**24, "tokens of a batch (16 Mi)", f"{LLAMA}, table 4"),
    "failures": (419, "unexpected interruptions in 54 days on 16,384 GPUs", f"{LLAMA}, section 3.3.4"),
    "storage": (2e12, "bytes/s that a file system of 7,500 servers sustains", f"{LLAMA}, section 3.3.1"),
    "network": (50e9, "bytes/s of a GPU's own link (400 Gb/s) between machines", f"{LLAMA}, section 3.3.1"),
    "nvlink": (450e9, "bytes/s of a GPU inside a machine (NVLink, one way)", "https://www.nvidia.com/en-us/data-center/h100/"),
    "network hop": (14e-6, "seconds a hop of a ring between machines, NCCL's own model", NCCL),
    "nvlink hop": (3.4e-6, "the same inside a machine", NCCL),
    "start-up": (1047, "seconds until 2,048 ranks had met; below 30 for 10,000 after work on it", MEGASCALE),
    "kW, least": (0.7, "a GPU, as the model card counts it", CARD),
    "kW, most": (10.2 / 8, "an eighth of a machine at its maximum (10.2 kW)", DGX),
    "cores": (112, "of the CPUs of such a machine", DGX),
    "PUE, least": (1.09, "energy of a data centre over that of its machines, Google's mean", "https://datacenters.google/efficiency"),
    "PUE, most": (1.58, "the same, the industry's mean of 2023", UPTIME),
    "$, least": (1.49, "dollars an H100 hour, March 2026, market place", PRICES),
    "$, most": (6.98, "the same, on demand at a large cloud", PRICES),
    "matrix": (790e12, "FLOP/s of one H200 in bf16 products of 8192 x 8192", "measured by us, no file here"),
    "copies": (4.3e12, "bytes/s of its memory", "measured by us, no file here"),
    "open files": (1024, "files that a process may open unless told otherwise", "systemd's default"),
}  # fmt: skip


def published(name: str) -> float:
    """A figure of others."""
    return float(PUBLISHED[name][0])
