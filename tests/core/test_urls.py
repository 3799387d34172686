"""URLs as they may be shown: every form of a credential goes, nothing else does."""

from __future__ import annotations

import pytest

from llmtool.core.urls import shown, without_secrets

AMAZON = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F2026&X-Amz-Signature=deadbeef&X-Amz-Expires=60"
)
AZURE = "sv=2024-11-04&se=2026-12-01&sr=b&sp=r&sig=abc%3D&skoid=1&sktid=2&spr=https"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://anna:geheim@host.org/a.csv", "https://host.org/a.csv"),
        ("https://an%40na:ge@heim@host.org:8080/a@b.csv", "https://host.org:8080/a@b.csv"),
        ("sftp://anna@host/a.csv", "sftp://host/a.csv"),
        (f"https://b.s3.amazonaws.com/a.csv?{AMAZON}", "https://b.s3.amazonaws.com/a.csv"),
        (f"https://b.s3.amazonaws.com/a.csv?versionId=7&{AMAZON}", "https://b.s3.amazonaws.com/a.csv?versionId=7"),
        (f"https://x.blob.core.windows.net/c/a.csv?{AZURE}", "https://x.blob.core.windows.net/c/a.csv"),
        ("https://storage.googleapis.com/b/a?X-Goog-Signature=1&generation=3",
         "https://storage.googleapis.com/b/a?generation=3"),
        ("https://h/a?access_token=1&%74oken=2&api_key=3&x=4", "https://h/a?x=4"),
        ("https://cdn/a?Expires=1&Signature=2&Key-Pair-Id=3&Policy=4", "https://cdn/a"),
        ("s3://bucket/part-0@1?.csv", "s3://bucket/part-0@1?.csv"),
        ("hf://datasets/owner/name@main/a.jsonl", "hf://datasets/owner/name@main/a.jsonl"),
        ("https://h/a.csv?download=1&rev=2", "https://h/a.csv?download=1&rev=2"),
        ("file://http://anna:geheim@h/a.csv?sig=1", "file://http://h/a.csv"),
        ("https://anna:geheim@h/a?next=http://b:geheim@c/d", "https://h/a?next=http://c/d"),
        ("https://h/a?token=ge://heim", "https://h/a"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
    ],
)  # fmt: skip
def test_what_is_secret_goes(url: str, expected: str) -> None:
    assert shown(url) == expected
    said = without_secrets(f"cannot read '{url}': it is {url} that failed")
    assert said == f"cannot read '{expected}': it is {expected} that failed"


def test_a_text_without_urls_stays() -> None:
    assert without_secrets("configs/*/*.yaml: token=1 & key=2") == "configs/*/*.yaml: token=1 & key=2"
