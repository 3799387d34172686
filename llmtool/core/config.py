"""Reads one YAML file into one frozen pydantic model: strict, all errors at once, each with its place.

PyYAML alone reads `1e-4` as a string, `no` as False, lets duplicate keys pass, follows alias bombs and
crashes on deep nesting. So: scan the events first (size, depth, tags, aliases), compose nodes with marks,
read scalars as YAML 1.2's core schema does, and only then validate (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from llmtool.core.errors import ConfigError, ConfigErrors
from llmtool.core.urls import without_secrets

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_EVENTS = 100_000

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


DERIVED: Any = None  # the default of a key that follows from others, until the section has filled it in


class Section(BaseModel):
    """A mapping in the YAML file. Unknown keys and wrong types are errors; nothing is converted."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
    )


@dataclass(frozen=True)
class Document:
    """Plain data read from a file, and where each key stands in it."""

    name: str
    data: dict[str, Any]
    marks: dict[Key, str]  # key path -> "file:line:column", or the --set that wrote it

    def place(self, key: str | Key) -> str:
        """Where `key` (or the nearest section around it) stands: "file.yaml:12:5"."""
        path = tuple(key.split(".")) if isinstance(key, str) else key
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, self.name)

    def path(self, key: str) -> Key:
        """The path of a dotted key: words, and a number where it leads into a list."""
        path: Key = ()
        for word in key.split("."):
            number = word.isdecimal() and isinstance(_at(self.data, path), list)
            path = (*path, int(word) if number else word)
        return path


def load(path: str, overrides: Sequence[str], model: type[Model]) -> tuple[Model, Document]:
    """Read `path`, apply each `--set key=value`, validate. Raises ConfigErrors with every error found."""
    document = read(path, overrides)
    return validate(document, model), document


