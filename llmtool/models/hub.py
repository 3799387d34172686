"""Models on the Hugging Face hub, by name and commit: fetched once into the hub library's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from llmtool.core.errors import ConfigError, LlmtoolError, first_line

SCHEME = "hf://"
NAME = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# What is fetched: weights and words, never code or pickles.
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "chat_template.jinja")


def snapshot(address: str) -> Path:
    """The local directory of `hf://owner/name@revision`; fetched when it is not in the cache yet.

    The revision is a commit of 40 hexadecimal digits: what it names can never change, so a file that names it
    gives the same model for ever. Raises ConfigError for another form and without the extra `hub`,
    LlmtoolError where it cannot be had.
    """
    match = NAME.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address}: a model on the hub is named hf://owner/name@revision")
    name, revision = match["name"], match["revision"] or ""
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
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:
        # its own errors derive from many libraries': of HTTP, of the file lock, of the cache
        raise LlmtoolError(f"{address}: could not be fetched ({first_line(error)})") from None
