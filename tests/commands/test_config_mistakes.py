"""Every key of the shipped configurations, mistyped, is refused at its line with the right word beside it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtool import experiment
from llmtool.core import config
from llmtool.core.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
FREE = {"require", "mapping", "header", "rename", "class_weights"}  # what stands in these is the user's own


def keys(path: Path) -> list[tuple[config.Key, yaml.Node, yaml.Node]]:
    """Every key of the language in a file: its path, and where it and its value stand."""
    found: list[tuple[config.Key, yaml.Node, yaml.Node]] = []

    def walk(node: yaml.Node, at: config.Key) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found.append(((*at, key.value), key, value))
                if key.value not in FREE:
                    walk(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*at, index))

    walk(yaml.compose(path.read_text(), Loader=yaml.SafeLoader), ())
    return found


EVERY = [(path, *key) for path in CONFIGS for key in keys(path)]


def typo(word: str, seed: int) -> str:
    """The word with one letter left out, doubled, replaced or swapped with its neighbour."""
    chance = random.Random(seed)
    at = chance.randrange(len(word))
    other = chance.choice("abcdefghijklmnopqrstuvwxyz")
    ways = [word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + other + word[at + 1 :]]
    if at + 1 < len(word):
        ways.append(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
    return chance.choice(ways)


def complaints(text: str) -> list[str]:
    """What is wrong with a configuration; its lines carry their place."""
    document = None
    try:
        document = config.parse(text, "c.yaml")
        config.validate(document, experiment.Experiment)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def replaced(text: str, node: yaml.Node, new: str) -> str:
    return text[: node.start_mark.index] + new + text[node.end_mark.index :]


def test_the_shipped_files_are_right() -> None:
    assert len(EVERY) > 100
    for path in CONFIGS:
        assert complaints(path.read_text()) == [], path


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.integers(0, len(EVERY) - 1), seed=st.integers(0, 10**6))
def test_a_mistyped_key_is_named_at_its_place(which: int, seed: int) -> None:
    path, key, name, _ = EVERY[which]
    word = typo(str(key[-1]), seed)
    if word in ("", str(key[-1])):
        return
    lines = complaints(replaced(path.read_text(), name, word))
    place = f"c.yaml:{name.start_mark.line + 1}:{name.start_mark.column + 1}: "
    named = any(line.startswith(place) and str(word) in line for line in lines)
    # a section is told apart by this key: without it, what is missing is named at the section
    assert named or any(f"needs the key '{key[-1]}' (choices: " in line for line in lines), lines


def test_a_mistyped_key_brings_the_right_suggestion() -> None:
    right = wrong = 0
    missed = []
    for number, (path, key, name, _) in enumerate(EVERY):
        word = str(key[-1])
        mistyped = typo(word, number)
        if len(word) < 3 or mistyped == word:  # `on`, `lr`, `by`, `of`: too short to be guessed
            continue
        lines = complaints(replaced(path.read_text(), name, mistyped))
        if any(f'did you mean "{word}"' in line for line in lines):
            right += 1
        else:
            wrong += 1
            missed.append((key, mistyped, lines))
    assert right / (right + wrong) >= 0.95, missed


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.integers(0, len(EVERY) - 1), value=st.sampled_from(["{x: 1}", "[[]]", "-1.5", "true", "'?'"]))
def test_a_value_of_the_wrong_kind_is_named_at_its_place(which: int, value: str) -> None:
    path, key, name, node = EVERY[which]
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return  # its end is the next line's beginning
    text = path.read_text()
    lines = complaints(replaced(text, node, value))
    for line in lines:
        match = re.match(r"c\.yaml:(\d+):(\d+): ([\w.]+|the file)", line)
        assert match, line
        assert int(match[1]) <= text.count("\n") + 1
    inner = [line for line in lines if ".".join(map(str, key)) in line]
    place = f"c.yaml:{name.start_mark.line + 1}:"
    # a string may well be a path, a column or a name; where it is refused, it is at its line
    assert not lines or inner or any(line.startswith(place) for line in lines), lines
    if value == "{x: 1}" and not isinstance(node, yaml.MappingNode):
        assert lines


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_key_left_out_or_twice(path: Path) -> None:
    text = path.read_text()
    for key, name, node in keys(path):
        if key[-1] in ("by", "name", "kind", "family", "step", "format", "as"):
            lines = complaints(replaced(text, name, "zzzzzz"))
            assert any(f"needs the key '{key[-1]}' (choices: " in line for line in lines), lines
        if node.start_mark.line == node.end_mark.line:
            once = text[name.start_mark.index : node.end_mark.index]
            flow = isinstance(name.start_mark.column, int) and text[name.start_mark.index - 1] in "{ ,"
            if flow and text[node.end_mark.index : node.end_mark.index + 1] in ("}", ","):
                lines = complaints(text[: node.end_mark.index] + ", " + once + text[node.end_mark.index :])
                assert any("this key stands twice (first at c.yaml:" in line for line in lines), lines


def test_all_errors_come_at_once_in_the_order_of_the_file() -> None:
    text = CONFIGS[0].read_text()
    wrong: Any = text.replace("data:", "sed: 1\ndata:", 1).replace("train:", "trian:", 1)
    lines = complaints(wrong)
    assert len(lines) >= 2
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers)
