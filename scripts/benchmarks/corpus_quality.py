"""Cleaning steps for text corpora on real texts: documents a second, and how often they are right.

    pip install faker
    python scripts/benchmarks/corpus_quality.py --save

Texts are those of ../shared/data. Personal data is made by Faker in the shapes of five countries, secrets as
their issuers write them; each stands once in a real text, alone or behind the words that people put there.
Found is what the step writes over from its first to its last character. In texts as they are, finds are
counted and shown, to be judged by eye. Mojibake is real text, decoded as if it were Windows-1252 or Latin-1.
"""

from __future__ import annotations

import base64
import csv
import gzip
import ipaddress
import json
import random
import string
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import common
import numpy as np

sys.path.insert(0, str(common.ROOT))
from pydantic import TypeAdapter

from llmtool.data import CleanStep
from llmtool.data.cleaning import clean
from llmtool.data.language import PART_OF, SAMPLE, _identifier
from llmtool.data.sensitive import KINDS, find
from llmtool.data.sources import frame

SHARED = common.ROOT.parent / "shared" / "data"
STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
STEPS: dict[str, dict[str, Any]] = {
    "fix_text": {},
    "keep_languages": {"languages": ["en"]},
    "gopher_quality": {},
    "gopher_repetition": {},
    "c4_quality": {},
    "personal_data": {"columns": ["text"]},
}
LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "zh_CN")
Make = Callable[[random.Random], str]


def texts(short: bool) -> dict[str, list[str]]:
    """Real texts by where they are from; the first word is their language."""
    most = 200 if short else 2000
    found = {
        "en C4": [row["text"] for row in _lines("pretrain_web/c4_demo.jsonl")],
        "en IMDb": [row["review"] for row in csv.DictReader(_gzip("imdb/test.csv.gz"))],
        "en AG News": [row[2] for row in csv.reader((SHARED / "ag_news/test.csv").open(encoding="utf-8"))],
        "en Alpaca": [row["output"] for row in _json("sft_alpaca/alpaca_en_demo.json")],
        "en LAMBADA": [row["text"] for row in _lines("eval_lambada/lambada_test.jsonl")],
        "en GSM8K": [row["question"] + "\n" + row["answer"] for row in _lines("gsm8k/train.jsonl")],
        "zh Alpaca": [row["output"] for row in _json("sft_alpaca/alpaca_zh_demo.json")],
        "zh poems": _poems(),
        "ru TinyStories": [json.loads(line)["story"] for line in _gzip("tinystories_ru/part5.jsonl.gz")],
    }
    return {name: random.Random(0).sample(rows, min(most, len(rows))) for name, rows in found.items()}


def _gzip(name: str) -> Any:
    return gzip.open(SHARED / name, "rt", encoding="utf-8", newline="")


def _lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


def _json(name: str) -> Any:
    return common.read_json(SHARED / name)


