"""Models on the Hugging Face hub, by name and commit: fetched once into the hub library's own cache."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.urls import without_secrets

SCHEME = "hf://"
FORM = "hf://owner/name@revision"
NAME = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
DEADLINE = 60.0  # seconds for the answer to a request; the library tries some of them six times
WAITS = ("connect", "read", "write", "pool")
LOGIN = "`hf auth login`, or HF_TOKEN in the environment"
# What is fetched: weights and words, never code or pickles.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
WORDS = ("*.json", "chat_template.jinja")
_CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(/.+)?$")


def local(path: str, weights: bool = True) -> Path:
    """Where the files lie of a model that a configuration names by directory, or by name on the hub; without
    its weights what is said of texts and pictures."""
    return snapshot(path, weights) if path.startswith(SCHEME) else Path(path)


def named(path: Path) -> str:
    """A file or a model's directory as a configuration would name it: one in the cache of the hub's library
    by its address, for another machine has it elsewhere."""
    found = _CACHED.search(path.as_posix())
    return f"{SCHEME}{found[1]}/{found[2]}@{found[3]}{found[4] or ''}" if found else str(path)


def snapshot(address: str, weights: bool = True) -> Path:
    """The local directory of `hf://owner/name@revision`; fetched when it is not in the cache yet. weights:
    with them; they may be many gigabytes.

    The revision is a commit of 40 hexadecimal digits: what it names can never change, so a file that names it
    gives the same model for ever. Raises ConfigError for another form and without the extra `hub`,
    LlmtoolError where it cannot be had.
    """
    match = NAME.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address}: a model on the hub is named {FORM}")
    name, revision = match["name"], match["revision"] or ""
    if "/" in revision:
        raise ConfigError(f"{address}: a model is named, not one of its files: {FORM}")
    if not COMMIT.fullmatch(revision):
        said = f"{revision!r} may mean another model tomorrow" if revision else "it has none"
        raise ConfigError(
            f"{address}: the revision must be a commit of 40 hexadecimal digits ({said}); "
            "the model's page on the hub lists them under its files"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(f"{address}: needs the extra `hub`: pip install 'llmtool[hub]'") from None
    _settle()
    patterns = [*WORDS, *(WEIGHTS if weights else ())]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a disk that is nearly full: that it is full, the error says
            found = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # its own errors derive from many libraries': of HTTP, of the file lock, of the cache
        raise _refusal(address, error) from None
    if weights and not any(found.glob("*.safetensors")):
        raise ConfigError(
            f"{address}: has no safetensors file; other weights are not fetched (a pickle can run code)"
        )
    return found


def _settle() -> None:
    """The hub's library without notices (they hold signed URLs), with bars for people only, and with an end
    to every wait: it asks for a list of files without one."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    hooks = get_session().event_hooks["request"]
    if _in_time not in hooks:
        hooks.append(_in_time)


def _in_time(request: Any) -> None:
    """Give a request that may take for ever a deadline: for the connection, and for each stretch of bytes."""
    waits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {kind: waits.get(kind) or DEADLINE for kind in WAITS}


def _refusal(address: str, error: BaseException) -> LlmtoolError:
    """Why a model cannot be had, in a sentence that says what to do: ConfigError where it is the address."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if isinstance(error, RevisionNotFoundError):
        return ConfigError(
            f"{address}: the model has no such commit; its page on the hub lists them under its files"
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return LlmtoolError(
            f"{address}: access is refused; ask for it on the model's page, then log in: {LOGIN}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"{address}: there is no such model, or it is a private one; for that, log in: {LOGIN}"
        )
    if status == 401:
        return LlmtoolError(f"{address}: the hub does not know this token; log in again: {LOGIN}")
    if isinstance(chain[-1], OfflineModeIsEnabled):
        return LlmtoolError(f"{address}: is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
    if status is not None:
        return LlmtoolError(f"{address}: could not be fetched (the hub answers {status}); try again later")
    last = chain[-1]
    said = (without_secrets(str(last)).strip().splitlines() or [""])[0] or type(last).__name__
    if isinstance(last, OSError) and last.filename:
        said = f"{last.filename}: {last.strerror}; HF_HOME names another place for the cache"
    return LlmtoolError(f"{address}: could not be fetched ({said[:200]})")


def _status(error: BaseException) -> int | None:
    """What the hub answered."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None
