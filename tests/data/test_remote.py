"""Files that lie elsewhere, out of fsspec's memory and from a web server on this machine."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import DataConfig, data_hashes, readers, remote
from llmtool.data.csv_source import CsvSource
from llmtool.data.remote import Remote
from llmtool.data.sources import TextSource
from llmtool.stages.prepare import prepare
from tests.conftest import Run

TABLE = "a,b,y\n" + "".join(f"{n},{n * 37 % 101},{'red' if n % 3 else 'blue'}\n" for n in range(120))
LONG = "".join(f"line {n} of a long text\n" for n in range(200_000))  # 4.8 MB: several blocks


class Web(ThreadingHTTPServer):
    """What is served, by path, and how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.ranges = True
        self.breaks: list[int] = []  # after so many bytes the next answers end
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Web

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range")
        self.server.asked.append((self.command, self.path, wanted))
        if path == "/slow":
            time.sleep(30)
            return
        if path.startswith("/to/") or path == "/loop":
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/status/"):
            self.send_error(int(path.removeprefix("/status/")))
            return
        data = self.server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        begin, end = 0, len(data)
        if wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(len(data), int(last) + 1 if last else len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        if path != "/blind":
            self.send_header("Content-Length", str(end - begin))
        if version := self.server.versions.get(path):
            self.send_header("ETag", version)
        self.end_headers()
        if body:
            part = data[begin:end]
            if self.server.breaks:
                part = part[: self.server.breaks.pop(0)]
                self.close_connection = True
            self.wfile.write(part)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of its own in fsspec's memory."""
    place = f"memory://test-{uuid.uuid4().hex}"
    yield place
    system, path = fsspec.core.url_to_fs(place)
    if system.exists(path):
        system.rm(path, recursive=True)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "DEADLINE", 1.0)
    monkeypatch.setattr(remote, "PAUSE", 0.0)


def put(url: str, data: bytes | str) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return url


def csv(path: Any) -> CsvSource:
    return CsvSource.model_validate({"format": "csv", "path": path})


def cells(source: Any) -> list[list[Any]]:
    return [row for chunk in source.read() for row in chunk.frame.values.tolist()]


def config(path: Any, **keys: Any) -> DataConfig:
    source = {"format": "csv", "path": path, **keys}
    return DataConfig.model_validate({"source": source, "encode": {"as": "features", "target": "y"}})


# --- what a URL names ---


def test_files_folders_and_globs(memory: str) -> None:
    for name in (
        "b/2.csv",
        "b/1.csv.gz",
        "b/note.txt",
        "b/.hidden.csv",
        "b/.git/x.csv",
        "b/deep/3.csv",
        "top.csv",
    ):
        put(f"{memory}/{name}", gzip.compress(b"a\n1\n") if name.endswith(".gz") else b"a\n1\n")
    names = [str(file) for file in readers.expand(f"{memory}/b", (".csv",))]
    assert names == [f"{memory}/b/{name}" for name in ("1.csv.gz", "2.csv", "deep/3.csv")]
    assert [str(file) for file in readers.expand(f"{memory}/b/*.csv*", (".csv",))] == names[:2]
    assert [file.name for file in readers.expand(f"{memory}/b/*.csv*", (".csv",))] == ["1.csv.gz", "2.csv"]
    assert [str(file) for file in readers.expand(f"{memory}/top.csv", ())] == [f"{memory}/top.csv"]
    assert len(cells(csv([f"{memory}/b", f"{memory}/top.csv"]))) == 4
    for nothing in ("none.csv", "b/*.json", "b/deep/*/x.csv"):
        with pytest.raises(DataError, match=r"no such file|no file matches"):
            readers.expand(f"{memory}/{nothing}", (".csv",))
    with pytest.raises(DataError, match=r"no file that ends in \.json"):
        readers.expand(f"{memory}/b", (".json",))
    with pytest.raises(ConfigError, match="named twice"):
        csv([f"{memory}/top.csv", f"{memory}/*.csv"]).files()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "file:// is not read"),
        ("simplecache::http://h/a.csv", "chained by ::"),
        ("zip://a.csv::http://h/b.zip", "chained by ::"),
        ("reference://x", "reference:// is not read"),
        ("shttp://h/a.csv", "no file system that is known"),
        ("https://h/*.csv", "a web server lists no files"),
    ],
)
def test_urls_that_are_not_read(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        csv(url)


def test_pictures_are_read_from_this_machine() -> None:
    source = {"format": "image_folder", "path": "s3://bucket/photos"}
    with pytest.raises(ValidationError, match="copy them here"):
        DataConfig.model_validate({"source": source, "encode": {"as": "images", "target": "label"}})


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="`pip install s3fs` reads s3://"):
        csv("s3://bucket/a.csv").files()


