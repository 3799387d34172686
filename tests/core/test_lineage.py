"""A chain's hashes: they change from the changed link on and not before; places are in none of them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from llmtool.core.lineage import Chain, document, extend, read, short


def chain(source: str = "a", encoder: str = "b", weights: str = "c", place: str = "here") -> Chain:
    data = extend("source", f"{place}/data.csv", source)
    fitted = extend("encoder", f"{place}/card.json", encoder, data)
    dataset = extend("dataset", place, "d", data, fitted)
    model = extend("checkpoint", place, weights, dataset)
    return extend("metrics", place, "e", model, dataset)


def test_each_link_covers_what_it_was_made_from() -> None:
    links = chain()
    assert [link.what for link in links] == ["source", "encoder", "dataset", "checkpoint", "metrics"]
    before: set[str] = set()
    for link in links:
        assert set(link.made_from) <= before
        before.add(link.hash)
    assert len(before) == 5
    assert links[-1].made_from == (links[3].hash, links[2].hash)


@pytest.mark.parametrize(("changed", "first"), [("source", 0), ("encoder", 1), ("weights", 3)])
def test_a_change_goes_on_to_the_end_and_not_back(changed: str, first: int) -> None:
    pairs = list(zip(chain(), chain(**{changed: "x"}), strict=True))
    assert [old.hash != new.hash for old, new in pairs] == [at >= first for at in range(5)]


def test_places_are_in_no_hash() -> None:
    assert [link.hash for link in chain()] == [link.hash for link in chain(place="elsewhere")]


def test_a_kind_is_in_the_hash_and_equal_links_stand_once() -> None:
    one, other = extend("source", "a", "1"), extend("file", "a", "1")
    assert one[-1].hash != other[-1].hash
    both = extend("dataset", "b", "2", one, extend("source", "copy", "1"))
    assert len(both) == 2
    assert both[-1].made_from == (one[-1].hash,)
    assert extend("dataset", "b", "2", (), one)[-1].made_from == (one[-1].hash,)


def test_it_is_read_back() -> None:
    written = json.loads(json.dumps(document(chain())))
    assert read(written) == chain()
    assert written["hash"] == chain()[-1].hash == written["links"][-1]["hash"]
    assert document(()) == {"hash": None, "links": []}
    assert read(document(())) == ()


@pytest.mark.parametrize(
    ("link", "key", "value"),
    [(0, "content", "x"), (1, "what", "x"), (2, "from", []), (3, "hash", "x"), (0, "from", ["xxh3:0"])],
)
def test_what_was_meddled_with_is_refused(link: int, key: str, value: Any) -> None:
    written = copy.deepcopy(document(chain()))
    written["links"][link][key] = value
    with pytest.raises(ValueError, match=rf"link {link + 1} .*its hash does not fit"):
        read(written)


@pytest.mark.parametrize(
    "found", [None, 3, [], {}, {"hash": "x", "links": 1}, {"hash": None, "links": [1]}, {"links": [{}]}]
)
def test_what_is_no_chain_is_refused(found: Any) -> None:
    with pytest.raises(ValueError, match="not a chain of links"):
        read(found)


def test_another_end_or_order_is_refused() -> None:
    written = document(chain())
    with pytest.raises(ValueError, match="not that of its last link"):
        read({**written, "hash": written["links"][0]["hash"]})
    with pytest.raises(ValueError, match="link 1"):
        read({**written, "links": written["links"][::-1]})


def test_a_hash_is_shown_short() -> None:
    assert short("xxh3:0123456789abcdef") == "01234567"
    assert short("") == ""
