"""How long a traced step takes on a device, and what it costs: one model of time for every forecast."""

from __future__ import annotations

from collections.abc import Iterable

from llmtool.core.hardware import Device
from llmtool.core.products import SMALLEST
from llmtool.models.tracing import Operation, Trace

SHARE = {"cpu": 0.7, "cuda": 0.8}  # of the matrix rate that large products reach; H200: 790 of 989 TFLOP/s
# of a CPU's attention (over 1: all of the square is counted, and half of it left out) and of its convolutions
OTHER_SHARES = {("cpu", "attention"): 1.4, ("cpu", "convolution"): 0.5}
REACHED_BANDWIDTH = {"cpu": 1.0, "cuda": 0.85}  # of the bandwidth; H200: 4.3 of 4.8 TB/s copied, and less
CALLS = {"cpu": 3.0, "cuda": 0.0}  # an operation of a model costs so many of the plainest ones, by Python
LAUNCH = 7e-6  # seconds in which a host gives a GPU one operation of an eager model
GRAPHED = 1.5e-6  # the same between two operations of a recorded CUDA graph
NOISE = 5.0  # exponentials that a random number costs on a CPU
PAIRS = 2.0  # exponentials that a pair of tokens costs in a CPU's attention, beside its products
FUSED = 0.4  # of the bytes and calls beside products that are left when a graph is compiled
CURVES_PER_FLOP = 1 / 116  # exponentials a second of a CPU over its matrix rate, where only that is said
PLAIN_CALL = 2e-6  # seconds of the plainest operation of a CPU, where it is not measured


def step_seconds(
    trace: Trace, device: Device, precision: str, micro_batches: int = 1, compiled: bool | str = False
) -> float | None:
    """Seconds of an optimizer step of so many micro-batches; None where the device's figures do not say.

    Operations run one after another. Each takes the time of its products (its FLOPs over a share of the
    device's matrix rate in the precision of its result) and the time of its bytes (read and written, over the
    bandwidth), which small products pay for too: this is why they are slower. On a CPU attention and small
    products may have a lower rate (core.products), functions like exp cost a number each, attention some for
    each pair of tokens, and Python calls some microseconds an operation. On a GPU the host's calls overlap
    the work: whichever takes longer counts. A compiled graph keeps numbers between products in registers:
    FUSED of the other bytes and calls are left. What a step does beside (fetching rows, clipping) is not in
    it.
    """
    if not device.bandwidth or not _rate(device, precision, 4):
        return None
    again = [each for each in trace.operations if each.part != "update"]
    once = [each for each in trace.operations if each.part == "update"]
    each_time, update = (_seconds(part, device, precision, compiled) for part in (again, once))
    return micro_batches * each_time + update


def forward_seconds(trace: Trace, device: Device, precision: str) -> float:
    """Seconds of a micro-batch's forward pass alone, as in validation."""
    return _seconds([each for each in trace.operations if each.part == "forward"], device, precision, False)


def _seconds(operations: Iterable[Operation], device: Device, precision: str, compiled: bool | str) -> float:
    assert device.bandwidth is not None
    work, calls = 0.0, 0.0
    for each in operations:
        left = FUSED if compiled and not each.flops else 1.0
        work += left * _work(each, device, precision)
        calls += left
    if device.kind == "cuda":
        return max(work, calls * (GRAPHED if compiled == "graphs" else LAUNCH))
    return work + calls * CALLS["cpu"] * (device.call or PLAIN_CALL)


def _work(each: Operation, device: Device, precision: str) -> float:
    """Seconds of the device's own work on one operation."""
    assert device.bandwidth is not None
    rate = _rate(device, precision, each.itemsize)
    small = each.kind == "attention" or (each.kind == "matrix" and each.flops < 2 * SMALLEST)
    if small and device.small and each.itemsize == 4:
        rate = min(rate, device.small)
    share = OTHER_SHARES.get((device.kind, each.kind), SHARE[device.kind])
    products = each.flops / (share * rate) if each.flops else 0.0
    bytes_ = each.moved / (REACHED_BANDWIDTH[device.kind] * device.bandwidth)
    if device.kind == "cuda":
        return products + bytes_
    curves = device.curves or _rate(device, "fp32", 4) * CURVES_PER_FLOP
    if each.kind == "attention":
        return products + bytes_ + PAIRS * each.numbers / curves
    if each.kind == "noise":
        return max(NOISE * each.numbers / curves, bytes_)
    if each.kind == "curve":
        return max(each.numbers / curves, bytes_)
    return products + bytes_


def _rate(device: Device, precision: str, itemsize: int) -> float:
    """FLOP/s of products whose numbers have so many bytes; that of fp32 where no other is known."""
    halves = precision if precision in ("bf16", "fp16") else "bf16"
    wanted = halves if itemsize == 2 else "tf32" if precision == "tf32" else "fp32"
    return device.flops.get(wanted) or device.flops.get("fp32", 0.0)


def kilowatt_hours(seconds: float, device: Device) -> float | None:
    """Energy of so long a run at the board's full power; None where that is not known."""
    return None if device.watts is None else device.watts * seconds / 3.6e6


def price(seconds: float, device: Device) -> float | None:
    """What so long a run costs, in the currency of the device; None where no price is said."""
    return None if device.price_per_hour is None else device.price_per_hour * seconds / 3600
