"""Texts written together: each as alone, streamed in whole pieces, ended by tokens and by texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.data.prompts import PromptTokenizer
from llmtool.data.tokenizers import BytesTokenizer
from llmtool.evaluation import writer as module
from llmtool.evaluation.writer import Order, Writer, ends
from llmtool.models.generation import Sampling
from llmtool.models.transformer import TransformerConfig

WARM = Sampling(temperature=1.0, top_k=40)
PROMPTS = [list(text.encode()) for text in ("ab", "a longer prompt", "x", "and one more", "the last")]


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    BytesTokenizer(kind="bytes").fit(lambda: iter(())).save(tmp_path)
    torch.manual_seed(0)
    model = TransformerConfig(depth=1, heads=2, width=16, context=32).build(Tokens(257), NextToken(257))
    vars(model)["carried"] = {"eos_token_id": [10, 256]}
    tokenizer = PromptTokenizer.read(tmp_path)
    return Writer(model, tokenizer, ends(model, tokenizer), torch.device("cpu"))


def test_texts_are_the_same_alone_and_in_any_company(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writer.ends == {10, 256}
    seeds = [3, 4, 5, 6, 7]
    done: list[int] = []
    pieces: dict[int, str] = {}

    def told(number: int, text: str) -> None:
        pieces[number] = pieces.get(number, "") + text

    found = writer.write(PROMPTS, Order(60, WARM), seeds, told, done.append)
    assert [pieces.get(at, "") for at in range(5)] == [one.text for one in found]
    assert sum(done) == 5
    alone = [
        writer.write([ids], Order(60, WARM), [seed])[0] for ids, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert alone == found
    monkeypatch.setattr(module, "MOST", 2)
    assert writer.write(PROMPTS, Order(60, WARM), seeds) == found


def test_how_texts_end(writer: Writer) -> None:
    found = writer.write(PROMPTS, Order(400, WARM))
    assert {one.ended for one in found} == {"end"}
    for one in found:
        assert one.ids[-1] in writer.ends
        assert not set(one.ids[:-1]) & writer.ends
        assert one.text == bytes(one.ids[:-1]).decode("utf-8", "replace")
    text = found[1].text
    stop = text[len(text) // 2 :][:2]
    (stopped,) = writer.write(PROMPTS[1:2], Order(400, WARM, (stop,)), [1])
    assert (stopped.text, stopped.ended) == (text[: text.index(stop)], "stop")
    (short,) = writer.write(PROMPTS[:1], Order(1, WARM), [0])
    assert (short.ended, len(short.ids)) == ("length", 1)
