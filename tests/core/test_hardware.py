"""Devices by name: the published table, names that mean them, and what a user's file says over it."""

import pytest

from llmtool.core import hardware
from llmtool.core.errors import ConfigError


def written(tmp_path, text):
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    return str(path)


def test_every_device_of_the_table_says_memory_bandwidth_power_and_fp32():
    names = [each.name for each in hardware.TABLE]
    assert len(set(names)) == len(names)
    for each in hardware.TABLE:
        assert all((each.memory, each.bandwidth, each.watts, each.flops["fp32"])), each.name
        assert each.price_per_hour is None, "nobody publishes a price that lasts"
        assert all(1e12 < rate < 1e16 for rate in each.flops.values())
        assert 1e11 < each.bandwidth < 1e13


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("H200", ["H200"]),
        ("NVIDIA H200", ["H200"]),
        ("nvidia h100", ["H100 SXM", "H100 NVL", "H100 PCIe"]),
        ("NVIDIA H100 80GB HBM3", ["H100 SXM"]),
        ("A100 SXM 80GB", ["A100 SXM 80 GB"]),
        ("L4", ["L4"]),
        ("geforce rtx 4090", ["RTX 4090"]),
    ],
)
def test_a_name_or_the_beginning_of_one_finds_devices(asked, names):
    assert [each.name for each in hardware.find([asked], hardware.TABLE)] == names


def test_all_finds_each_once_and_an_unknown_name_says_which_there_are():
    assert hardware.find(["L4", "all"], hardware.TABLE)[0].name == "L4"
    assert len(hardware.find(["L4", "all"], hardware.TABLE)) == len(hardware.TABLE)
    with pytest.raises(ConfigError, match=r"--on Gaudi: no such device \(known: H200, .*--devices"):
        hardware.find(["Gaudi"], hardware.TABLE)
    with pytest.raises(ConfigError, match="no such device"):
        hardware.find([""], hardware.TABLE)
    with pytest.raises(ConfigError, match='no such device; did you mean "RTX 4090"'):
        hardware.find(["RTX 409O"], hardware.TABLE)
    with pytest.raises(ConfigError, match='no such device; did you mean "H100"'):
        hardware.find(["H1000"], hardware.TABLE)
    assert hardware.find(["this machine"], hardware.TABLE) == [], "it is predicted for anyway"


def test_a_file_adds_devices_and_changes_those_of_the_table(tmp_path):
    devices = hardware.read(
        written(
            tmp_path,
            "currency: EUR\ndevices:\n"
            "  - {name: H100 SXM, price_per_hour: 2.5}\n"
            "  - {name: mine, memory_gb: 24, bandwidth_gb: 500, teraflops: {fp32: 30}, watts: 200}\n"
            "  - {name: this machine, watts: 90}\n",
        )
    )
    known = {each.name: each for each in devices}
    assert len(devices) == len(hardware.TABLE) + 2
    assert (known["H100 SXM"].price_per_hour, known["H100 SXM"].currency) == (2.5, "EUR")
    assert known["H100 SXM"].watts == 700
    assert (known["mine"].memory, known["mine"].flops) == (24e9, {"fp32": 30e12})
    here = hardware.over(hardware.Device("this machine", kind="cpu", bandwidth=1e10), known["this machine"])
    assert (here.watts, here.bandwidth, here.kind) == (90, 1e10, "cpu")
    assert "this machine" not in [each.name for each in hardware.find(["all"], devices)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("devices:\n  - {name: x}\n", r"devices.yaml:2:5: 'x' is not in the table .*needs memory_gb"),
        ("devices:\n  - {name: L4, prize_per_hour: 1}\n", r"2:16.*prize_per_hour.*price_per_hour"),
        ("devices:\n  - {name: L4, watts: -1}\n", r"devices.yaml:2:16.*watts"),
        ("devices:\n  - {name: L4}\n  - {name: NVIDIA L4}\n", r"devices.yaml:3:5.*stands there twice"),
        (
            "devices:\n  - {name: L4, teraflops: {fp23: 1}}\n",
            r"devices.yaml:2:5: teraflops: fp23: 1 .*fp32, tf32",
        ),
        (
            "devices:\n  - {name: L4, teraflops: {fp32: .nan}}\n",
            r"2:5: teraflops: fp32: nan|2:\d+.*teraflops",
        ),
        ("devices: []\n", "devices"),
    ],
)
def test_errors_of_a_file_name_their_place(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        hardware.read(written(tmp_path, text))