def validate(document: Document, model: type[Model]) -> Model:
    """The model of a document; ConfigErrors carries one line per error, in the order of the file."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigErrors(_explain(error, document, model)) from None


# --- reading ---


def read(path: str, overrides: Sequence[str] = ()) -> Document:
    """The mapping in the file with each `key=value` of `overrides` set, as plain data with marks."""
    file = Path(path)
    try:
        if is_piped(path):
            content = _piped(path)
            size = len(content)
        elif file.is_file():
            size = file.stat().st_size
            content = file.read_bytes() if size <= MAX_BYTES else b""
        else:
            wrong = "not a regular file (- reads standard input)" if file.exists() else "no such file"
            raise ConfigError(f"{path}: {'is a directory' if file.is_dir() else wrong}")
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes; a configuration has at most {MAX_BYTES:,}")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    document = parse(text, path)
    for override in overrides:
        _override(document, override)
    return document


def is_piped(path: str) -> bool:
    """Whether this is a stream of this very process (`-`, /dev/stdin, the shell's `<(...)`), which can be
    read once, and by no other process."""
    return re.fullmatch(r"-|/dev/stdin|/(dev|proc/self)/fd/\d+", path) is not None


def need_file(path: str) -> None:
    """ConfigError for a stream, where other processes read the configuration too."""
    if is_piped(path):
        raise ConfigError(
            f"{path}: other processes read the configuration too: it must be a regular file, not a pipe"
        )


@functools.cache
def _piped(path: str) -> bytes:
    """What a stream holds, or the beginning that is too long already; kept, for whoever reads it again."""
    if path == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with open(path, "rb") as stream:
        return stream.read(MAX_BYTES + 1)


def parse(text: str, name: str) -> Document:
    """The mapping in `text`; `name` stands in the messages."""
    node = _compose(text, name)
    if node is None:
        raise ConfigError(f"{name}: the file is empty; it needs at least a `data:` section")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_mark(name, node.start_mark)}: expected a mapping of sections at the top")
    errors: list[str] = []
    marks: dict[Key, str] = {}
    data = _plain(node, (), name, marks, errors)
    if errors:
        raise ConfigErrors(errors)
    return Document(name, data, marks)


def _mark(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def _compose(text: str, name: str) -> yaml.Node | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        # an iterator: nesting cannot exhaust the stack
        for count, event in enumerate(yaml.parse(text, Loader=loader)):
            place = _mark(name, event.start_mark)
            if count > MAX_EVENTS:
                raise ConfigError(f"{place}: more than {MAX_EVENTS:,} elements; is this a configuration?")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ConfigError(
                    f"{place}: anchors and aliases (& and *) are not supported; write the value out"
                )
            if tag := getattr(event, "tag", None):
                raise ConfigError(f"{place}: tags are not supported ({tag})")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{place}: nested more than {MAX_DEPTH} deep")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, [error.problem, error.context]))
        raise ConfigError(f"{_mark(name, mark) if mark else name}: {problem}") from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None


def _plain(node: yaml.Node, path: Key, name: str, marks: dict[Key, str], errors: list[str]) -> Any:
    marks.setdefault(path, _mark(name, node.start_mark))
    if isinstance(node, yaml.ScalarNode):
        if node.style is not None:
            return node.value
        try:
            return scalar(node.value)
        except ValueError:
            errors.append(f"{marks[path]}: {_dotted(path)}: a number of {len(node.value)} digits")
            return None
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), name, marks, errors) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = _mark(name, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            errors.append(f"{place}: {_dotted(path)}: a key must be a plain word")
            continue
        key = key_node.value
        if key in result:
            errors.append(
                f"{place}: {_dotted((*path, key))}: this key stands twice (first at {marks[(*path, key)]})"
            )
            continue
        marks[(*path, key)] = place
        result[key] = _plain(value_node, (*path, key), name, marks, errors)
    return result


_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {**dict.fromkeys(("true", "True", "TRUE"), True), **dict.fromkeys(("false", "False", "FALSE"), False)}
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?\.(inf|Inf|INF))|(\.(nan|NaN|NAN))")


def scalar(text: str) -> Any:
    """An unquoted scalar as YAML 1.2's core schema reads it: `1e-4` is a number, `no` a string, `010` ten."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _override(document: Document, override: str) -> None:
    key, equals, value = override.partition("=")
    place = without_secrets(f"--set {override}")
    path = document.path(key.strip())
    if not equals or not all(part != "" for part in path):
        raise ConfigError(f"{place}: expected section.key=value")
    where: Any = document.data
    part: Any
    for depth, part in enumerate(path):
        at = _dotted(path[:depth])
        if isinstance(where, list) and not (isinstance(part, int) and part < len(where)):
            raise ConfigError(f"{place}: {at} is a list of {len(where)}; {part} is no place in it")
        if not isinstance(where, list | dict):
            raise ConfigError(f"{place}: {at} is {without_secrets(repr(where))}, not a section")
        if depth == len(path) - 1:
            where[part] = _override_value(value, place)
        elif isinstance(where, list) or isinstance(where.get(part), dict | list):
            where = where[part]
        else:  # a missing section, or a null one, is made
            if where.get(part) is None:
                where[part] = {}
                document.marks[(*path[:depth], part)] = place
            where = where[part]
    for known in [mark for mark in document.marks if mark[: len(path)] == path]:
        del document.marks[known]
    document.marks[path] = place


def _override_value(value: str, place: str) -> Any:
    node = _compose(value, place)
    if node is None:
        return None
    errors: list[str] = []
    result = _plain(node, (), place, {}, errors)
    if errors:
        raise ConfigErrors(errors)
    return result


# --- explaining ---


def _dotted(path: Key) -> str:
    return ".".join(str(part) for part in path) or "the file"


def suggest(word: object, choices: Sequence[str]) -> str:
    """`; did you mean "weight_decay"?` when a choice is near, else nothing."""
    near = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def _explain(error: ValidationError, document: Document, model: type[BaseModel]) -> list[str]:
    found: dict[Key, list[str]] = {}
    for item in error.errors(include_url=False):
        path = _user_path(item["loc"], document.data, item["type"] == "missing")
        if item["type"] == "union_tag_invalid":
            path = (*path, _discriminator(item["ctx"]))
        if item["type"] == "union_tag_not_found":  # perhaps the key is there, but mistyped
            tag = _discriminator(item["ctx"])
            there = _at(document.data, path)
            known = known_keys(model, path, document.data)  # `strip` is no `step`: one of them has it
            strange = [key for key in there if key not in known] if isinstance(there, dict) else []
            near = difflib.get_close_matches(tag, strange, n=1)
            path = (*path, *near)
        message = _message(dict(item), path, document, model)
        if item["type"] == "value_error":
            path, message = _to_the_key(path, message, document)
        found.setdefault(path, []).append(message)
    lines = []
    for path, messages in found.items():
        wanted = [m.removeprefix("expected ") for m in messages if m.startswith("expected ")]
        if len(wanted) == len(messages) > 1:  # the branches of a union: one line for all of them
            values = " (got " + wanted[0].split(" (got ")[-1]
            messages = [
                "expected " + " or ".join(dict.fromkeys(w.split(" (got ")[0] for w in wanted)) + values
            ]
        lines += [
            f"{document.place(path)}: {_dotted(path)}: {message}" for message in dict.fromkeys(messages)
        ]
    return sorted(lines, key=_file_order)


def _to_the_key(path: Key, message: str, document: Document) -> tuple[Key, str]:
    """A section's complaint that begins with the name of one of its keys stands at that key."""
    word = re.match(r"[a-z_.]+", message)
    whole = (*path, *word[0].rstrip(".").split(".")) if word else path
    inner = whole
    while len(inner) > len(path) and inner not in document.marks:
        inner = inner[:-1]
    said = f"{word[0]}: " if word and inner == whole else ""
    return inner, message.removeprefix(said)


def _file_order(line: str) -> tuple[int, int]:
    match = re.match(r"[^\n]*?:(\d+):(\d+): ", line)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _discriminator(context: dict[str, Any]) -> str:
    return str(re.findall(r"'([^']*)'", context["discriminator"])[-1])  # "'as_' | 'as'": the alias comes last


FORMS = ("as", "by", "family", "format", "kind", "name", "step")  # keys that say which form a section has


def _user_path(loc: tuple[int | str, ...], data: Any, missing: bool) -> Key:
    """pydantic's loc without the union tags it inserts: only the keys that stand in the file."""
    path: list[int | str] = []
    part: Any
    tagged = False  # whether the tag of this section has come
    for index, part in enumerate(loc):
        if not tagged and isinstance(data, dict) and any(data.get(key) == part for key in FORMS):
            tagged = True  # `as: text`, whose section has a key of that name too
            continue
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data, tagged = data[part], False
        elif not (missing and index == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _at(data: Any, path: Key) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


_WANTED = {
    "string_type": "text (quote it if it looks like a number)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
    "none_required": "nothing",
    "finite_number": "a finite number",
}


def _message(item: dict[str, Any], path: Key, document: Document, model: type[BaseModel]) -> str:
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    shown = (
        without_secrets(repr(value))
        if not isinstance(value, dict | list)
        else "a section"
        if isinstance(value, dict)
        else "a list"
    )
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if kind == "extra_forbidden":
        names = known_keys(model, path[:-1], document.data)
        return f"unknown key{suggest(path[-1], names)} (known here: {', '.join(names)})"
    if kind == "missing":
        return "this key is needed"
    if kind in ("union_tag_invalid", "literal_error"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected_tags") or context.get("expected")))
        tag = context.get("tag", value)
        return f"{tag!r} is not a choice{suggest(tag, choices)} (choices: {', '.join(choices)})"
    if kind == "union_tag_not_found":
        name = _discriminator(context)
        mistyped = isinstance(item.get("input"), dict) and path and path[-1] in item["input"]
        section = path[:-1] if mistyped else path
        listed = f"(choices: {', '.join(_tags(_candidates(model, section, document.data), name))})"
        return (
            f'unknown key; did you mean "{name}"? {listed}'
            if mistyped
            else f"needs the key {name!r} {listed}"
        )
    if kind in _WANTED:
        return f"expected {_WANTED[kind]} (got {shown})"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    return f"{item['msg'][0].lower()}{item['msg'][1:]} (got {shown})"


def known_keys(model: Any, path: Key, data: Any) -> list[str]:
    """The keys that the section at `path` of this model knows, as they are written in YAML."""
    names: dict[str, None] = {}
    for candidate in _narrow(_candidates(model, path, data), _at(data, path)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            names.update(
                dict.fromkeys(_written(name, field) for name, field in candidate.model_fields.items())
            )
    return list(names)


def _tags(candidates: list[Any], key: str) -> list[str]:
    """What may stand at the key that tells the members of a union apart."""
    fields = [
        field
        for candidate in candidates
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        for name, field in candidate.model_fields.items()
        if _written(name, field) == key
    ]
    return [str(tag) for field in fields for tag in typing.get_args(field.annotation)]


def _candidates(model: Any, path: Key, data: Any) -> list[Any]:
    """The sections that may stand at `path`, given the tags in the data above it."""
    candidates = _members(model)
    for part in path:
        candidates = _narrow(candidates, data)
        data = _at(data, (part,))
        found: list[Any] = []
        for candidate in candidates:
            if isinstance(part, int):
                found += typing.get_args(candidate) if typing.get_origin(candidate) is list else []
            elif typing.get_origin(candidate) is dict:
                found.append(typing.get_args(candidate)[1])
            elif isinstance(candidate, type) and issubclass(candidate, BaseModel):
                found += [f.annotation for n, f in candidate.model_fields.items() if _written(n, f) == part]
        candidates = [member for annotation in found for member in _members(annotation)]
    return candidates


def _written(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, through Annotated, Optional and unions."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(annotation) for member in _members(arg)]
    return [annotation]


def _narrow(candidates: list[Any], data: Any) -> list[Any]:
    """Of a tagged union's members, those whose tag the user wrote; all of them when none fits."""
    if not isinstance(data, dict):
        return candidates

    def fits(candidate: Any) -> bool:
        fields = (
            candidate.model_fields.items()
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
            else []
        )
        return all(
            data.get(_written(name, field), field.default) in typing.get_args(field.annotation)
            for name, field in fields
            if typing.get_origin(field.annotation) is Literal and len(typing.get_args(field.annotation)) == 1
        )

    return [candidate for candidate in candidates if fits(candidate)] or candidates
