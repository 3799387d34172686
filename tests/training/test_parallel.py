"""The key `devices:` and the section `parallel:`: what they accept, and what they come to on this machine."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from llmtool.core import config
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError
from llmtool.training.parallel import Devices, ParallelConfig, asked, found, kind_of


class File(Section):
    devices: Devices = "auto"
    parallel: ParallelConfig = ParallelConfig()


def read(text: str) -> File:
    return config.validate(config.parse(text, "a.yaml"), File)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four GPUs, as far as counting goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", (None, None)), ("3", (None, 3)), ("cpu:2", ("cpu", 2)), ("cuda:16", ("cuda", 16))],
)
def test_what_the_key_says(text: str, expected: tuple[Any, Any]) -> None:
    assert asked(read(f"devices: {text}\n").devices) == expected


@pytest.mark.parametrize(
    "text", ["0", "-1", "true", "cpu", "cpu:0", "cpu:02", "gpu:2", "cuda:x", "1.5", "[1]"]
)
def test_other_words_are_refused_at_their_place(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"a.yaml:1:1: devices: expected auto, a number of processes, cpu:n"
    ):
        read(f"devices: {text}\n")


@pytest.mark.usefixtures("gpus")
def test_on_a_machine_with_gpus() -> None:
    assert found("auto", "auto") == ("cuda", 4)
    assert found("auto", "cuda") == ("cuda", 4)
    assert found("auto", "cpu") == ("cpu", 1)
    assert found(2, "auto") == ("cuda", 2)
    assert found(2, "cpu") == ("cpu", 2)
    assert found("cuda:3", "auto") == ("cuda", 3)
    assert found("cpu:3", "auto") == ("cpu", 3)
    with pytest.raises(ConfigError, match="devices: 5: 4 GPUs are visible"):
        found(5, "auto")
    with pytest.raises(ConfigError, match="devices: cuda:5: 4 GPUs are visible"):
        found("cuda:5", "auto")
    assert kind_of("cuda:5", "auto") == "cuda"  # where others say how many


@pytest.mark.usefixtures("no_gpu")
def test_on_a_machine_without() -> None:
    assert found("auto", "auto") == ("cpu", 1)
    assert found(2, "auto") == ("cpu", 2)
    with pytest.raises(ConfigError, match=r"^devices: cuda:2: "):
        found("cuda:2", "auto")
    with pytest.raises(ConfigError, match=r"^device: cuda was asked for"):
        found("auto", "cuda")
    with pytest.raises(ConfigError, match=r"^devices: cuda:2: "):
        kind_of("cuda:2", "auto")
    most = max(8, os.cpu_count() or 1)
    assert found(f"cpu:{most}", "auto") == ("cpu", most)
    with pytest.raises(ConfigError, match=f"devices: cpu:999: at most {most} processes"):
        found("cpu:999", "auto")


def test_the_section_has_sane_sizes() -> None:
    assert ParallelConfig().seconds == 600
    assert read("parallel: {deadline: 90s}\n").parallel.seconds == 90
    for text, message in [
        ("{deadline: soon}", "a.yaml:1:12: parallel.deadline: expected a time such as 90s"),
        ("{data: ddp, offload: true}", "parallel.offload: is of data: fsdp"),
        ("{tensor: 0}", "parallel.tensor: "),
        ("{context: -1}", "parallel.context: "),
        ("{data: zero}", "parallel.data: 'zero' is not a choice"),
    ]:
        with pytest.raises(ConfigError) as told:
            read(f"parallel: {text}\n")
        assert message in str(told.value)


def test_ranks_are_cut_into_replicas() -> None:
    assert ParallelConfig().replicas(1) == 1
    assert ParallelConfig(tensor=2, context=2).replicas(8) == 2
    with pytest.raises(ConfigError, match=r"^parallel.tensor: 3 does not divide 4 ranks"):
        ParallelConfig(tensor=3).replicas(4)
    with pytest.raises(ConfigError, match=r"^parallel.context: 2 with tensor: 2 does not divide 2 ranks"):
        ParallelConfig(tensor=2, context=2).replicas(2)
    with pytest.raises(ConfigError, match=r"^parallel.context: 2 does not divide one rank"):
        ParallelConfig(context=2).replicas(1)
