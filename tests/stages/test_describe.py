"""Descriptions before prepare, after it and of hostile names: plain data, a table and a card."""

import json

import pytest
import torch
from rich.console import Console

from llmtool.core.contracts import Classes, Features, NextToken, Tokens
from llmtool.data.features import FeaturesEncode
from llmtool.data.tokens import TokensEncode
from llmtool.models import adapters, pretrained
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.stages.describe import Subject, describe, expected_inputs, show
from llmtool.stages.model_card import model_card


def features_card(names=("no", "yes"), rows=800):
    return {
        "encoding": "features",
        "inputs": {"kind": "features", "width": 5},
        "targets": {"kind": "classes", "names": list(names), "counts": [1] * len(names)},
        "encoder": {},
        "splits": {"train": {"rows": rows, "arrays": {}}, "test": {"rows": 100, "arrays": {}}},
        "notes": ["column | `id` is left out: every row has its own"],
    }


def tokens_card(tokens, documents=1):
    return {
        "encoding": "tokens",
        "inputs": {"kind": "tokens", "vocabulary": 65},
        "targets": {"kind": "next_token"},
        "encoder": {},
        "splits": {"train": {"rows": 1, "tokens": tokens, "documents": documents, "arrays": {}}},
        "notes": [],
    }


def table(card=None, **keys):
    with torch.device("meta"):
        model = MLPConfig(hidden=[8]).build(Features(5), Classes(2))
    return Subject(
        "runs/adult", model.config, model, card, rows=32, precision="fp32", optimizer="adamw", **keys
    )


def language(card=None, **keys):
    with torch.device("meta"):
        model = TransformerConfig(depth=3, width=32, heads=2, context=16).build(Tokens(65), NextToken(65))
    return Subject("runs/text", model.config, model, card, rows=4, precision="bf16", optimizer="muon", **keys)


def printed(description, width=200):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(show(description))
    console.file.close()
    return console.export_text()


def test_a_prepared_table():
    description = json.loads(
        json.dumps(describe(table(features_card(), device_bytes=2**30)), allow_nan=False)
    )
    assert description["family"] == "mlp"
    assert description["inputs"] == {"kind": "features", "width": 5}
    assert description["outputs"] == {"kind": "classes", "n": 2}
    assert description["parameters"] == {"total": 66, "trainable": 66}
    assert description["flops"]["unit"] == "row"
    assert description["flops"]["forward"] == 2 * (5 * 8 + 8 * 2)
    assert description["memory"]["training"]["rows"] == 32
    assert description["memory"]["fits"] is True
    assert description["data"]["available"] == 800
    assert description["data"]["per_parameter"] == pytest.approx(800 / 66, abs=1e-3)
    assert description["data"]["verdict"] is None
    assert description["needs_prepare"] == []
    by_family = {family["family"]: family for family in description["families"]}
    assert by_family["mlp"]["chosen"]
    assert not by_family["transformer"]["accepts_these_inputs"]
    text = printed(description)
    for piece in ("body: Sequential", "66", "fits in 1.1 GB", "800 rows", "32 rows at once, fp32, adamw"):
        assert piece in text


def test_a_table_before_prepare():
    description = describe(Subject("runs/adult", MLPConfig(), None, None, 32, "fp32", "adamw"))
    assert description["structure"] is None
    assert description["memory"] is None
    assert description["data"] is None
    assert len(description["needs_prepare"]) == 2
    assert description["families"][0]["accepts_these_inputs"]
    assert "not known yet" in printed(description)
    assert "llmtool prepare" in model_card(description)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (10**9, "enough for one pass"),
        (250_000, "3.4 passes"),
        (10_000, "learn the text by heart"),
        (0, "passes"),
    ],
)
def test_a_language_model_and_its_tokens(tokens, words):
    description = describe(language(tokens_card(tokens)))
    total = description["parameters"]["total"]
    assert description["data"]["per_parameter"] == round(tokens / total, 4)
    assert words in description["data"]["verdict"]
    assert "rule of thumb" in description["data"]["rule"]
    assert "https://arxiv.org/abs/2203.15556" in description["data"]["rule"]
    assert description["flops"]["unit"] == "token"
    assert description["flops"]["forward"] * 16 == description["flops"]["row_forward"]
    assert description["memory"]["training"]["optimizer"] == "muon"
    assert "0 to 2 (3 alike)" in printed(description)
    assert "0 to 2 (3 alike)" in model_card(description)


