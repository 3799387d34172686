"""personal_data: every kind is found in real shapes, its near misses are not, and no input takes long."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError
from llmtool.data import CleanStep
from llmtool.data.cleaning import Cleaned, clean, on_new_rows
from llmtool.data.personal import KindName, PersonalData
from llmtool.data.sensitive import KINDS, find, is_card, is_iban, luhn, redact
from llmtool.data.sources import frame

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
ALL = list(KINDS)
BODY = "\n".join(["MIIEpAIBAAKCAQEAx7k2vQ3fJd0+yH/abcdefghijklmnop"] * 3)
THERE = {
    "email": [
        "john.doe+x@mail.example.co.uk", "请联系abc_1@qq.com谢谢", "josé@exemple.fr", "<a@b.org>",
        "...jo@x.com",
    ],
    "phone": [
        "+1 (555) 123-4567", "(212) 555-0100", "212.555.0100", "1-800-555-0199", "13812345678",
        "138 1234 5678",
        "+86 138 0013 8000", "+49 (0)30 1234567", "020 7946 0958", "01 23 45 67 89", "8 (495) 123-45-67",
        "0044 20 7946 0958", "Tel: 555-1234", "电话号码是555 1234", "(11) 91234-5678", "030/12345678",
        "010-12345678",
    ],
    "ip": ["81.2.69.142", "2a00:1450:4001:81b::200e", "203.8.4.40:8080"],
    "credit_card": [
        "4111 1111 1111 1111", "378282246310005", "3782-822463-10005", "5555-5555-5555-4444",
        "4111 1111 1111 1111 123", "6011111111111117", "2223003122003222",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606 BIC PSST"],
    "us_ssn": ["078-05-1120"],
    "cn_id": ["11010519491231002X"],
    "api_key": [
        "AKIAIOSFODNN7EXAMPLE", "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "sk-proj-abc123DEF456ghi789JKL012mno3",
        "xoxb-123456789012-1234567890123-AbCdEfGhIjKl", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
    ],
    "named_secret": [
        'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1"',
        '{"apiKey": "9f86d081884c7d659a2feaa0c55ad015"}', "export TOKEN=9f86d081884c7d659a2feaa0c55ad015",
    ],
    "password": ["postgres://user:hunter2@db.local/x", 'password = "hunter2!"', r'{\"pwd\": \"a7%kkk\"}'],
    "jwt": ["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"],
    "private_key": [
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{BODY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}", json.dumps(f"-----BEGIN PRIVATE KEY-----\n{BODY}\n"),
    ],
}  # fmt: skip
NOT_THERE = [
    "on 03/12/2004 15:00", "12.05.1999 - 15.06.2000", "2004-05-31T10:00:00", "12:30:45", "years 1990-1995",
    "version 1.2.3.4", "192.168.0.1", "10.0.0.1 and 127.0.0.1 and 169.254.1.1", "2001:db8::1", "999.1.2.300",
    "3.14159265358979", "1,234,567,890 people", "$212.555.0100", "ISBN 0-306-40615-2", "02 03 04 05 06 07",
    "4111 1111 1111 1112", "1234567890123456", "DE88370400440532013000", "XX89370400440532013000",
    "000-12-3456 and 666-12-3456 and 178-00-1120", "110105194912310021", "task-sk-learn",
    "sk-learn-is-a-library-for-everyone", "the key: value-of-a-thing-in-the-list", '"password": "required"',
    "eyJhbGciOiJIUzI1NiIsInR5.not-a-header-00000.signature", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ",
    "-----BEGIN PUBLIC KEY-----", "@someone said a@b", "std::vector<a::b>", "https://example.com:8080/@user",
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_is_found_and_written_over(kind: str) -> None:
    assert set(THERE) == set(ALL) == set(KindName.__args__)
    for text in THERE[kind]:
        for around in ("{}", "He wrote {}, and left.", "x: {} ;", "看{}。"):
            whole = around.replace("{}", text)
            assert [found for *_, found in find(whole, ALL)] == [kind], whole
        written, kinds = redact(f"before {text} after", ALL)
        assert kinds == [kind]
        assert f"<{kind.upper()}>" in written
        assert written.startswith("before ")
        assert written.endswith(" after")
        assert redact(written, ALL) == (written, [])  # what was written over is not found again


def test_what_only_looks_like_it_stays() -> None:
    wrong = {text: found for text in NOT_THERE if (found := find(f"see {text} there", ALL))}
    assert not wrong


def test_check_digits() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert is_card("4111111111111111")
    assert not is_card("9111111111111118")  # no issuer's
    assert is_iban("GB29NWBK60161331926819")
    assert not is_iban("GB29NWBK6016133192681")


def test_a_key_without_an_end_takes_no_prose_with_it() -> None:
    text = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\nand here the text goes on, as it did before."
    assert redact(text, ALL)[0] == "<PRIVATE_KEY>\nand here the text goes on, as it did before."


def test_finds_that_overlap_are_one() -> None:
    assert redact("https://joe:s3cret1@mail.example.com/x", ALL) == ("https://<PASSWORD>/x", ["password"])
    text = 'api_key = "sk-abcdef0123456789abcdef"'
    assert redact(text, ALL) == ('api_key = "<API_KEY>"', ["api_key"])
    assert redact(text, ["named_secret"])[0] == 'api_key = "<NAMED_SECRET>"'


def run(rows: list[list[Any]], **keys: Any) -> Cleaned:
    data = frame(["text", "note"], rows, np.arange(len(rows)))
    return clean([STEP.validate_python({"step": "personal_data", **keys})], data)


ROWS = [["mail a@b.org", None], ["call +1 212 555 0100", "c@d.org"], ["nothing", 5]]


def test_redact_counts_rows_by_kind_and_drop_drops_them() -> None:
    result = run(ROWS)
    assert result.frame["text"].tolist() == ["mail <EMAIL>", "call <PHONE>", "nothing"]
    assert result.frame["note"].tolist() == [None, "<EMAIL>", 5]
    assert dict(result.changed) == {
        "text: email redacted (personal_data)": 1,
        "text: phone redacted (personal_data)": 1,
        "note: email redacted (personal_data)": 1,
    }
    result = run(ROWS, do="drop", columns=["text"], kinds=["email", "phone"])
    assert {why: rows.tolist() for why, rows in result.dropped.items()} == {
        "text: email found (personal_data)": [0],
        "text: phone found (personal_data)": [1],
    }
    assert not result.changed
    assert ROWS[0] == ["mail a@b.org", None]


def test_bad_input() -> None:
    assert run(ROWS, columns=["note"]).bad["note is no text"].tolist() == [2]
    with pytest.raises(ConfigError, match="personal_data: no column 'body'"):
        run(ROWS, columns=["body"])
    for wrong in ({"kinds": ["emails"]}, {"kinds": []}, {"do": "hide"}, {"columns": []}):
        with pytest.raises(ValidationError):
            PersonalData.model_validate({"step": "personal_data", **wrong})


HOSTILE = [
    "a", "a@", "a@a.", "@", "1", "1 ", "1-", "01 ", "+1", "(2", "(212) ", "4111 ", "AB12", "AB12 ", "sk-",
    "eyJ", "eyJabcdefgh.", "eyJhbGciOiJIUzI1NiJ9.aaaaaaaa.a ", "-----BEGIN PRIVATE KEY-----\n", "-", "://a:",
    "://a:b", "-----BEGIN PRIVATE KEY-----" + "A" * 40 + " ", "-----BEGIN PRIVATE KEY-----a-----",
    "token=", "api_", "token=abcdefgh12", 'password="', "2001:", "2001:0:", "1.", "tel ", "tel 1 2 3 4 5 6",
    " ", "\n", "SG.aaaa.", "xoxb-", "0/0/", "a" * 64 + "@b.", "@" + "a." * 9, "110105194912310021", "😀",
    "😀@a.com",
]  # fmt: skip


@pytest.mark.timeout(60)  # about a second; work that grows with the square would take a quarter of an hour
@pytest.mark.parametrize(
    "text",
    [*HOSTILE, pytest.param("-----BEGIN PRIVATE KEY-----" + "-a" * 500_000, id="a long body with dashes")],
)
def test_a_megabyte_made_to_hurt_ends(text: str) -> None:
    redact((text * (1_000_000 // len(text) + 1))[:1_000_000], ALL)


def test_on_new_rows_numbers_stay_what_they_are() -> None:
    (step,), notes = on_new_rows([PersonalData(step="personal_data")], ["text", "note"], [], ["text", "note"])
    result = clean([step], frame(["text", "note"], [["a@b.org", 5]], np.arange(1)))
    assert (result.frame["text"].tolist(), result.frame["note"].tolist(), notes) == (["<EMAIL>"], [5], [])
