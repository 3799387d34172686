"""Names on the hub: what is refused before anything is fetched, what is asked of the hub's library, and what
it answers where a server on this machine stands for the hub."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool.commands import Options, describe
from llmtool.core import hub
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.images import ImagesEncode
from llmtool.data.tokenizers import FileTokenizer
from llmtool.models import peft_files, pretrained
from llmtool.models.adapters import LoRAConfig
from llmtool.stages import checkpoints, foreign
from tests.conftest import others_model

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://owner/name", "it has none"),
        ("hf://owner/name@main", "'main' may mean another model tomorrow"),
        (f"hf://owner/name@{COMMIT[:-1]}", "40 hexadecimal digits"),
        (f"hf://name@{COMMIT}", "hf://owner/name@revision"),
        (f"hf://owner/name@{COMMIT}/tokenizer.json", "a model is named, not one of its files"),
        (f"hf://../../etc@{COMMIT}", "hf://owner/name@revision"),
    ],
)
def test_only_a_pinned_name_is_fetched(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match="hf://") as error:
        hub.snapshot(address)
    assert said in str(error.value)


def test_neither_code_nor_pickles_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()

    def download(name: str, **keys: Any) -> str:
        asked.update(keys, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoints.find_checkpoint(f"hf://owner/name.v1@{COMMIT}") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/name.v1", COMMIT)
    assert not any(pattern.endswith(("py", "bin", "pt", "*")) for pattern in asked["allow_patterns"])


def test_another_address_is_none_of_a_model() -> None:
    with pytest.raises(
        ConfigError, match=r"^s3://b/model: models are read from this machine, or from the hub"
    ):
        checkpoints.find_checkpoint("s3://anna:geheim@b/model?sig=verraten")


# --- a hub on this machine ---


class Hub(ThreadingHTTPServer):
    """owner/name, of one commit. refusal: status and code of every answer, if any."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        name, files = path.rpartition("/")[2], self.server.files
        if path == "/silent":
            time.sleep(5)
        elif self.server.refusal:
            status, code = self.server.refusal
            self.answer(status, b"", **{"X-Error-Code": code, "X-Request-Id": "1"})
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": each, "size": len(data), "oid": f"{len(data):040}"}
                for each, data in files.items()
            ]
            self.answer(200, json.dumps(listed).encode())
        elif "/resolve/" in path and name in files:
            self.answer(302, b"", Location=f"{self.server.url}/storage/{name}?Signature=verraten")
        elif path.startswith("/storage/"):
            about = {"X-Repo-Commit": COMMIT, "ETag": f'"{len(files[name]):040}"'}
            self.answer(200, files[name], **about)
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_once_and_in_silence(
    here: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = others_model(tmp_path / "made")
    here.files = {path.name: path.read_bytes() for path in made.iterdir()} | {"code.py": b"exit()"}
    found = hub.snapshot(f"hf://owner/name@{COMMIT}")
    assert {path.name: path.read_bytes() for path in found.iterdir()} | {"code.py": b"exit()"} == here.files
    here.asked.clear()
    assert checkpoints.find_checkpoint(f"hf://owner/name@{COMMIT}") == found
    assert not [path for path in here.asked if "owner" in path]
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (404, "RepoNotFound", ConfigError, "there is no such model, or it is a private one"),
        (401, "RepoNotFound", ConfigError, "there is no such model, or it is a private one"),
        (401, "", LlmtoolError, "the hub does not know this token"),
        (404, "RevisionNotFound", ConfigError, "the model has no such commit"),
        (401, "GatedRepo", LlmtoolError, "ask for it on the model's page, then log in: `hf auth login`"),
        (403, "GatedRepo", LlmtoolError, "access is refused"),
        (403, "", LlmtoolError, "access is refused"),
        (418, "", LlmtoolError, "could not be fetched (the hub answers 418)"),
    ],
)
def test_what_the_hub_refuses(here: Hub, status: int, code: str, kind: type[LlmtoolError], said: str) -> None:
    here.refusal = status, code
    with pytest.raises(LlmtoolError) as error:
        hub.snapshot(f"hf://owner/name@{COMMIT}")
    assert type(error.value) is kind
    assert str(error.value).startswith(f"hf://owner/name@{COMMIT}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_safetensors(here: Hub) -> None:
    here.files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    with pytest.raises(ConfigError, match="has no safetensors file; other weights are not fetched"):
        hub.snapshot(f"hf://owner/name@{COMMIT}")


def test_data_are_prepared_for_a_model_on_the_hub_without_its_weights(here: Hub, tmp_path: Path) -> None:
    address = f"hf://owner/name@{COMMIT}"
    here.files = {path.name: path.read_bytes() for path in others_model(tmp_path / "made").iterdir()}
    tokenizer = FileTokenizer(path=address)
    there = tokenizer.file().parent
    assert [path.name for path in there.glob("*.safetensors")] == []
    assert hub.named(tokenizer.file()) == f"{address}/tokenizer.json"
    assert hub.named(tmp_path / "tokenizer.json") == str(tmp_path / "tokenizer.json")
    same = FileTokenizer(path=str(tmp_path / "made"))
    assert tokenizer.fit(lambda: iter(())).vocabulary == same.fit(lambda: iter(())).vocabulary
    pictures = ImagesEncode.model_validate({"as": "images", "like_model": address})
    assert pictures.files() == [there / "preprocessor_config.json"]
    assert hub.snapshot(address) == there  # with its weights now
    assert [path.name for path in there.glob("*.safetensors")] == ["model.safetensors"]
    here.refusal = 404, "RepoNotFound"
    with pytest.raises(ConfigError, match=r"^data\.encode\.tokenizer\.path: hf://owner/other@\w*: there is"):
        FileTokenizer(path=f"hf://owner/other@{COMMIT}").file()


def test_an_adapter_of_a_model_on_the_hub(here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which one by name and commit, as PEFT does, so that another machine finds it too."""
    here.files = {path.name: path.read_bytes() for path in others_model(tmp_path / "made").iterdir()}
    base, adapter = hub.snapshot(f"hf://owner/name@{COMMIT}"), tmp_path / "adapter"
    adapter.mkdir()
    model, method = pretrained.load(base), LoRAConfig(rank=2)
    method.apply(model)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft_files.save_adapter(model, adapter, method, base=str(base))
    form = json.loads((adapter / "adapter_config.json").read_text())
    assert (form["base_model_name_or_path"], form["revision"]) == ("owner/name", COMMIT)
    assert foreign.base_of(adapter) == base
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    there = foreign.base_of(adapter)
    assert there is not None
    assert there.is_relative_to(tmp_path / "elsewhere")
    assert checkpoints.from_checkpoint(str(adapter)).base == there
    assert checkpoints._base(adapter, str(base)) == there  # of an adapter with our card
    form["revision"] = "main"
    (adapter / "adapter_config.json").write_text(json.dumps(form))
    with pytest.raises(ConfigError, match="'main' may mean another model tomorrow"):
        foreign.base_of(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**form, "revision": None}))
    with pytest.raises(ConfigError, match=r"adapter of owner/name, which .* or `revision` to"):
        foreign.base_of(adapter)


def test_what_is_not_in_the_cache_of_one_who_is_offline(monkeypatch: pytest.MonkeyPatch, here: Hub) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LlmtoolError, match="is not in the cache, and HF_HUB_OFFLINE forbids"):
        hub.snapshot(f"hf://owner/name@{COMMIT}")
    assert not here.asked


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, here: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    here.files = {"config.json": b"{}", "model.safetensors": b"..."}
    with pytest.raises(LlmtoolError, match=r"file/cache.*: Not a directory; HF_HOME names another place"):
        hub.snapshot(f"hf://owner/name@{COMMIT}")


def test_a_hub_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, here: Hub) -> None:
    monkeypatch.setattr(hub, "DEADLINE", 0.2)
    hub._settle()
    with pytest.raises(Exception, match="timed out"):
        huggingface_hub.get_session().get(f"{here.url}/silent", timeout=None)


def test_describe_takes_a_name_of_the_hub(here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.files = {path.name: path.read_bytes() for path in others_model(tmp_path / "made").iterdir()}
    monkeypatch.setattr(describe, "_description", lambda found, strict: {"of": found.model})
    described = describe.run(Options(f"hf://owner/name@{COMMIT}"))
    assert described["description"]["of"] == hub.snapshot(f"hf://owner/name@{COMMIT}")
    assert [link["now"] for link in described["lineage"]["links"]] == ["ok"]
    with pytest.raises(ConfigError, match="--on and --devices are for a CONFIG"):
        describe.run(Options("hf://owner/name", on=("h100",)))
