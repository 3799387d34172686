"""ONNX files: any number of rows and tokens, also past windows and stretched positions."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import onnx
from tests.models.test_conformance import CASES, build

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def session(path: Path) -> runtime.InferenceSession:
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_window_holds_for_short_and_long_texts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys, inputs, outputs = CASES["mistral"]
    model = build((keys | {"depth": 1, "window": 9, "context": 20}, inputs, outputs)).eval()
    path = tmp_path / onnx.FILE
    before = logging.getLogger("torch.onnx").level
    about = onnx.export(model, path)  # traced on 7 tokens, which the window does not show in
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == before
    assert about["inputs"]["input_ids"]["shape"] == ["batch", "length"]
    found = onnx.check(model, path)
    assert found is not None
    assert [one["inputs"] for one in found] == [[1, 1], [3, 20]]
    for length in (9, 10, 14):
        ids = torch.randint(17, (2, length))
        with torch.no_grad():
            wanted = model(ids)
        given = torch.from_numpy(session(path).run(None, {"input_ids": ids.numpy()})[0])
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)
    with torch.no_grad():
        model.lm_head.weight[3] += 0.1
    with pytest.raises(LlmtoolError, match=r"outputs differ from the model's by 0\.\d+ on inputs \(1, 1\)"):
        onnx.check(model, path)


@pytest.mark.parametrize("case", ["bert", "gpt2 classes", "qwen3 values"])
def test_texts_of_different_lengths(case: str, tmp_path: Path) -> None:
    keys, inputs, outputs = CASES[case]
    model = build((keys | {"depth": 1}, inputs, outputs)).eval()
    path = tmp_path / onnx.FILE
    assert list(onnx.export(model, path)["inputs"]) == ["input_ids", "attention_mask"]
    ids = torch.randint(inputs.vocabulary, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    given = session(path).run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(given), model(ids, mask), atol=1e-5, rtol=0)
        alone = model(ids[1:2, :4])  # the row by itself, without filling
    torch.testing.assert_close(torch.from_numpy(given[1:2]), alone, atol=1e-5, rtol=0)


def test_pictures_and_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "MAX_BYTES", 1000)
    (tmp_path / "written").mkdir()
    model = build(CASES["resnet cifar"]).eval()
    about = onnx.export(model, tmp_path / "written" / onnx.FILE)
    (tmp_path / "written").rename(tmp_path / "moved")  # as an export is put in its place
    assert (tmp_path / "moved/model.onnx.data").stat().st_size > 1000
    assert about["inputs"]["pixel_values"]["shape"] == ["batch", 1, 9, 8]
    found = onnx.check(model, tmp_path / "moved" / onnx.FILE)
    assert found is not None
    assert max(one["difference"] for one in found) < 1e-5


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CASES["mlp"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and onnxscript: not installed.*llmtool\[export\]"):
        onnx.export(model, tmp_path / onnx.FILE)