# --- reading ---


@pytest.mark.parametrize("ranges", [True, False])
def test_a_text_of_several_blocks(web: Web, ranges: bool) -> None:
    web.files["/long.txt"], web.ranges = LONG.encode(), ranges
    source = TextSource.model_validate({"format": "text", "path": f"{web.url}/long.txt"})
    assert "".join(row[0] for row in cells(source)) == LONG
    assert sum(command == "GET" for command, _, _ in web.asked) == 1


def test_packed_files_are_unpacked_and_bombs_are_not(web: Web, memory: str) -> None:
    web.files["/a.csv.gz"] = gzip.compress(TABLE.encode())
    put(f"{memory}/a.csv.gz", web.files["/a.csv.gz"])
    assert cells(csv(f"{web.url}/a.csv.gz")) == cells(csv(f"{memory}/a.csv.gz"))
    assert len(cells(csv(f"{web.url}/a.csv.gz?download=1"))) == 120
    web.files["/cut.csv.gz"] = web.files["/a.csv.gz"][:-20]
    with pytest.raises(DataError, match=r"/cut\.csv\.gz: the compressed file ends in the middle"):
        cells(csv(f"{web.url}/cut.csv.gz"))
    put(f"{memory}/empty.csv", b"")
    with pytest.raises(DataError, match="the file is empty"):
        cells(csv(f"{memory}/empty.csv"))
    put(f"{memory}/picture.csv", b"\x89PNG....")
    with pytest.raises(DataError, match="a PNG picture"):
        cells(csv(f"{memory}/picture.csv"))


def test_a_connection_that_breaks_is_taken_up_where_it_was(web: Web) -> None:
    web.files["/long.txt"] = LONG.encode()
    web.breaks = [2_500_000, 100]  # the whole in one request, then the first stretch of the rest
    source = TextSource.model_validate({"format": "text", "path": f"{web.url}/long.txt"})
    assert "".join(row[0] for row in cells(source)) == LONG
    assert not web.breaks


