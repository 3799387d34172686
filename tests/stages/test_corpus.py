"""Cleaning a corpus: the account names rules, shows examples and counts changes, and no secret stays."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import CleanStep, DataConfig
from llmtool.data.dropped import FILE, MOST
from llmtool.stages.prepare import PrepareResult, prepare

PROSE = (
    "The harbour lay under fog that morning, and nobody at the quay expected the ferry to arrive on time. "
    "An old man with a wicker basket had been waiting since dawn; he told us of storms his father survived, "
    "of lamps on distant reefs, and of a girl who could hear whales through the hull of boat number {}."
)
SECRETS = ["joe.bloggs@mail.example.org", "+1 212 555 0147", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"]


def corpus(path: Path, rows: list[dict[str, Any]], clean: list[dict[str, Any]], **keys: Any) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataConfig.model_validate(
        {
            "source": {"format": "jsonl", "path": str(path)},
            "clean": clean,
            "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}},
            **keys,
        }
    )


def run(config: DataConfig, tmp_path: Path) -> PrepareResult:
    directory = tmp_path / "prepare"
    directory.mkdir(exist_ok=True)
    return prepare(config, 0, directory)


def texts() -> list[dict[str, Any]]:
    good = [{"text": PROSE.format(n)} for n in range(60)]
    good[7]["text"] += f" Write to {SECRETS[0]} or call {SECRETS[1]}."
    good[8]["text"] += " naÃ¯ve cafÃ©"
    short = [{"text": f"buy now {n} {SECRETS[0]}"} for n in range(MOST + 5)]
    other = [
        {"text": "Le comité se réunira de nouveau jeudi, et les membres seront présentés aux autres. " * 8}
    ]
    return [*good, *short, *other]


STEPS: list[dict[str, Any]] = [
    {"step": "fix_text"},
    {"step": "gopher_quality", "min_stop_words": None},
    {"step": "keep_languages", "languages": ["en"]},
    {"step": "personal_data"},
]


def test_the_account_names_rules_and_changes_and_shows_examples(tmp_path: Path) -> None:
    result = run(corpus(tmp_path / "a.jsonl", texts(), STEPS), tmp_path)
    ledger = result.ledger
    short = "text: fewer than 50 words (gopher_quality.min_words)"
    assert ledger["dropped"][short] == MOST + 5
    assert ledger["dropped"]["text: French (keep_languages)"] == 1
    assert ledger["read"] == sum(ledger["kept"].values()) + sum(ledger["dropped"].values())
    assert ledger["changed"] == {
        "text: repaired (fix_text)": 1,
        "text: email redacted (personal_data)": 1,
        "text: phone redacted (personal_data)": 1,
    }
    examples = json.loads((tmp_path / "prepare" / FILE).read_text())
    assert set(examples) == set(ledger["dropped"])
    assert len(examples[short]) == MOST
    first = examples[short][0]
    assert first["file"].endswith("a.jsonl")
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[first["line"] - 1])
    assert first["row"]["text"] == line["text"].replace(SECRETS[0], "<EMAIL>")
    (french,) = examples["text: French (keep_languages)"]
    assert len(french["row"]["text"]) == 303  # cut
    again = run(corpus(tmp_path / "a.jsonl", texts(), STEPS), tmp_path)
    assert (again.ledger, again.card["fingerprint"]) == (ledger, result.card["fingerprint"])


def test_no_secret_is_written_anywhere(tmp_path: Path) -> None:
    rows = [{"text": PROSE.format(n)} for n in range(60)]
    rows[5]["text"] = "A" * 1000 + f" my token is {SECRETS[2]}, keep it. " + "B" * 1000
    rows[6] = {"text": 5, "note": f"mail {SECRETS[0]} about it"}
    steps = [
        {"step": "gopher_quality", "min_words": 3},
        {"step": "personal_data", "do": "drop"},
    ]
    result = run(corpus(tmp_path / "a.jsonl", rows, steps, max_bad=0.5), tmp_path)
    assert (
        result.ledger["dropped"][
            "text: words longer than 10 characters on average (gopher_quality.max_mean_word_length)"
        ]
        == 1
    )
    assert result.ledger["quarantined"] == {"text is no text": 1}
    steps[0]["max_mean_word_length"] = None
    steps[0]["min_stop_words"] = None
    result = run(corpus(tmp_path / "a.jsonl", rows, steps, max_bad=0.5), tmp_path)
    found = "text: api_key found (personal_data)"
    assert result.ledger["dropped"] == {found: 1}
    (example,) = json.loads((tmp_path / "prepare" / FILE).read_text())[found]
    assert "my token is <API_KEY>, keep it." in example["row"]["text"]
    for path in (tmp_path / "prepare").iterdir():
        data = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in data], path.name


def test_examples_are_there_when_nothing_is_left(tmp_path: Path) -> None:
    rows = [{"text": f"short {n}"} for n in range(30)]
    config = corpus(tmp_path / "a.jsonl", rows, [{"step": "gopher_quality"}])
    with pytest.raises(
        DataError, match=r"no row is left of 30: 30 text: fewer than 50 words \(gopher_quality.min_words\)"
    ):
        run(config, tmp_path)
    examples = json.loads((tmp_path / "prepare" / FILE).read_text())
    assert [len(rows) for rows in examples.values()] == [MOST]
    run(corpus(tmp_path / "a.jsonl", rows, []), tmp_path)
    assert not (tmp_path / "prepare" / FILE).exists()


def test_a_column_of_numbers_and_a_missing_one_are_refused_with_the_place(tmp_path: Path) -> None:
    rows = [{"text": f"word {n}", "age": n} for n in range(30)]
    config = corpus(tmp_path / "a.jsonl", rows, [{"step": "fix_text", "columns": ["age"]}])
    with pytest.raises(DataError, match=r"30 of 30 rows are bad .*a\.jsonl, line 1: age is no text"):
        run(config, tmp_path)
    config = corpus(tmp_path / "a.jsonl", rows, [{"step": "c4_quality", "column": "txt"}])
    with pytest.raises(
        ConfigError, match=r"data\.clean\.0: c4_quality: no column 'txt'; did you mean \"text\""
    ):
        run(config, tmp_path)


def test_the_steps_in_the_guide_are_understood() -> None:
    guide = (Path(__file__).parents[2] / "configs" / "README.md").read_text(encoding="utf-8")
    block = guide.split("## Cleaning a corpus")[1].split("```yaml\n")[1].split("```")[0]
    steps = TypeAdapter(list[CleanStep]).validate_python(yaml.safe_load(block)["clean"])
    assert {step.step for step in steps} >= {"fix_text", "keep_languages", "c4_quality", "personal_data"}
