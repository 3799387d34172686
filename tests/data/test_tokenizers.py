"""Tokenizers: exact round trips, the fast paths against tokenizer.json, transformers, and broken files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import tokenizers
from llmtool.data.tokenizers import (
    END,
    BpeTokenizer,
    BytesTokenizer,
    CharactersTokenizer,
    FileTokenizer,
    FittedTokenizer,
    WordsTokenizer,
    read_tokenizer,
    reads_alike,
)

CORPUS = [
    "To be, or not to be, that is the question:\r\n\r\n",
    "日本語のテキスト、中文文本。 한국어 \u200d👩\u200d💻 é é\t\x00\x7f  trailing  \n\n",
    f"1234567 12.5e-3 don't DON'T {END} <|unknown|> ()[]{{}} \u2028 \U0010ffff",
] * 20
KINDS = [BytesTokenizer(), CharactersTokenizer(), BpeTokenizer(vocabulary=400)]
FITTED = {config.kind: config.fit(lambda: iter(CORPUS)) for config in KINDS}
KIND = pytest.mark.parametrize("kind", list(FITTED))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def ids_of(fitted: FittedTokenizer, *texts: str) -> list[int]:
    ids, lengths = fitted.ids(fitted.encode(list(texts)))
    assert lengths.sum() == len(ids)
    return ids.tolist()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_decoding_gives_the_text_back(kind: str, text: str) -> None:
    fitted = FITTED[kind]
    ids = ids_of(fitted, text)
    assert fitted.decode(ids) == text
    assert all(0 <= i < fitted.vocabulary and i != fitted.end for i in ids)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from(sorted(set("".join(CORPUS)))), max_size=80))
def test_decoding_known_characters_gives_the_text_back(text: str) -> None:
    assert FITTED["characters"].decode(ids_of(FITTED["characters"], text)) == text


@KIND
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_the_ids_are_those_of_tokenizer_json(kind: str, texts: list[str]) -> None:
    fitted = FITTED[kind]
    library = [fitted.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    ids, lengths = fitted.ids(fitted.encode(texts))
    assert ids.tolist() == [i for part in library for i in part]
    assert lengths.tolist() == list(map(len, library))


@KIND
def test_corpus_round_trip_and_control_tokens_cannot_be_forged(kind: str) -> None:
    fitted = FITTED[kind]
    for text in CORPUS[:3]:
        ids = ids_of(fitted, text)
        assert fitted.decode(ids) == text
        assert fitted.end not in ids
    assert fitted.decode([fitted.end]) == END


@KIND
def test_transformers_reads_what_is_saved(kind: str, tmp_path: Path) -> None:
    fitted = FITTED[kind]
    fitted.save(tmp_path)
    transformers = pytest.importorskip("transformers")
    for kind_ in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        other = kind_.from_pretrained(tmp_path)
        assert other.eos_token == END
        assert other.eos_token_id == fitted.end
        assert len(other) == fitted.vocabulary
        for text in CORPUS[:2]:
            assert other(text, add_special_tokens=False)["input_ids"] == ids_of(fitted, text)
            assert other.decode(ids_of(fitted, text)) == text


@KIND
def test_state_comes_back_and_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    fitted = FITTED[kind]
    fitted.save(tmp_path)
    state = json.loads(json.dumps(fitted.state()))
    back = FittedTokenizer.from_state(state, tmp_path)
    assert back.state() == fitted.state()
    assert ids_of(back, *CORPUS[:3]) == ids_of(fitted, *CORPUS[:3])
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(
        DataError, match=r"tokenizer.json: is not the tokenizer that this data was prepared with"
    ):
        FittedTokenizer.from_state(state, tmp_path)


def words(text: str, **keys: Any) -> list[str]:
    """How a text is cut, every word of it known."""
    fitted = WordsTokenizer(minimum=1, **keys).fit(lambda: iter([text]))
    return [fitted.tokenizer.id_to_token(i) for i in ids_of(fitted, text)]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("It's FINE, don’t!", ["it's", "fine", ",", "don’t", "!"]),
        ("日本語abc中文 naïve", ["日", "本", "語", "abc", "中", "文", "naïve"]),
        ("한국어 텍스트 ёлка №5", ["한국어", "텍스트", "ёлка", "no5"]),
        ("กา 3.5 Ａ", ["ก", "า", "3", ".", "5", "a"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
    ],
)
def test_words_of_many_scripts(text: str, cut: list[str]) -> None:
    assert words(text) == cut


def test_words_are_kept_by_how_often_they_stand_there() -> None:
    texts = ["b b b a a c", "B A"]
    fitted = WordsTokenizer().fit(lambda: iter(texts))
    assert fitted.vocabulary == 3
    assert ids_of(fitted, "a b c <|unknown|>")[:3] == [2, 1, 0]
    assert WordsTokenizer(vocabulary=2).fit(lambda: iter(texts)).vocabulary == 2
    assert WordsTokenizer(minimum=4, lowercase=False).fit(lambda: iter([*texts, "b"])).vocabulary == 2
    assert fitted.decode(ids_of(fitted, "A b, c")) == "a b <|unknown|> <|unknown|>"
    assert ids_of(fitted, " \n") == []
    assert words("Film film", lowercase=False) == ["Film", "film"]
    with pytest.raises(DataError, match=r"no word stands 2 times .* tokenizer\.minimum: 1"):
        WordsTokenizer().fit(lambda: iter(["one two"]))


def test_words_are_saved_as_others_read_them(tmp_path: Path) -> None:
    fitted = WordsTokenizer(minimum=1).fit(lambda: iter(["床前明月光", "Moon light"]))
    fitted.save(tmp_path)
    again = FittedTokenizer.from_state(fitted.state(), tmp_path)
    text = "明月 moon 風"
    assert ids_of(again, text) == ids_of(fitted, text)
    assert ids_of(again, "風") == [fitted.unknown]
    assert again.around() == ([], [])
    assert FileTokenizer(path=str(tmp_path)).fit(lambda: iter([])).unknown == fitted.unknown


def test_what_stands_around_a_text_is_the_datas_affair_where_the_model_says_nothing(tmp_path: Path) -> None:
    def saved(name: str, end: int | None = None) -> Path:
        fitted = BytesTokenizer().fit(lambda: iter([]))
        if end is not None:
            fitted.end = end
            fitted.say_around()
        (tmp_path / name).mkdir()
        fitted.save(tmp_path / name)
        return tmp_path / name

    plain, ended, other = saved("plain"), saved("ended", 256), saved("other", 65)
    assert reads_alike(ended, plain)
    assert reads_alike(plain, ended)  # without a word of its own, the end token stands there all the same
    assert reads_alike(other, plain)
    assert not reads_alike(other, ended)
    (tmp_path / "words").mkdir()
    FITTED["bpe"].save(tmp_path / "words")
    assert not reads_alike(tmp_path / "words", plain)


def test_bytes_are_their_own_ids() -> None:
    assert ids_of(FITTED["bytes"], "Aé\0") == [65, 195, 169, 0]
    assert FITTED["bytes"].vocabulary == 257
    assert FITTED["bytes"].decode([255, 65]) == "\ufffdA"


def test_characters_are_sorted_and_unseen_ones_unknown() -> None:
    fitted = CharactersTokenizer().fit(lambda: iter(["ba", "c\n"]))
    assert ids_of(fitted, "\nabc") == [0, 1, 2, 3]
    assert (fitted.unknown, fitted.end, fitted.vocabulary) == (4, 5, 6)
    assert ids_of(fitted, "az😀") == [1, 4, 4]
    assert fitted.decode([1, 4]) == "a<|unknown|>"


def test_bpe_learns_the_same_every_time_and_says_when_text_is_short() -> None:
    one = BpeTokenizer(vocabulary=400).fit(lambda: iter(CORPUS))
    assert one.state() == FITTED["bpe"].state()
    short = BpeTokenizer(vocabulary=5000).fit(lambda: iter(["aaaa"]))
    assert short.vocabulary < 270
    assert any("fewer than the 5,000 asked" in note for note in short.notes)
    nothing = BpeTokenizer().fit(lambda: iter([]))
    assert (nothing.vocabulary, nothing.decode(ids_of(nothing, "é"))) == (257, "é")


def test_bpe_takes_numbers_apart_and_keeps_words_whole() -> None:
    fitted = BpeTokenizer(vocabulary=1000).fit(lambda: iter(["the 123456 cat sat\n"] * 200))
    tokens = [fitted.decode([i]) for i in ids_of(fitted, "the 123456 cat")]
    assert tokens == ["the", " ", "123", "456", " cat"]


def test_more_text_than_the_cap_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "TRAINING_BYTES", 10_000)
    monkeypatch.setattr(tokenizers, "GROUP_CHARACTERS", 100)
    seen: list[str] = []

    def texts() -> Iterator[str]:
        for i in range(2000):
            yield f"{i:050}"

    sample = tokenizers._Sample(texts())
    for group in sample.groups():
        seen += group
    assert 4_000 <= sum(map(len, seen)) <= 10_000
    numbers = np.array(sorted(map(int, seen)))
    assert np.diff(numbers).max() < 50
    assert numbers[-1] > 1900
    (note,) = sample.notes()
    assert note.endswith("of 100,000 bytes of the train text, evenly taken")
    fitted = BpeTokenizer(vocabulary=260).fit(texts)
    assert "evenly taken" in fitted.notes[0]


# --- an existing file ---


def saved(directory: Path, change: Any = None, config: Any = None) -> Path:
    tokenizer = Tokenizer(
        models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "</s>": 3, "stop": 4}, unk_token="[UNK]")
    )
    data = json.loads(tokenizer.to_str())
    if change:
        change(data)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(data))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "keys", "end"),
    [
        (None, {}, 3),
        ({"eos_token": "stop"}, {}, 4),
        ({"eos_token": {"content": "stop"}}, {}, 4),
        ({"eos_token": "stop"}, {"end": "b"}, 2),
        ([], {}, 3),
    ],
)
def test_a_file_is_used_as_it_is(tmp_path: Path, config: Any, keys: dict, end: int) -> None:
    path = saved(tmp_path, config={} if config == [] else config)
    for where in (path, tmp_path):
        fitted = FileTokenizer(path=str(where), **keys).fit(lambda: iter([]))
        assert (fitted.vocabulary, fitted.end, fitted.unknown) == (5, end, 0)
        assert ids_of(fitted, "a", "z") == [1, 0]
        assert fitted.state()["source"]["path"] == str(path)
        assert fitted.state()["source"]["hash"].startswith("xxh3:")


def test_truncation_padding_and_dropout_of_the_file_are_switched_off(tmp_path: Path) -> None:
    tokenizer = FITTED["bpe"].tokenizer
    data = json.loads(tokenizer.to_str())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 200},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END,
    }
    data["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    fitted = FileTokenizer(path=str(tmp_path)).fit(lambda: iter([]))
    assert ids_of(fitted, CORPUS[0]) == ids_of(FITTED["bpe"], CORPUS[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["model"]["vocab"].update(far=4_000_000_000), "token ids go up to 4,000,000,000"),
        (lambda data: data["model"]["vocab"].update(twice=1), "same id"),
        (lambda data: data["model"]["vocab"].update(bad=-1), "no usable tokenizer"),
        (lambda data: data["model"].update(type="Nonsense"), "no usable tokenizer"),
        (lambda data: data.pop("model"), "no usable tokenizer"),
        (
            lambda data: data.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(a+"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            "no usable tokenizer",
        ),
        (lambda data: data["model"].update(vocab={}), "tokens"),
    ],
)
def test_a_broken_tokenizer_is_one_clear_error(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"tokenizer.json: .*{message}") as error:
        read_tokenizer(saved(tmp_path, change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]"])
def test_a_file_that_is_no_tokenizer_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tokenizer.json: no "):
        read_tokenizer(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(500_000_000)  # sparse: takes no room
    with pytest.raises(DataError, match="500,000,000 bytes; a tokenizer has at most"):
        read_tokenizer(path)


def test_a_missing_file_or_end_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.encode.tokenizer.path: .*no such file"):
        FileTokenizer(path=str(tmp_path / "no.json")).fit(lambda: iter([]))
    with pytest.raises(ConfigError, match=r"data.encode.tokenizer.end: .*has no token 'END'"):
        FileTokenizer(path=str(saved(tmp_path)), end="END").fit(lambda: iter([]))


def test_a_panic_of_the_library_is_a_data_error() -> None:
    class PanicException(BaseException):
        pass

    def fail(error: BaseException) -> None:
        with tokenizers.readable_errors("training"):
            raise error

    with pytest.raises(DataError, match=r"^training: boom$"):
        fail(PanicException("boom\nat line 3"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())


def test_a_pattern_that_takes_for_ever_is_a_data_error(tmp_path: Path) -> None:
    def change(data: dict) -> None:
        pattern = {"Regex": r"(a+)+$"}
        data["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    fitted = FileTokenizer(path=str(saved(tmp_path, change)), end="stop").fit(lambda: iter([]))
    with pytest.raises(DataError, match="the tokenizer failed on a text"):
        fitted.encode(["a" * 60 + "b"])
