"""Device and precision choice, peaks and memory of core/devices.py."""

import os
import platform
import subprocess
import sys
import warnings

import pytest
import torch

from llmtool.core import devices
from llmtool.core.devices import PRECISIONS, resolve_device, resolve_precision
from llmtool.core.errors import ConfigError

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is only claimed: (name, compute capability)."""

    def claim(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        return torch.device("cuda", 0)

    return claim


@without_cuda
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device: cuda was asked for, but"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=''"):
        resolve_device("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def old_driver():
        warnings.warn("CUDA initialization: the driver is\n too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="but CUDA initialization: the driver is too old"):
        resolve_device("cuda")


def test_auto_takes_the_gpu_and_its_best_precision(gpu):
    device = gpu("NVIDIA H200", (9, 0))
    assert resolve_device("auto") == resolve_device("cuda") == device
    assert resolve_precision("auto", device).name == "bf16"
    assert resolve_precision("fp16", device).scaler
    old = gpu("Tesla T4", (7, 5))
    assert resolve_precision("auto", old).name == "fp32"
    assert resolve_precision("fp16", old).dtype == torch.float16
    for name in ("bf16", "tf32"):
        with pytest.raises(ConfigError, match=rf"precision: {name} needs .* Tesla T4 has 7\.5"):
            resolve_precision(name, old)
    with pytest.raises(ConfigError, match=r"fp8 needs .* 8\.9, and Tesla T4 has 7\.5; choose fp16"):
        resolve_precision("fp8", old)
    with pytest.raises(ConfigError, match=r"A100-SXM4-80GB has 8\.0; choose bf16"):
        resolve_precision("fp8", gpu("NVIDIA A100-SXM4-80GB", (8, 0)))
    eight = resolve_precision("fp8", gpu("NVIDIA L4", (8, 9)))
    assert (eight.eight, eight.dtype) == (True, torch.bfloat16)


def test_precisions_of_the_cpu(monkeypatch):
    assert resolve_precision("auto", CPU) == resolve_precision("fp32", CPU) == PRECISIONS["fp32"]
    for name in ("tf32", "fp8"):
        with pytest.raises(ConfigError, match=f"{name} is a format of NVIDIA GPUs"):
            resolve_precision(name, CPU)
    a = torch.ones(4, 4)
    with resolve_precision("fp32", CPU).autocast(CPU):
        assert (a @ a).dtype == torch.float32
    with resolve_precision("bf16", CPU).autocast(CPU):
        assert (a @ a).dtype == torch.bfloat16
    monkeypatch.setattr(devices, "_cpu_computes_in", lambda dtype: False)
    with pytest.raises(ConfigError, match="has no fp16 on the CPU"):
        resolve_precision("fp16", CPU)


def test_support_on_the_cpu_is_found_by_trying():
    assert devices._cpu_computes_in(torch.bfloat16)
    assert not devices._cpu_computes_in(torch.int8)


def test_apply_sets_float32_products():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        PRECISIONS["tf32"].apply()
        assert torch.get_float32_matmul_precision() == "high"
        PRECISIONS["fp32"].apply()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H200", "fp8", 1978.9),
        ("Tesla T4", "fp8", None),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("A100-SXM4-40GB", "tf32", 156.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 3090", "fp32", 35.6),
        ("Tesla T4", "fp16", 65.0),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("NVIDIA H200 MIG 1g.18gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("AMD Instinct MI300X", "bf16", None),
    ],
)
def test_published_peaks_go_by_the_whole_name(name, precision, teraflops):
    found = devices.published_peak(name, precision)
    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_the_peak_of_a_known_gpu_is_published_and_of_the_cpu_measured(gpu):
    flops, source = devices.peak_flops(gpu("NVIDIA H200", (9, 0)), PRECISIONS["bf16"])
    assert (flops, source) == (pytest.approx(989.4e12), "NVIDIA's dense bf16 peak of NVIDIA H200")
    state = torch.get_rng_state()
    flops, source = devices.peak_flops(CPU, PRECISIONS["fp32"])
    assert 1e8 < flops < 1e15
    assert source == "measured here with a matrix product in fp32"
    assert devices.peak_flops(CPU, PRECISIONS["fp32"])[0] == flops, "measured once"
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_of_the_cpu(monkeypatch, tmp_path):
    total = devices.memory_bytes(CPU)
    assert 2**28 < total < 2**46
    monkeypatch.setattr(devices, "GROUPS", tmp_path)
    monkeypatch.setattr(devices, "OWN_GROUPS", own := tmp_path / "own")
    assert devices.memory_bytes(CPU) >= total  # no control groups
    (tmp_path / "memory.max").write_text("3000000\n")  # a container's
    assert devices.memory_bytes(CPU) == 3_000_000
    (job := tmp_path / "slurm/job_7/step_0").mkdir(parents=True)
    own.write_text("0::/slurm/job_7/step_0\n")
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("1000000\n")  # the tightest is in between
    assert devices.memory_bytes(CPU) == 1_000_000
    (tmp_path / "memory/user").mkdir(parents=True)
    own.write_text("5:cpu,memory:/user\n4:cpuset:/\n1:name=systemd:/a:b\n")
    (tmp_path / "memory/user/memory.limit_in_bytes").write_text("2000000\n")  # version 1
    assert devices.memory_bytes(CPU) == 2_000_000


def test_determinism_is_set_and_unset(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        devices.set_determinism(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        devices.set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_out_of_memory_is_recognised_in_all_its_forms():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert devices.is_out_of_memory(caught.value)
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert devices.is_out_of_memory(MemoryError())
    assert devices.is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    )
    assert not devices.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))


def test_words_for_the_device():
    assert devices.describe(CPU) == f"CPU ({torch.get_num_threads()} threads)"
    devices.synchronize(CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_real_gpu():
    device = resolve_device("auto")
    assert device.type == "cuda"
    a = torch.randn(1024, 1024, device=device)
    exact = a.double() @ a.double()

    def error():
        return ((a @ a).double() - exact).abs().max().item()

    before = torch.get_float32_matmul_precision()
    try:
        PRECISIONS["fp32"].apply()
        full = error()
        if torch.cuda.get_device_capability(device) >= (8, 0):
            resolve_precision("tf32", device).apply()
            assert error() > 10 * full
            with resolve_precision("bf16", device).autocast(device):
                assert (a @ a).dtype == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision(before)
    measured = devices._measured_peak(device, PRECISIONS["fp32"])
    assert measured > 1e12
    published, _ = devices.peak_flops(device, PRECISIONS["fp32"])
    assert measured < 1.1 * published
    assert devices.memory_bytes(device) > 2**30
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2 * devices.memory_bytes(device), dtype=torch.uint8, device=device)
    assert devices.is_out_of_memory(caught.value)


def test_an_optimizer_multiplies_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 where that was asked for: the same training on several devices differs by rounding alone."""
    for units in (True, False):
        monkeypatch.setattr(devices, "multiplies_bf16", lambda kind, units=units: units)
        for precision in ("fp32", "tf32", "bf16", "fp16", "fp8"):
            few = units and precision not in ("fp32", "tf32")
            assert devices.products_in(precision, "cpu") == (torch.bfloat16 if few else torch.float32)


PASSES = """
import resource, sys, torch
from llmtool.core import devices
if sys.argv[1] == "keep":
    devices.keep_memory(torch.device("cpu"))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**21) for _ in range(16)]  # 128 MB in pieces of 8 MB
    while tensors:
        tensors.pop()
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = int(open("/proc/self/statm").read().split()[1])
devices.release_memory()
print(pages, held - int(open("/proc/self/statm").read().split()[1]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_a_step_frees_is_kept_for_the_next_one_until_it_is_released() -> None:
    def run(how: str) -> tuple[int, int]:
        # each piece from the system, and back to it: what glibc does by itself hangs on what lies above them
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
        command = [sys.executable, "-c", PASSES, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        pages, released = map(int, done.stdout.split())
        return pages, released

    pages, released = run("keep")
    assert pages < run("leave")[0] / 10  # which is given all 32,768 pages again, where they are of 4 kB
    assert released > 30_000