def _poems() -> list[str]:
    found: list[str] = []
    with tarfile.open(SHARED / "chinese_poetry/chinese_poetry.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".json") and (file := archive.extractfile(member)) is not None:
                found += ["\n".join(row["paragraphs"]) for row in json.load(file) if row.get("paragraphs")]
    return found


def run(name: str, rows: list[str], **keys: Any) -> Any:
    """What one step does to texts."""
    step = STEP.validate_python({"step": name, **STEPS[name], **keys})
    return clean([step], frame(["text"], [[row] for row in rows], np.arange(len(rows))))


# --- speed, and what leaves ---------------------------------------------------------------------------------


def speed(found: dict[str, list[str]], runs: int) -> dict[str, Any]:
    """Documents and characters a second of processor time, on web pages and reviews."""
    rows = found["en C4"] + found["en IMDb"]
    characters = sum(map(len, rows))
    figures: dict[str, Any] = {"documents": len(rows), "characters": characters}
    for name in STEPS:
        run(name, rows[:5])
        taken = []
        for _ in range(runs):
            began = time.process_time()
            run(name, rows)
            taken.append(time.process_time() - began)
        figures[name] = {
            "documents_per_second": common.spread([len(rows) / one for one in taken]),
            "megabytes_per_second": common.spread([characters / one / 1e6 for one in taken]),
        }
    return figures


def leaving(found: dict[str, list[str]]) -> dict[str, Any]:
    """Shares of each set's texts that a quality step drops, by reason."""
    result: dict[str, Any] = {}
    for name in ("gopher_quality", "gopher_repetition", "c4_quality"):
        for where, rows in found.items():
            dropped = {why: len(gone) / len(rows) for why, gone in run(name, rows).dropped.items()}
            result.setdefault(name, {})[where] = dict(sorted(dropped.items(), key=lambda one: -one[1]))
    return result


def languages(found: dict[str, list[str]]) -> dict[str, float]:
    """Share of each set's texts whose language is told rightly."""
    identify = _identifier()
    return {
        where: sum(PART_OF.get(code, code) == where.split()[0] for code in codes) / len(codes)
        for where, rows in found.items()
        if (codes := [identify(row[:SAMPLE])[0] for row in rows])
    }


def mojibake(found: dict[str, list[str]]) -> dict[str, Any]:
    """Share of texts that fix_text changes as they are (those of IMDb hold C1 controls that were dashes of
    Windows-1252), and of broken ones that it restores exactly."""
    result: dict[str, Any] = {"changed as they are": {}, "restored": {}}
    for where, rows in found.items():
        result["changed as they are"][where] = sum(run("fix_text", rows).changed.values()) / len(rows)
        plain = run("fix_text", [row for row in rows if not row.isascii()]).frame["text"].tolist()
        for encoding in ("windows-1252", "latin-1"):
            broken, whole = [], []
            for row in plain:
                try:
                    broken.append(row.encode("utf-8").decode(encoding))
                    whole.append(row)
                except UnicodeDecodeError:
                    continue
            if len(whole) >= 20:
                fixed = run("fix_text", broken).frame["text"].tolist()
                right = sum(one == other for one, other in zip(fixed, whole, strict=True))
                result["restored"][f"{where}, {encoding}"] = {
                    "texts": len(whole),
                    "share": right / len(whole),
                }
    return result


# --- personal data ------------------------------------------------------------------------------------------


def _of(alphabet: str, length: int) -> Make:
    return lambda chance: "".join(chance.choices(alphabet, k=length))


HEX, WORD = "0123456789abcdef", string.ascii_letters + string.digits
KEYS: list[Make] = [  # prefix and length as their issuers document them
    lambda chance: "AKIA" + _of(string.ascii_uppercase + "234567", 16)(chance),
    lambda chance: chance.choice(["ghp_", "gho_", "ghs_"]) + _of(WORD, 36)(chance),
    lambda chance: "github_pat_" + _of(WORD, 22)(chance) + "_" + _of(WORD, 59)(chance),
    lambda chance: "glpat-" + _of(WORD + "-_", 20)(chance),
    lambda chance: "sk-" + _of(WORD, 48)(chance),
    lambda chance: "sk-ant-api03-" + _of(WORD + "-_", 95)(chance),
    lambda chance: "sk_live_" + _of(WORD, 24)(chance),
    lambda chance: "xoxb-" + _of(string.digits, 12)(chance) + "-" + _of(WORD, 24)(chance),
    lambda chance: "AIza" + _of(WORD + "-_", 35)(chance),
    lambda chance: "hf_" + _of(WORD, 34)(chance),
    lambda chance: "npm_" + _of(WORD, 36)(chance),
    lambda chance: "SG." + _of(WORD + "-_", 22)(chance) + "." + _of(WORD + "-_", 43)(chance),
]


def _jwt(chance: random.Random) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head = {"alg": chance.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"}
    body = {"sub": _of(string.digits, 10)(chance), "iat": chance.randrange(10**9, 2 * 10**9)}
    return f"{part(head)}.{part(body)}.{_of(WORD + '-_', 43)(chance)}"


def _pem(chance: random.Random) -> str:
    kind = chance.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"])
    data = base64.b64encode(chance.randbytes(chance.randrange(120, 1700))).decode()
    lines = [data[at : at + 64] for at in range(0, len(data), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])


def _address(chance: random.Random) -> str:
    return str(ipaddress.IPv6Address(0x2A << 120 | chance.getrandbits(116)))


def makers() -> dict[str, tuple[list[Make], list[str]]]:
    """Of each kind: how one is made, and what stands around it; "{}" alone is no help at all."""
    from faker import Faker

    fake = {name: Faker(name) for name in LOCALES}

    def of(method: str, names: tuple[str, ...] = LOCALES) -> list[Make]:
        def make(name: str) -> Make:
            def one(chance: random.Random) -> str:
                fake[name].seed_instance(chance.getrandbits(32))
                return str(getattr(fake[name], method)())

            return one

        return [make(name) for name in names]

    secret: Make = lambda chance: chance.choice([_of(HEX, 32), _of(WORD + "+/", 40), _of(WORD, 24)])(chance)  # noqa: E731
    named = ['aws_secret_access_key = "{}"', "API_KEY={}", '"client_secret": "{}"', "token: {}"]
    words = ['password = "{}"', "postgres://admin:{}@db.internal:5432/main", '"password": "{}"', "pwd: '{}'"]
    spoken = [
        "{}",
        "Call me at {}.",
        "Phone: {}",
        "{}",
        "Tel. {}",
        "my number is {}, thanks",
        "电话：{}",
        "Telefon {}",
    ]
    return {
        "email": (of("email") + of("company_email"), ["{}", "write to {}.", "邮箱{}，", "<{}>"]),
        "phone": (of("phone_number"), spoken),
        "ip": ([*of("ipv4_public", LOCALES[:1]), _address], ["{}", "from {}:", "host={}"]),
        "credit_card": (of("credit_card_number", LOCALES[:1]), ["{}", "card no. {}, exp. 09/27"]),
        "iban": (of("iban", ("en_GB", "de_DE", "fr_FR")), ["{}", "IBAN: {}."]),
        "us_ssn": (of("ssn", ("en_US",)), ["{}", "SSN {}"]),
        "cn_id": (of("ssn", ("zh_CN",)), ["{}", "身份证号{}，"]),
        "api_key": (KEYS, ["{}", 'key = "{}"', "Authorization: Bearer {}"]),
        "named_secret": ([secret], named),
        "password": ([lambda chance: _of(WORD + "!#$%&*", chance.randrange(8, 17))(chance)], words),
        "jwt": ([_jwt], ["{}", "Bearer {}"]),
        "private_key": ([_pem], ["{}", 'key = """{}"""']),
    }


def planted(found: dict[str, list[str]], count: int, seeds: int) -> dict[str, Any]:
    """Recall by kind: the share of what was planted that is written over as a whole; and of phone numbers,
    that of those which stand there without a word before them."""
    rows = [row for where in ("en C4", "en IMDb", "zh Alpaca", "ru TinyStories") for row in found[where]]
    figures: dict[str, Any] = {}
    for kind, (make, around) in makers().items():
        recalls, missed, plain = [], Counter[str](), [0, 0]
        for seed in range(seeds):
            chance = random.Random(f"{kind} {seed}")
            hits = 0
            for number in range(count):
                secret = make[number % len(make)](chance)
                form = chance.choice(around)
                text = chance.choice(rows)
                at = text.find(" ", chance.randrange(len(text))) + 1
                before = text[:at] + form.partition("{}")[0]
                whole = before + secret + form.partition("{}")[2] + " " + text[at:]
                start, end = len(before), len(before) + len(secret)
                good = any(first <= start and end <= last for first, last, _ in find(whole, list(KINDS)))
                hits += good
                if form == "{}":
                    plain[0] += good
                    plain[1] += 1
                if not good:
                    missed[f"{form}  {secret[:60]}"] += 1
            recalls.append(hits / count)
        figures[kind] = {"planted": count * seeds, "recall": common.spread(recalls)}
        figures[kind] |= {"recall_alone": plain[0] / plain[1]} if plain[1] else {}
        figures[kind]["missed"] = list(missed)[:8]
    return figures


def as_they_are(found: dict[str, list[str]]) -> dict[str, Any]:
    """What is found in texts in which nothing was planted, by set. What stands around it is shown, to be
    judged, and not saved: it is somebody's."""
    result: dict[str, Any] = {}
    for where, rows in found.items():
        finds = [(row, find(row, list(KINDS))) for row in rows]
        for row, some in finds:
            for start, end, kind in some[:3]:
                print(f"{where}, {kind}: {row[max(0, start - 30) : end + 10]!r}")
        result[where] = {
            "texts": len(rows),
            "characters": sum(map(len, rows)),
            "finds": dict(Counter(kind for _, some in finds for *_, kind in some)),
            "texts_with_any": sum(bool(some) for _, some in finds),
        }
    return result


def main() -> None:
    """All of it; --short with fewer texts and one seed."""
    parser = common.parser(__doc__)
    parser.add_argument("--count", type=int, default=400, help="planted of each kind, for each seed")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    count, seeds, runs = (100, 1, 1) if options.short else (options.count, options.seeds, 3)
    found = texts(options.short)
    figures = {
        "seeds": list(range(seeds)),
        "speed": speed(found, runs),
        "dropped": leaving(found),
        "languages": languages(found),
        "mojibake": mojibake(found),
        "planted": planted(found, count, seeds),
        "as_they_are": as_they_are(found),
    }
    rows = [
        [name, *(common.show(one[unit], 1) for unit in ("documents_per_second", "megabytes_per_second"))]
        for name, one in figures["speed"].items()
        if isinstance(one, dict)
    ]
    common.table("web pages and reviews, one core", ["step", "documents/s", "MB/s"], rows)
    common.table("languages told rightly", ["texts", "share"], list(figures["languages"].items()))
    common.table(
        "personal data and secrets planted (goal: 0.95)",
        ["kind", "planted", "recall", "alone"],
        [[kind, one["planted"], common.show(one["recall"]), one.get("recall_alone", "")]
         for kind, one in figures["planted"].items()],
    )  # fmt: skip
    common.table(
        "as they are",
        ["texts", "number", "with any", "finds"],
        [
            [where, one["texts"], one["texts_with_any"], one["finds"]]
            for where, one in figures["as_they_are"].items()
        ],
    )
    common.save(options, "corpus_quality", figures, common.versions("llmtool", "ftfy", "py3langid", "faker"))


if __name__ == "__main__":
    main()
