"""Text that comes token by token: nothing is shown too early, nothing is lost, stop texts end it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from llmtool.data.prompts import PromptTokenizer
from llmtool.data.tokenizers import BytesTokenizer
from llmtool.data.writing import PENDING, TextStream


@pytest.fixture
def by_bytes(tmp_path: Path) -> PromptTokenizer:
    BytesTokenizer(kind="bytes").fit(lambda: iter(())).save(tmp_path)
    return PromptTokenizer.read(tmp_path)


def like_llama() -> PromptTokenizer:
    """Words begin with a blank, which the first of a text loses; bytes where there is no token."""
    words = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "b", "c", "▁", "a"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PromptTokenizer(tokenizer, None, None)


def fed(stream: TextStream, ids: list[int]) -> list[str]:
    parts = []
    for token in ids:
        parts.append(stream.feed(token))
        if stream.stopped:
            break
    return [*parts, stream.finish()]


def test_characters_come_whole(by_bytes: PromptTokenizer) -> None:
    ids = list("a€😀b".encode())
    stream = TextStream(by_bytes)
    assert fed(stream, ids) == ["a", "", "", "€", "", "", "", "😀", "b", ""]
    assert stream.text == "a€😀b"
    cut = TextStream(by_bytes)
    assert fed(cut, ids[:3]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]  # the text ended in the middle
    endless = TextStream(by_bytes)
    parts = fed(endless, [0xFF] * 2 * PENDING)
    assert "".join(parts) == endless.text == "\N{REPLACEMENT CHARACTER}" * 2 * PENDING
    assert parts[PENDING - 1]  # not held back for ever


def test_stop_texts_end_a_text_however_they_are_cut(by_bytes: PromptTokenizer) -> None:
    stream = TextStream(by_bytes, ["END", "\n\n"])
    assert fed(stream, list(b"an E and ENx\nyEND more")) == [
        "a", "n", " ", "", "E ", "a", "n", "d", " ", "", "", "ENx", "", "\ny", "", "", "", "",
    ]  # fmt: skip
    assert stream.stopped
    assert stream.text == "an E and ENx\ny"
    held = TextStream(by_bytes, ["END"])
    assert "".join(fed(held, list(b"the EN"))) == "the EN"
    assert not held.stopped


def test_a_continuation_keeps_its_blank(by_bytes: PromptTokenizer) -> None:
    tokenizer = like_llama()
    ids = tokenizer.encode(["a b"])[0]
    assert tokenizer.decode(ids) == "a b"
    after, new = ids[:2], ids[2:]
    assert tokenizer.decode(new) == "b"  # alone it is a text of its own
    stream = TextStream(tokenizer, after=after)
    assert "".join(fed(stream, new)) == " b"
    own = TextStream(tokenizer)
    assert "".join(fed(own, new)) == "b"


def test_any_stream_is_the_text_of_its_tokens() -> None:
    tokenizer, chance = like_llama(), random.Random(0)
    for _ in range(200):
        ids: list[int] = []
        while len(ids) < 30:
            if chance.random() < 0.1:
                ids.append(0)
            elif chance.random() < 0.3:
                ids += [1 + byte for byte in chance.choice("é€😀 ").encode()]
            else:
                ids.append(chance.randrange(257, 262))
        stream = TextStream(tokenizer)
        assert "".join(fed(stream, ids)) == stream.text == tokenizer.decode(ids)
        stop = stream.text[10:12]
        stopped = TextStream(tokenizer, [stop])
        assert "".join(fed(stopped, ids)) == stopped.text == stream.text[: stream.text.index(stop)]
