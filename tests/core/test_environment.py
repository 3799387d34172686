"""What a result says of the code and the machine that made it."""

from __future__ import annotations

import json

from llmtool.core import environment as environment_module
from llmtool.core.environment import code_version, environment


def test_the_code_version_follows_the_sources(tmp_path, monkeypatch):
    assert code_version().startswith(f"{environment_module.llmtool.__version__}+")
    (tmp_path / "core").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "core" / "a.py").write_text("x = 1")
    monkeypatch.setattr(environment_module.llmtool, "__file__", str(tmp_path / "__init__.py"))
    versions = [code_version.__wrapped__()]
    (tmp_path / "core" / "a.py").write_text("x = 2")
    versions.append(code_version.__wrapped__())
    (tmp_path / "core" / "a.py").rename(tmp_path / "core" / "b.py")
    versions.append(code_version.__wrapped__())
    assert len(set(versions)) == 3
    (tmp_path / "notes.txt").write_text("not code")
    assert code_version.__wrapped__() == versions[-1]


def test_the_environment_keeps_secrets_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = json.dumps(environment())
    assert "secret" not in text
    assert environment()["variables"]["OMP_NUM_THREADS"] == "1"
    assert environment()["cpus"] >= 1
