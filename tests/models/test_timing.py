"""The model of time: more work takes longer, and each kind of work is paid for where the device is slow."""

from dataclasses import replace

import pytest

from llmtool.core.hardware import TABLE, Device
from llmtool.models.timing import forward_seconds, kilowatt_hours, price, step_seconds
from llmtool.models.tracing import Operation, Trace

CPU = Device("a cpu", kind="cpu", bandwidth=1e10, flops={"fp32": 1e11}, curves=1e9, call=1e-6)
GPU = next(each for each in TABLE if each.name == "H200")
PRODUCT = Operation("mm", "matrix", 10**9, 10**6, 10**5, "forward")
BACKWARD = replace(PRODUCT, flops=2 * 10**9, part="backward")
UPDATE = Operation("_fused_adamw_", "plain", 0, 10**8, 10**7, "update")


def seconds(*operations, device=CPU, precision="fp32", **keys):
    return step_seconds(Trace(list(operations)), device, precision, **keys)


def test_products_take_their_flops_and_updates_their_bytes():
    assert seconds(PRODUCT) == pytest.approx(1e9 / 0.7e11, rel=0.05)
    assert seconds(UPDATE) == pytest.approx(0.01, rel=0.01)
    step = seconds(PRODUCT, BACKWARD, UPDATE)
    assert seconds(PRODUCT, BACKWARD, UPDATE, micro_batches=4) - step == pytest.approx(
        3 * seconds(PRODUCT, BACKWARD)
    )
    assert forward_seconds(Trace([PRODUCT, BACKWARD, UPDATE]), CPU, "fp32") == pytest.approx(seconds(PRODUCT))


def test_small_products_are_slower_for_their_bytes_and_calls():
    small = replace(PRODUCT, flops=10**5, moved=10**5)
    assert seconds(*[small] * 100) > 5 * 100 * 10**5 / 1e11


def test_attention_and_small_products_may_have_a_lower_rate():
    slow = replace(CPU, small=1e10)
    tiny = replace(PRODUCT, flops=10**6)
    for each, share in ((tiny, 0.7), (replace(PRODUCT, kind="attention"), 1.4)):
        more = seconds(each, device=slow) - seconds(each)
        assert more == pytest.approx(each.flops * 9e-11 / share, rel=0.01)
    for each in (PRODUCT, replace(tiny, kind="convolution"), replace(tiny, itemsize=2)):
        assert seconds(each, device=slow) == seconds(each)


def test_a_precision_has_its_own_rate_and_an_unknown_one_that_of_fp32():
    half = replace(PRODUCT, flops=10**13, itemsize=2)
    assert seconds(half, device=GPU, precision="bf16") == pytest.approx(1e13 / (0.8 * 989.4e12), rel=0.01)
    whole = replace(half, itemsize=4)
    assert seconds(whole, device=GPU, precision="tf32") < seconds(whole, device=GPU) / 5
    assert seconds(half, precision="bf16") == seconds(whole)


def test_a_gpu_waits_for_the_host_where_the_work_is_small():
    tiny = replace(PRODUCT, flops=10, moved=10)
    eager, compiled = (
        seconds(*[tiny] * 10, *[replace(tiny, flops=0)] * 1000, device=GPU, compiled=graph)
        for graph in (False, True)
    )
    assert eager == pytest.approx(1010 * 7e-6)
    assert compiled < eager / 2


def test_curves_noise_and_attention_cost_a_cpu_more_than_their_bytes():
    plain = Operation("add", "plain", 0, 8 * 10**5, 10**5, "forward")
    curve, noise = replace(plain, kind="curve"), replace(plain, kind="noise")
    assert seconds(plain) < seconds(curve) < seconds(noise)
    attention = replace(PRODUCT, kind="attention", numbers=10**8)
    assert seconds(attention) > 10 * seconds(PRODUCT)


def test_what_a_device_does_not_say_is_not_made_up():
    assert seconds(PRODUCT, device=replace(GPU, flops={})) is None
    assert seconds(PRODUCT, device=replace(GPU, bandwidth=None)) is None
    assert kilowatt_hours(3600, GPU) == pytest.approx(0.7)
    assert kilowatt_hours(3600, CPU) is None
    assert price(1800, replace(GPU, price_per_hour=3.0)) == pytest.approx(1.5)
    assert price(1800, GPU) is None
