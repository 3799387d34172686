"""What was made of what: a chain of links, the hash of each of which covers all the links before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmtool.core import files

SHOWN = 8  # digits of a hash that a person sees


@dataclass(frozen=True)
class Link:
    """One thing that was made.

    what: its kind ("source", "dataset", "checkpoint" ...). where: its place, which is in no hash: the same
    files elsewhere are the same link. content: the hash of what it is. made_from: the hashes of other links.
    """

    what: str
    where: str
    content: str
    made_from: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Of the content and of everything before it: where it is equal, all of that is."""
        return files.hash_bytes(files.json_bytes([self.what, self.content, self.made_from]))


Chain = tuple[Link, ...]  # the last is what the chain is of; none stands before one that it was made from


def extend(what: str, where: str, content: str, *before: Chain) -> Chain:
    """The chain of a new thing that was made from the last things of the chains before."""
    links = {link.hash: link for chain in before for link in chain}
    ends = dict.fromkeys(chain[-1].hash for chain in before if chain)
    return (*links.values(), Link(what, where, content, tuple(ends)))


def document(chain: Chain) -> dict[str, Any]:
    """The chain as plain data: `hash` (of all of it) and `links`."""
    links = [
        {"what": link.what, "where": link.where, "content": link.content,
         "from": list(link.made_from), "hash": link.hash}
        for link in chain
    ]  # fmt: skip
    return {"hash": chain[-1].hash if chain else None, "links": links}


def read(found: Any) -> Chain:
    """The chain that `document` gave. ValueError where it is none, or a hash does not fit."""
    links: dict[str, Link] = {}
    try:
        for number, entry in enumerate(found["links"], 1):
            link = Link(entry["what"], entry["where"], entry["content"], tuple(entry["from"]))
            if not all(
                isinstance(part, str) for part in (link.what, link.where, link.content, *link.made_from)
            ):
                raise TypeError
            if link.hash != entry["hash"] or not set(link.made_from) <= links.keys():
                raise ValueError(
                    f"lineage: link {number} ({link.what}): its hash does not fit what stands there"
                )
            links[link.hash] = link
        if found["hash"] != next(reversed(links), None):
            raise ValueError("lineage: its hash is not that of its last link")
    except (KeyError, TypeError, AttributeError):
        raise ValueError("lineage: not a chain of links") from None
    return tuple(links.values())


def short(value: str) -> str:
    """A hash as a person reads it."""
    return value.rpartition(":")[2][:SHOWN]
