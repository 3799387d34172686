"""Writes configs/data/chats.jsonl: small talk whose answers follow from what was said; `--check` compares."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

TARGET = Path(__file__).parent.parent / "configs" / "data" / "chats.jsonl"
ROWS = 800
NAMES = [
    "Ada",
    "Alan",
    "Anna",
    "Ben",
    "Carl",
    "Cleo",
    "Dora",
    "Emil",
    "Eva",
    "Finn",
    "Gino",
    "Hana",
    "Ida",
    "Ivan",
    "Jane",
    "Karl",
    "Lea",
    "Lisa",
    "Max",
    "Mia",
    "Nora",
    "Olga",
]
NAMES += [
    "Otto",
    "Paul",
    "Pia",
    "Rosa",
    "Ruth",
    "Sam",
    "Sara",
    "Tara",
    "Theo",
    "Tim",
    "Uma",
    "Vera",
    "Yuki",
    "Zoe",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WORDS = [
    "apple",
    "bird",
    "boat",
    "book",
    "bread",
    "cat",
    "cloud",
    "door",
    "fish",
    "flower",
    "garden",
    "hand",
    "hat",
    "house",
    "lamp",
    "leaf",
    "moon",
    "paper",
    "rain",
    "river",
]
WORDS += ["road", "salt", "ship", "snow", "star", "stone", "sun", "table", "tree", "water", "wind", "wood"]
COLOURS = ["black", "blue", "brown", "green", "grey", "orange", "pink", "red", "white", "yellow"]


def exchange(chance: random.Random, known: dict[str, str]) -> tuple[str, str]:
    """A question and its answer; `known` is what the conversation has said so far."""
    kind = chance.choice(["name", "day", "spell", "count", "colour", "ask name", "ask colour"])
    if kind == "ask name" and "name" in known:
        return "What is my name?", f"Your name is {known['name']}."
    if kind == "ask colour" and "colour" in known:
        return "Which colour do I like?", f"You like {known['colour']}."
    if kind in ("name", "ask name"):
        known["name"] = chance.choice(NAMES)
        return f"My name is {known['name']}.", f"Hello, {known['name']}!"
    if kind in ("colour", "ask colour"):
        known["colour"] = chance.choice(COLOURS)
        return f"I like {known['colour']}.", f"{known['colour'].capitalize()} is a fine colour."
    if kind == "day":
        day, step = chance.randrange(7), chance.choice([1, -1])
        word = "after" if step == 1 else "before"
        return f"Which day comes {word} {DAYS[day]}?", f"{DAYS[(day + step) % 7]}."
    word = chance.choice(WORDS)
    if kind == "spell":
        return f"Spell {word}.", "-".join(word) + "."
    return f"How many letters has {word}?", f"{len(word)}."


def chats() -> str:
    """All conversations, one a line."""
    chance = random.Random(7)
    lines = []
    for _ in range(ROWS):
        known: dict[str, str] = {}
        messages = []
        for _ in range(chance.randint(1, 4)):
            question, answer = exchange(chance, known)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(dict.fromkeys(lines)) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == chats() else f"{TARGET} is not what this script writes")
    TARGET.write_text(chats())
