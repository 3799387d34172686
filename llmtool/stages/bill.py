"""What `describe` says of a training's cost: here, on other devices, and how far off it was last time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llmtool.core import console, hardware
from llmtool.core.console import bytes_, number, seconds
from llmtool.core.devices import memory_bytes, resolve_device, resolve_precision
from llmtool.core.hardware import Device
from llmtool.models.adapters import LoRAConfig
from llmtool.stages import cost
from llmtool.stages.describe import Subject
from llmtool.stages.needs import adapted
from llmtool.training import TrainConfig
from llmtool.training.optimizers import NO_RATES

SHOWN = {
    "peak_bytes": ("memory", bytes_),
    "step_seconds": ("a step", seconds),
    "seconds": ("in all", seconds),
}


def bill(
    subject: Subject,
    fit: TrainConfig | None,
    device_name: Any,
    precision_name: Any,
    devices: list[Device],
    wanted: list[str],
) -> dict[str, Any] | None:
    """`cost` of describe.json; None where nothing is trained or the model is not known yet.

    fit: `train` or `finetune` of the file, whose method is applied to a copy of the model. devices: what is
    known, a user's own too. wanted: names of those to predict for.
    """
    if subject.model is None or fit is None:
        return None
    device = resolve_device(device_name)
    method = getattr(fit, "method", None)
    model = adapted(subject.model, method)
    subject = replace(subject, model=model)
    rates = method.rates(model) if isinstance(method, LoRAConfig) else NO_RATES
    precision = resolve_precision(precision_name, device).name
    place = Device(hardware.HERE, kind=device.type, memory=float(memory_bytes(device)))
    work = cost.of_file(subject, fit, place, precision, rates)
    own = next((each for each in devices if each.name == hardware.HERE), None)
    others = []
    for other in hardware.find(wanted, devices):
        name = _precision(precision_name, other)
        others.append(cost.predict(cost.of_file(subject, fit, other, name, rates), other))
    here = cost.predict(work, hardware.over(cost.here(work, device), own), cost.augmentation(work, device))
    return {"here": here, "on": others}


def _precision(name: Any, device: Device) -> str:
    """What `auto` means on a device that is not here."""
    if name != "auto":
        return str(name)
    return "bf16" if device.flops.get("bf16") else "fp32"


# --- for people -------------------------------------------------------------------------------------------


def show(bill: dict[str, Any]) -> Group:
    """The prediction, for here and elsewhere."""
    parts: list[RenderableType] = [Text(), Text("what training takes (a prediction)", style="bold")]
    lines = [bill["here"], *bill["on"]]
    for each in lines:
        parts.append(Text(f"{each['device']}: {_spoken(each)}"))
    if moment := bill["here"]["memory"]:
        shown = ", ".join(
            f"{name} {bytes_(size)}" for name, size in moment.items() if size and name != "total"
        )
        parts.append(
            Text(
                f"memory of {bill['here']['device']}, beside the program's own: {shown}; the largest of "
                "step, scoring and saving counts"
            )
        )
    missing = dict.fromkeys(line for each in lines for line in each["missing"])
    parts += [Text(f"not known: {line}") for line in missing]
    return Group(*parts)


def _spoken(each: dict[str, Any]) -> str:
    words = [f"{each['batch']:,} rows a step"]
    if each["micro_batch"] != each["batch"]:
        words[0] += f", {each['micro_batch']:,} at once"
    words.append(each["precision"])
    if each["peak_bytes"] is not None:
        words.append(f"{bytes_(each['peak_bytes'])} of memory")
    if each["fits"] is not None:
        words[-1] += f" ({'fits' if each['fits'] else 'does not fit'} in {bytes_(each['device_bytes'])})"
    if each["step_seconds"] is not None:
        words.append(f"{seconds(each['step_seconds'])} a step")
    if each["seconds"] is not None:
        steps = "" if each["steps"] is None else f" for {each['steps']:,} steps"
        words.append(f"{seconds(each['seconds'])}{steps}")
    if each["kwh"] is not None:
        words.append(energy(each["kwh"]))
    if each["price"] is not None:
        words.append(money(each["price"], each["currency"]))
    return ", ".join(words)


def energy(kwh: float) -> str:
    """In words: "1.234 kWh", "56.7 Wh"; what is next to nothing as less than something."""
    if kwh >= 0.1:
        return f"{number(kwh)} kWh"
    return f"{1000 * kwh:.1f} Wh" if kwh >= 1e-4 else "less than 0.1 Wh"


def money(price: float, currency: str) -> str:
    """In words: "12.30 EUR"; the price of "12.30" where no currency is said."""
    amount = f"{price:,.2f}" if price >= 0.01 or not price else "less than 0.01"
    return f"{amount} {currency}" if currency else f"a price of {amount}"


def last_lines(last: dict[str, dict[str, Any]]) -> Iterator[str]:
    """How far off predictions were of what is trained; last: section -> `cost` of its result.json."""
    for section, found in last.items():
        words = []
        for name, (what, how) in SHOWN.items():
            before, after = found["predicted"][name], found["actual"][name]
            if before and after is not None:
                words.append(f"{what}: predicted {how(before)}, took {how(after)} ({_off(after / before)})")
        if words:
            yield f"last {section}: " + "; ".join(words)


def _off(ratio: float) -> str:
    """How much more or less it was: "-17 %", "2.5 times", "13 times"."""
    if ratio < 2:
        return f"{100 * (ratio - 1):+.0f} %"
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:,.0f} times"


def table(devices: list[Device]) -> None:
    """What is known of each device, for `--on all`."""
    rows = [
        [
            each.name,
            "" if each.memory is None else bytes_(each.memory),
            "" if each.bandwidth is None else f"{bytes_(each.bandwidth)}/s",
            ""
            if not each.flops
            else " ".join(f"{name} {rate / 1e12:g}" for name, rate in each.flops.items()),
            "" if each.watts is None else f"{each.watts:g} W",
            "" if each.price_per_hour is None else f"{each.price_per_hour:g} {each.currency}".strip(),
        ]
        for each in devices
        if each.name != hardware.HERE
    ]
    console.table(["device", "memory", "bandwidth", "TFLOP/s", "power", "an hour"], rows, "devices")
