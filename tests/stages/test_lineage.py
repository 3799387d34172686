"""Chains of prepared data and of checkpoints; whether a link is found as it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llmtool.core import files
from llmtool.core.lineage import Chain
from llmtool.data import DataConfig, data_hashes, store
from llmtool.data.store import Dataset
from llmtool.stages import checkpoints, lineage
from llmtool.stages.prepare import prepare
from tests.conftest import people, story


def made(directory: Path, data: dict[str, Any], seed: int = 0) -> Chain:
    config = DataConfig.model_validate(data)
    directory.mkdir(parents=True)
    prepare(config, seed, directory, hashes=data_hashes(config))
    return Dataset.open(directory).lineage


def table(path: Path | str | list[str] | dict[str, str], **keys: Any) -> dict[str, Any]:
    path = str(path) if isinstance(path, Path) else path
    return {
        "source": {"format": "csv", "path": path},
        "encode": {"as": "features", "target": "income", **keys.pop("encode", {})},
        **keys,
    }


def first_change(one: Chain, other: Chain) -> str:
    """What the first link is that differs; all after it must differ too."""
    assert [link.what for link in one] == [link.what for link in other]
    differ = [a.hash != b.hash for a, b in zip(one, other, strict=True)]
    at = differ.index(True)
    assert all(differ[at:])
    return one[at].what


def states(chain: Chain, root: Path | None = None) -> dict[str, str]:
    now = lineage.check(chain, root)
    return {link.what: found.state for link, found in zip(chain, now, strict=True)}


def test_the_chain_of_data_changes_from_the_changed_link_on(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(people())
    whole = made(tmp_path / "a", table(path))
    assert [link.what for link in whole] == ["source", "encoder", "dataset"]
    assert made(tmp_path / "same", table(path)) != whole  # other places
    assert made(tmp_path / "again", table(path))[-1].hash == whole[-1].hash
    assert first_change(whole, made(tmp_path / "b", table(path, encode={"scale": "quantile"}))) == "encoder"
    assert first_change(whole, made(tmp_path / "c", table(path), seed=1)) == "encoder"  # other train rows
    order = table(path, split={"by": "order", "test": 0.3, "validation": 0.1, "train": 0.6})
    other = table(path, split={"by": "order", "test": 0.2, "validation": 0.2, "train": 0.6})
    assert first_change(made(tmp_path / "d", order), made(tmp_path / "e", other)) == "dataset"
    text = path.read_text()
    path.write_bytes(text.replace("\n", "\r\n").encode())  # the same rows of other bytes
    windows = made(tmp_path / "f", table(path))
    assert first_change(whole, windows) == "source"
    assert windows[-1].content == whole[-1].content
    (tmp_path / "moved.csv").write_text(text)
    assert made(tmp_path / "g", table(tmp_path / "moved.csv"))[-1].hash == whole[-1].hash


def test_the_order_of_files_is_part_of_it_their_names_are_not(tmp_path: Path) -> None:
    lines = people().splitlines()
    for name, part in (("a", lines[1:150]), ("b", lines[150:]), ("c", lines[1:150])):
        (tmp_path / f"{name}.csv").write_text("\n".join([lines[0], *part]) + "\n")
    paths = {name: str(tmp_path / f"{name}.csv") for name in "abc"}
    ab = made(tmp_path / "1", table([paths["a"], paths["b"]]))
    assert [link.what for link in ab] == ["source 1", "source 2", "encoder", "dataset"]
    assert made(tmp_path / "2", table([paths["c"], paths["b"]]))[-1].hash == ab[-1].hash
    assert made(tmp_path / "3", table([paths["b"], paths["a"]]))[-1].hash != ab[-1].hash


def test_a_tokenizer_file_is_a_link_and_its_place_is_in_no_hash(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(story())
    source = {"format": "text", "path": str(tmp_path / "story.txt"), "documents": "blank"}
    made(
        tmp_path / "own", {"source": source, "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}}}
    )
    chains = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "own/tokenizer.json", tmp_path / name)
        tokenizer = {"kind": "file", "path": str(tmp_path / name / "tokenizer.json")}
        encode = {"as": "tokens", "tokenizer": tokenizer}
        chains.append(made(tmp_path / name / "prepare", {"source": source, "encode": encode}))
    assert [link.what for link in chains[0]] == ["source 1", "encoder's file 2", "encoder", "dataset"]
    assert [link.hash for link in chains[0]] == [link.hash for link in chains[1]]
    assert set(states(chains[0]).values()) == {"ok"}
    path = tmp_path / "one/prepare/tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert states(chains[0])["encoder"] == "changed"


def test_many_files_are_one_link_that_is_still_looked_into(tmp_path: Path) -> None:
    lines = people().splitlines()
    (tmp_path / "parts").mkdir()
    for number in range(30):
        part = [lines[0], *lines[1 + 10 * number : 11 + 10 * number]]
        (tmp_path / f"parts/{number:02}.csv").write_text("\n".join(part) + "\n")
    chain = made(tmp_path / "prepare", table(tmp_path / "parts"))
    assert [link.what for link in chain] == ["sources", "encoder", "dataset"]
    assert chain[0].where.startswith("30 files: ")
    assert set(states(chain).values()) == {"ok"}
    (tmp_path / "parts/07.csv").write_text("other\n")
    (tmp_path / "parts/11.csv").unlink()
    (now, *rest) = lineage.check(chain)
    assert now.state == "changed"
    assert now.says.startswith("2 of them changed or gone: ")
    assert now.says.endswith("07.csv")
    assert {found.state for found in rest} == {"ok"}
    shutil.rmtree(tmp_path / "prepare")
    assert set(states(chain).values()) == {"not checked", "gone"}


@pytest.mark.parametrize("files", [1, 30])
def test_what_lies_elsewhere_is_not_looked_at(tmp_path: Path, files: int) -> None:
    system = fsspec.filesystem("memory")
    for number in range(files):
        system.pipe(f"/lineage{files}/{number:02}.csv", people().encode())
    chain = made(tmp_path / "prepare", table(f"memory://lineage{files}"))
    (now, *rest) = lineage.check(chain)
    assert (now.state, now.says) == ("not checked", lineage.ELSEWHERE)
    assert {found.state for found in rest} == {"ok"}


def test_a_link_is_as_it_was_or_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(people())
    chain = made(tmp_path / "prepare", table(path))
    assert states(chain) == {"source": "ok", "encoder": "ok", "dataset": "ok"}
    array = tmp_path / "prepare/train.inputs.bin"
    before = array.read_bytes()
    array.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    assert states(chain) == {"source": "ok", "encoder": "ok", "dataset": "changed"}
    assert "train.inputs.bin: the content has changed" in lineage.check(chain)[2].says
    array.write_bytes(before[:-1])
    assert "truncated" in lineage.check(chain)[2].says
    shutil.rmtree(tmp_path / "prepare")
    assert states(chain) == {"source": "ok", "encoder": "gone", "dataset": "gone"}
    made(tmp_path / "prepare", table(path), seed=1)
    assert states(chain) == {"source": "ok", "encoder": "other", "dataset": "other"}
    path.write_text("x")
    assert lineage.check(chain)[0].says == "has other bytes now"
    path.unlink()
    path.mkdir()  # a directory where a file was
    assert states(chain)["source"] == "changed"


def test_a_card_without_hashes_begins_the_chain_with_the_encoder(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(people())
    made(tmp_path / "prepare", table(path))
    card = json.loads((tmp_path / "prepare/card.json").read_text())
    for files_ in ({}, None, 3, []):
        chain = store.lineage({**card, "files": files_}, tmp_path)
        assert [link.what for link in chain] == ["encoder", "dataset"]


def test_a_fingerprint_is_of_the_model_and_not_of_where_it_came_from(finished: Path, tmp_path: Path) -> None:
    for name in ("table/train", "table/finetune", "text/train"):
        place = finished / "runs" / name / "best"
        whole = checkpoints.fingerprint(place)
        copy = tmp_path / name
        shutil.copytree(place, copy)
        about = files.read_json(copy / "llmtool.json")
        about["dataset"] = {"path": "elsewhere", "fingerprint": "other"}
        about["made_from"] = []
        if about["base"]:
            about["base"]["path"] = "elsewhere"
            form = files.read_json(copy / "adapter_config.json")
            files.write_json(copy / "adapter_config.json", {**form, "base_model_name_or_path": "elsewhere"})
        files.write_json(copy / "llmtool.json", about)
        assert checkpoints.fingerprint(copy) == whole
        for key, value in (("task", {"kind": "other"}), ("card", {**about["card"], "targets": {}})):
            files.write_json(copy / "llmtool.json", {**about, key: value})
            assert checkpoints.fingerprint(copy) != whole
        if about["base"]:
            files.write_json(copy / "llmtool.json", {**about, "base": {"path": "", "hash": "other"}})
            assert checkpoints.fingerprint(copy) != whole
            files.write_json(copy / "llmtool.json", about)
            files.write_json(copy / "adapter_config.json", {**form, "lora_alpha": 99})
            assert checkpoints.fingerprint(copy) != whole


@pytest.mark.parametrize("silent", [True, False])
def test_a_checkpoint_that_does_not_say_what_it_was_made_from(
    finished: Path, tmp_path: Path, silent: bool
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(finished / "runs/table/train/best", copy)
    about = files.read_json(copy / "llmtool.json")
    about["made_from"] = [] if silent else [{"links": "?"}]
    files.write_json(copy / "llmtool.json", about)
    if silent:
        chain = checkpoints.lineage(copy)
        assert [link.what for link in chain] == ["dataset", "checkpoint"]
        assert chain[0].content == about["dataset"]["fingerprint"]
    else:
        with pytest.raises(files.LlmtoolError, match=r"llmtool.json: lineage: not a chain"):
            checkpoints.lineage(copy)