def test_documents_in_one_row_cost_their_mask():
    alone, packed = describe(language(tokens_card(1000))), describe(language(tokens_card(1000, documents=9)))
    assert packed["memory"]["activations"] > alone["memory"]["activations"]


def test_a_model_with_room_for_more_tokens_than_its_data_has():
    card = tokens_card(5_000)
    card["inputs"] = {"kind": "tokens", "vocabulary": 50}
    description = describe(language(card))
    assert description["outputs"] == {"kind": "next_token", "vocabulary": 65}
    assert description["advice"]["families"][0]["family"] == "transformer"


def test_a_checkpoint_with_frozen_parts(tmp_path):
    model = MLPConfig(hidden=[8]).build(Features(5), Classes(2))
    pretrained.save(model, tmp_path)
    model = pretrained.skeleton(tmp_path)
    adapters.METHODS.validate_python({"kind": "head"}).apply(model)
    description = describe(Subject(str(tmp_path), model.config, model, features_card(), 8, "fp32", "sgd"))
    assert description["parameters"] == {"total": 66, "trainable": 18}
    assert "48 frozen" in printed(description)
    lora = pretrained.skeleton(tmp_path)
    adapters.LoRAConfig(rank=1).apply(lora)
    description = describe(Subject(str(tmp_path), lora.config, lora, None, 8, "fp32", "adamw"))
    assert description["parameters"]["trainable"] == 13
    assert "LoRALinear" in printed(description)


def test_names_of_others_cannot_change_the_card_or_the_table():
    names = ["a|b", "# head\n\n<script>", "[bold]x[/bold]", "`code`", *(f"class {i}" for i in range(30))]
    description = describe(table(features_card(names)))
    card = model_card(description)
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert "\n# head" not in card
    assert "and 14 more" in card
    assert "a\\|b" in card
    subject = table(features_card())
    subject.name = "runs/[red]x[/red]"
    assert "runs/[red]x[/red]" in printed(describe(subject))
    advice = False
    for line in card.splitlines():
        advice = line == "## Alternatives" or (advice and not line.startswith("#"))
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == (4 if advice else 3)


def test_inputs_before_prepare():
    def expected(**keys):
        return expected_inputs(TokensEncode(**{"as_": "tokens"} | keys))

    assert expected(tokenizer={"kind": "bytes"}) == (Tokens(257), "")
    inputs, note = expected(tokenizer={"kind": "bpe", "vocabulary": 500})
    assert inputs == Tokens(500)
    assert "configured" in note
    inputs, note = expected(tokenizer={"kind": "characters"})
    assert inputs == Tokens(100)
    assert "100 characters" in note
    assert expected_inputs(FeaturesEncode(as_="features", target="income"))[0] is None


def test_advice_stands_where_the_data_is_known():
    description = json.loads(json.dumps(describe(table(features_card())), allow_nan=False))
    assert [family["family"] for family in description["advice"]["families"] if family["chosen"]] == ["mlp"]
    text = printed(description)
    for piece in (
        "how it works: every layer",
        "mlp (this one)",
        "800 training rows",
        "to beat: always saying",
    ):
        assert piece in text
    assert "which model for which problem" not in text
    assert "## Alternatives" in model_card(description)
    unprepared = printed(describe(table()))
    assert "which model for which problem" in unprepared
    assert "convnet" in unprepared
