"""Blocks are recomputed where a step does not fit, and training goes through the same bits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmtool.core.devices import PRECISIONS
from llmtool.core.errors import ConfigError
from llmtool.experiment import FinetuneConfig
from llmtool.models.accounting import Memory, account
from llmtool.models.adapters import LoRAConfig
from llmtool.stages import room as stage
from llmtool.stages.fit import fit
from llmtool.stages.room import fewest_recomputed, room_of
from llmtool.stages.settings import resolve
from tests.models.small import transformer
from tests.stages.test_fit import Crash, Toy, Watcher, config, final
from tests.training.toys import tokens


class Blocks:
    """Three blocks, each of 100 bytes a row, on a device with room for so many bytes."""

    blocks = 3

    def __init__(self, device_bytes: int | None) -> None:
        self.device_bytes = device_bytes

    def needs(self, rows: int, recomputed: int) -> Memory:
        return Memory(0, 0, 0, 100 * rows * (3 - recomputed))


def resolved(asked: int | str, device_bytes: int | None = None, **keys: Any) -> Any:
    settings = config(activation_checkpointing=asked, batch=2, micro_batch=2, **keys)
    cpu = torch.device("cpu")
    return resolve(settings, tokens(20), cpu, None, Blocks(device_bytes)).activation_checkpointing


def test_auto_is_the_fewest_blocks_with_which_a_step_fits() -> None:
    assert [resolved("auto", 10 * size // 9 + 1) for size in (600, 599, 400, 399, 0)] == [0, 1, 1, 2, 3]
    assert resolved("auto", None) == 0
    assert [resolved(asked, 1) for asked in ("none", "all", 0, 2, 3)] == [0, 3, 0, 2, 3]


def test_more_blocks_than_there_are_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^train\.activation_checkpointing: 4 blocks .* has 3 blocks"):
        resolved(4)
    asked = FinetuneConfig(start="x", activation_checkpointing=1)
    none = SimpleNamespace(blocks=0, device_bytes=None)
    with pytest.raises(ConfigError, match=r"^finetune\.activation_checkpointing: .* leave the key out"):
        resolve(asked, tokens(20), torch.device("cpu"), None, none)  # type: ignore[arg-type]


def test_a_model_is_counted_only_where_it_may_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformer("llama")
    part: Any = SimpleNamespace(
        model=model,
        device=torch.device("cpu"),
        precision=PRECISIONS["fp32"],
        dataset=SimpleNamespace(card=None),
    )
    counted = []
    real = stage.saved
    monkeypatch.setattr(stage, "saved", lambda *given: counted.append(given) or real(*given))
    room, flops = room_of(part, config(), float(model.flops(16))), model.flops(16)
    assert fewest_recomputed(room, 4) == 0
    assert not counted
    real_needs = [account(model, 4, 16, recomputed=count).memory for count in range(3)]
    room.device_bytes = int(real_needs[1].total / 0.9) + 1
    assert real_needs[0].activations < flops * 4
    assert fewest_recomputed(room, 4) == 1
    assert [room.needs(4, count) for count in range(3)] == real_needs
    assert len(counted) == 1


def ours(adapted: bool = False) -> Toy:
    model = transformer("llama", dropout=0.2)
    if adapted:
        LoRAConfig(rank=2, dropout=0.1).apply(model)
    return Toy(model, tokens(20))


@pytest.mark.parametrize(
    "keys", [{}, {"ema": 0.9}, {"optimizer": {"name": "muon"}}], ids=["plain", "ema", "muon"]
)
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_training_and_resume_are_the_same_to_the_bit(
    tmp_path: Path, adapted: bool, keys: dict[str, Any]
) -> None:
    plain, again = (config(log_every=1, activation_checkpointing=asked, **keys) for asked in ("none", "all"))
    fit(ours(adapted), plain, tmp_path / "kept", progress=Watcher())
    part = ours(adapted)
    result = fit(part, again, tmp_path / "again", progress=Watcher())
    assert result.config.activation_checkpointing == 2
    assert not any("forward" in vars(block) for block in part.model.blocks)  # type: ignore[union-attr]
    assert final(tmp_path / "again") == final(tmp_path / "kept")
    with pytest.raises(Crash):
        fit(ours(adapted), again, tmp_path / "killed", progress=Watcher(crash_at=4))
    resumed = fit(ours(adapted), again, tmp_path / "killed", progress=Watcher(), resume=True)
    assert resumed.resumed_from == 3
    assert final(tmp_path / "killed") == final(tmp_path / "kept")