def test_what_breaks_again_and_again_ends_in_one_sentence(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    web.files["/long.txt"], web.breaks = LONG.encode(), [2_500_000] + [0] * 20
    source = TextSource.model_validate({"format": "text", "path": f"{web.url}/long.txt"})
    with pytest.raises(
        DataError, match=r"long\.txt: the connection breaks off again and again \(.* rows of it"
    ):
        cells(source)
    asyncio.run(_unclosed())
    logging.getLogger("gcsfs").error("gcsfs non-retriable exception")
    assert not caplog.records


async def _unclosed() -> None:
    """What aiohttp says of a connection that broke off."""
    asyncio.get_running_loop().call_exception_handler({"message": "Unclosed connection"})


def test_a_scheme_in_capitals(web: Web) -> None:
    web.files["/a.csv"] = TABLE.encode()
    assert len(cells(csv(web.url.replace("http", "HTTP") + "/a.csv"))) == 120


def test_parquet_is_read_in_ranges(web: Web, memory: str) -> None:
    out = io.BytesIO()
    rows = {"a": list(range(5000)), "b": [f"{n}" * 50 for n in range(5000)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), out, row_group_size=1000)
    web.files["/a.parquet"] = out.getvalue()
    put(f"{memory}/a.parquet", out.getvalue())
    expected = list(zip(*rows.values(), strict=True))
    for url in (f"{web.url}/a.parquet", f"{memory}/a.parquet"):
        source = DataConfig.model_validate(
            {"source": {"format": "parquet", "path": url}, "encode": {"as": "features", "target": "b"}}
        ).source
        assert list(map(tuple, cells(source))) == expected
    assert any(wanted for _, _, wanted in web.asked)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/none.csv", "no such file"),
        ("/status/403", "access is refused"),
        ("/status/500", "the server answers 500"),
        ("/slow", "no answer within 1 s"),
        ("/loop", "redirects without an end"),
        ("/to/file:///etc/passwd", "file:///etc/passwd"),
        ("/to//to//to/file:///etc/passwd", "file:///etc/passwd"),
    ],
)
def test_each_failure_in_a_sentence_that_names_the_file(web: Web, place: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        cells(csv(f"{web.url}{place}"))
    assert str(caught.value).startswith(f"{web.url}{place}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_certificate_that_is_not_trusted() -> None:
    cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] ...")
    cause.verify_message = "self-signed certificate"
    error = OSError("Cannot connect to host h:443 ssl:True [SSLCertVerificationError: (1, '[SSL: ...')]")
    error.__cause__ = cause
    assert remote.reason(error).startswith("its certificate is not trusted (self-signed certificate); ")


def test_what_the_hub_answers() -> None:
    """Its library's errors have the answer in them, and a sentence of several lines."""
    for status, said in ((404, "no such file"), (403, "access is refused"), (500, "the server answers 500")):
        cause = RuntimeError("Client Error.\n\nCannot access gated repo for url https://h/api")
        cause.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
        error = FileNotFoundError("datasets/owner/name/a.csv (repository not found)")
        error.__cause__ = cause
        assert remote.reason(error).startswith(said)


def test_nobody_answers(web: Web) -> None:
    port = web.server_address[1]
    web.server_close()
    with pytest.raises(DataError, match=f"Cannot connect to host 127.0.0.1:{port}"):
        data_hashes(config(f"http://127.0.0.1:{port}/a.csv"))


def test_a_redirect_within_the_web_is_followed(web: Web) -> None:
    web.files["/a.csv"] = TABLE.encode()
    assert len(cells(csv(f"{web.url}/to//a.csv"))) == 120


def test_no_message_and_no_file_holds_a_credential(web: Web, tmp_path: Path, llmtool: Run) -> None:
    web.files["/a.csv"], web.versions["/a.csv"] = TABLE.encode(), '"1"'
    host = web.url.removeprefix("http://")
    url = f"http://anna:geheim@{host}/a.csv?X-Amz-Signature=verraten&rev=3"
    (tmp_path / "t.yaml").write_text(
        f'data:\n  source: {{format: csv, path: "{url}"}}\n  encode: {{as: features, target: y}}\n'
        "model: {family: mlp, hidden: [4]}\ntrain: {budget: {steps: 3}}\n"
    )
    ended = llmtool("train", "t.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ("HEAD", "/a.csv?X-Amz-Signature=verraten&rev=3", None) in web.asked
    again = llmtool(
        "train", "t.yaml", "--set", f"data.source.path={url.replace('verraten', 'neu')}", cwd=tmp_path
    )
    assert "nothing has changed" in again.out, again.err  # signed anew it is the same file
    web.files.clear()
    failed = llmtool("prepare", "t.yaml", "--force", cwd=tmp_path)
    assert failed.code == 4
    assert failed.error == f"http://{host}/a.csv?rev=3: no such file"
    typo = llmtool("prepare", "t.yaml", "--set", f"data.source.path=file://{url}", cwd=tmp_path)
    assert typo.code == 2
    said = [ended.out, ended.err, again.out, again.err, failed.out, failed.err, typo.out, typo.err]
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(kept) > 10
    for secret in ("geheim", "verraten", "neu&"):
        assert not any(secret in text for text in said)
        assert not any(secret.encode() in data for data in kept), secret


# --- freshness ---


def test_the_hash_is_of_what_the_file_system_says(web: Web, memory: str) -> None:
    web.files["/a.csv"], web.versions["/a.csv"] = TABLE.encode(), '"1"'
    first = data_hashes(config(f"{web.url}/a.csv"))
    assert list(first) == [f"{web.url}/a.csv"]
    assert data_hashes(config(f"{web.url}/a.csv")) == first
    assert not any(command == "GET" for command, _, _ in web.asked)  # nothing was read for it
    web.versions["/a.csv"] = '"2"'
    assert data_hashes(config(f"{web.url}/a.csv")) != first
    put(f"{memory}/a.csv", TABLE)
    before = data_hashes(config(f"{memory}/a.csv"))
    assert data_hashes(config(f"{memory}/a.csv")) == before
    put(f"{memory}/a.csv", TABLE)  # the same bytes, written again
    assert data_hashes(config(f"{memory}/a.csv")) != before


def test_a_server_that_tells_no_version(web: Web) -> None:
    web.files["/a.csv"] = TABLE.encode()
    (said,) = csv(f"{web.url}/a.csv").notes()
    assert "a change of equal length goes unseen" in said
    web.files["/blind"] = TABLE.encode()
    with pytest.raises(DataError, match="neither its size nor a version"):
        data_hashes(config(f"{web.url}/blind"))


def test_a_source_that_changes_while_it_is_prepared(memory: str, tmp_path: Path) -> None:
    put(f"{memory}/a.csv", TABLE)

    def progress(step: str, rows: int) -> None:
        if step == "reading" and rows:
            put(f"{memory}/a.csv", TABLE.replace("red", "RED"))

    with pytest.raises(DataError, match="changed while it was being prepared"):
        prepare(config(f"{memory}/a.csv"), 0, tmp_path, progress)


def test_the_same_dataset_as_from_a_file_here(memory: str, web: Web, tmp_path: Path) -> None:
    put(f"{memory}/a.csv", TABLE)
    web.files["/a.csv"] = TABLE.encode()
    (tmp_path / "a.csv").write_text(TABLE)
    prints = []
    for number, path in enumerate([tmp_path / "a.csv", f"{memory}/a.csv", f"{web.url}/a.csv"]):
        (tmp_path / f"{number}").mkdir()
        made = prepare(config(str(path)), 0, tmp_path / f"{number}")
        prints.append(made.card["fingerprint"])
        assert made.card["sources"] == [str(path)]
    assert len(set(prints)) == 1


def test_a_rehearsal_takes_stretches_of_a_remote_file(memory: str) -> None:
    from llmtool.data.sampling import sampled

    put(f"{memory}/long.txt", LONG)
    source = TextSource.model_validate({"format": "text", "path": f"{memory}/long.txt", "documents": "line"})
    some = sampled(source, 100_000)
    assert 0 < len(cells(some)) < 100_000
    assert some._sample.bytes == len(LONG)


def test_a_name_is_a_files_and_no_querys() -> None:
    file = Remote("https://h/data/a.csv.gz?x=/b.zip")
    assert (file.name, file.suffix, str(file)) == ("a.csv.gz", ".gz", "https://h/data/a.csv.gz?x=/b.zip")
    assert file == Remote("https://anna:geheim@h/data/a.csv.gz?x=/b.zip&sig=1")
    assert json.dumps(repr(file)) == "\"Remote('https://h/data/a.csv.gz?x=/b.zip')\""
