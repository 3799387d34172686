"""Safetensors files written tensor by tensor are those that the library reads, whole and in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmtool.core import ranks
from llmtool.core.errors import LlmtoolError
from llmtool.core.shards import Piece, put, take
from llmtool.core.tensor_files import Files, write


def tensors() -> dict[str, list[torch.Tensor]]:
    return {
        "step": [torch.tensor(3.0)],
        "bytes": [torch.arange(5, dtype=torch.uint8)],
        "two": [torch.ones(2, 3), torch.zeros(1, 3)],  # one below the other
        "half": [torch.randn(3, 2).bfloat16()],
        "none": [torch.empty(0, 4)],
        "count": [torch.tensor([1, 2], dtype=torch.int64)],
        "turned": [torch.arange(6.0).view(2, 3).T],
    }


def test_written_and_read(tmp_path: Path) -> None:
    expected = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in tensors().items()}
    expected |= {"half": (given := tensors())["half"][0]}
    given["half"] = [expected["half"]]
    places, own = write(tmp_path, "state", given)
    assert set(places.values()) == {"state.safetensors"}
    assert own == [tmp_path / "state.safetensors"]
    found, files = load_file(own[0]), Files(tmp_path, "state")
    assert found.keys() == expected.keys() == set(files)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(files[name], tensor)
        assert (files.like(name).shape, files.like(name).dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(files.read("two", Piece((1, 0), (2, 3))), expected["two"][1:])
    assert files.read("two", Piece((3, 0), (0, 3))).shape == (0, 3)
    into = torch.zeros(3, 3)
    take(into, files, "two")
    assert torch.equal(into, expected["two"])
    put(into, torch.ones(3, 3))
    assert bool(into.all())


def test_no_tensors_are_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an optimizer without state: what is read back is nothing, not missing. The first rank writes it."""
    monkeypatch.setattr(ranks, "gathered", lambda value: [value, value])
    for rank, own in ((1, []), (0, [tmp_path / "state.safetensors"])):
        monkeypatch.setattr(ranks, "here", lambda rank=rank: ranks.Ranks(rank, 2, rank, 2))
        assert write(tmp_path, "state", {}) == ({}, own)
        assert sorted(tmp_path.iterdir()) == own
    assert load_file(tmp_path / "state.safetensors") == dict(Files(tmp_path, "state")) == {}


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    with pytest.raises(LlmtoolError, match=r"state\.safetensors: no such file"):
        Files(tmp_path, "state")
    for number in (1, 3):
        save_file({f"a{number}": torch.ones(1)}, tmp_path / f"state-0000{number}-of-00003.safetensors")
    with pytest.raises(LlmtoolError, match="state: 2 files are there, 3 were written"):
        Files(tmp_path, "state")
    save_file({"a1": torch.ones(1)}, tmp_path / "state-00002-of-00003.safetensors")
    with pytest.raises(LlmtoolError, match="a1 is in another file"):
        Files(tmp_path, "state")
