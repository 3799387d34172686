"""Chat templates: where one comes from, and rendering it in a sandbox in which nothing runs away.

A template is a program of whoever made the model. It sees plain data only, reads no file, and may neither
write much nor work long: its operators, calls, filters and loops are counted, and what they make is measured.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llmtool.core import files
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import special_tokens
from llmtool.data.special_tokens import CONFIG
from llmtool.data.tokenizers import FittedTokenizer

FILE = "chat_template.jinja"
MAX_TEMPLATE = 1_000_000  # characters of a template
MAX_OUTPUT = 1 << 23  # characters that it may write for one conversation, or hold in one value
MAX_STEPS = 2_000_000  # calls, filters and turns of loops for one conversation
MAX_SECONDS = 5.0  # and how long they may take
MAX_WIDTH = 1_000_000  # the largest number that a call or filter is handed
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# The sources refuse NUL, so no text of the data can hold one of these: control tokens that are spelled out in
# the data stand between FORGED and its end, what `{% generation %}` encloses between GENERATED and its end.
FORGED, FORGED_END = "\0(", "\0)"
GENERATED, GENERATED_END = "\0[", "\0]"
_ESCAPED_MARK = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# For models that know no tokens of turns: headings in plain text, the end token after each answer.
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Result:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
BUILT_IN = {"chatml": CHATML, "llama3": LLAMA3, "plain": PLAIN}
# The control tokens that a built-in template needs; a tokenizer that is fitted here gets them.
NEEDS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "plain": (),
}


class TemplateError(Exception):
    """The template cannot render this conversation; the message says why, in its own words if it has some."""


class RunawayError(TemplateError):
    """It does not come to an end: no row is asked for after that."""


# --- the sandbox ------------------------------------------------------------------------------------------


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what it encloses the model has written; marked in the output."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        """The block as a call that puts marks around its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body)
        block.set_lineno(line)
        return block

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{GENERATED}{caller()}{GENERATED_END}"


class _Dict:
    """`dict` of the templates: the class itself has more than they should reach."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` of the templates, which cannot be given names that Python itself uses."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise TemplateError(f"it sets {name!r}; names that begin with _ are not for templates")
        super().__setitem__(name, value)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the names that transformers gives, in which steps and sizes are bounded."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        extensions = [_Generation, jinja2.ext.loopcontrols]
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False, finalize=self._put
        )
        self.began, self.steps, self.put, self.moment = 0.0, 0, 0, datetime.now()
        own = {"raise_exception": _raise, "strftime_now": self._now, "dict": _Dict(), "namespace": _Namespace}
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")} | own
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, made) for name, made in self.filters.items()}
        self.filters["_turns"], self.filters["_measured"] = self._turns, self._measured

    def start(self) -> None:
        """A new conversation."""
        self.began, self.steps, self.put = time.monotonic(), 0, 0

    def step(self) -> None:
        """Count one; refuses when there were too many or it takes too long."""
        self.steps += 1
        if self.steps > MAX_STEPS or time.monotonic() - self.began > MAX_SECONDS:
            raise RunawayError("it does not come to an end")

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            if not loop.recursive:
                loop.iter = _filtered(loop.iter, "_turns")
        _measure_joins(tree)
        return tree

    def _put(self, value: Any) -> Any:
        """What is written, into the output or a variable: all of it counts, also what is thrown away."""
        if isinstance(value, str):
            self.put += len(value)
            self._refuse_size(self.put // 8)
        return value

    def _turns(self, values: Any) -> Any:
        """What a loop goes over, each turn a step; with a length where it had one (`loop.last` asks)."""
        if not isinstance(values, Iterable):
            return values  # jinja2 says what is wrong with it
        return _Counted(values if hasattr(values, "__len__") else list(self._each(values)), self.step)

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Sizes before sums and products are made."""
        self.step()
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        if operator == "*" and sizes:
            count = right if isinstance(right, int) else left
            whole = next(side for side in (left, right) if not isinstance(side, int))
            self._refuse_size(_weight(whole) * count if isinstance(count, int) else 0)
        elif operator == "+":
            self._refuse_size(sum(sizes))
        elif operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*(\d{5}|\*)", left):
            raise TemplateError("it asks for a text too wide")
        elif operator == "**" or (operator == "*" and not sizes):
            bits = [side.bit_length() for side in (left, right) if isinstance(side, int)]
            if sum(bits) > 4096 or (operator == "**" and bits and bits[-1] > 12):
                raise TemplateError("it asks for a number too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *arguments: Any, **named: Any) -> Any:
        """Every call of a macro, method or function."""
        __self.step()
        __self._refuse_arguments(getattr(__obj, "__self__", None), arguments, named)
        return __self._measured(super().call(__context, __obj, *arguments, **named))

    def wrap_str_format(self, value: Any) -> Any:
        """`"...".format` without texts padded to any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and re.search(r"\d{5}", value.__self__):
            raise TemplateError("it asks for a text too wide")
        return wrapped

    def _bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(made)
        def bounded(*arguments: Any, **named: Any) -> Any:
            self.step()
            texts = [value for value in arguments if isinstance(value, str)]
            self._refuse_arguments(texts[0] if texts else None, arguments, named)
            return self._measured(made(*arguments, **named))

        return bounded

    def _refuse_arguments(self, text: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """What would fill the memory before its result can be measured: padding, replacing, joining."""
        given = [*arguments, *named.values()]
        if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in given):
            raise TemplateError("it hands over a number too large")
        texts = [value for value in given if isinstance(value, str)]
        if isinstance(text, str) and len(texts) > 1:
            most = max(text.count(part) if part else len(text) for part in texts if part is not text)
            self._refuse_size(most * max(map(len, texts)) // 2)
        for value in given:
            if isinstance(value, list | tuple):
                self._refuse_size(
                    _weight(value)
                    + len(value) * max([len(text or "") if isinstance(text, str) else 0, *map(len, texts)])
                )

    def _measured(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple | dict):
            self._refuse_size(len(value))
        return value

    def _refuse_size(self, size: int) -> None:
        if size > MAX_OUTPUT:
            raise TemplateError(f"it makes more than {MAX_OUTPUT:,} characters")

    def _now(self, form: str) -> str:
        return self.moment.strftime(form)


def _weight(value: Any) -> int:
    """The characters of a text, or of what is in a list, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return len(value) + sum(len(item) for item in value if isinstance(item, str | list | tuple | dict))
    return 1


@dataclass
class _Counted:
    """A sequence each of whose elements is a step."""

    values: Any
    step: Callable[[], None]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            self.step()
            yield value


def _filtered(node: Any, name: str) -> jinja2.nodes.Filter:
    filtered = jinja2.nodes.Filter(node, name, [], [], None, None)
    filtered.set_lineno(node.lineno)
    return filtered


def _measure_joins(node: jinja2.nodes.Node) -> None:
    """Have what `~` joins measured: an environment cannot intercept it."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, jinja2.nodes.Concat):
            _measure_joins(value)
            setattr(node, field, _filtered(value, "_measured"))
        elif isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, jinja2.nodes.Node):
                    _measure_joins(item)
                if isinstance(item, jinja2.nodes.Concat):
                    value[at] = _filtered(item, "_measured")
        elif isinstance(value, jinja2.nodes.Node):
            _measure_joins(value)


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes of jinja2's own filter, which are for HTML; our marks stay what they are."""
    written = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _ESCAPED_MARK.sub("\\1\0", written) if "\\u0000" in written else written


# --- a template -------------------------------------------------------------------------------------------


class Template:
    """A chat template, ready to render. `name` is what messages call it; `hash` names its text."""

    def __init__(self, name: str, text: str, special: dict[str, str]) -> None:
        """special: bos_token, eos_token ... of the tokenizer. ConfigError where the text is no template."""
        self.name, self.text, self.special = name, text, special
        self.hash = hash_of(text)
        if len(text) > MAX_TEMPLATE:
            raise ConfigError(f"{self}: {len(text):,} characters; a template has at most {MAX_TEMPLATE:,}")
        self._sandbox = _Sandbox()
        try:
            self._compiled = self._sandbox.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{self}, line {error.lineno}: {error.message}") from None
        except (RecursionError, MemoryError, ValueError, TemplateError) as error:
            raise ConfigError(f"{self}: no usable template ({type(error).__name__}: {error})") from None

    def __str__(self) -> str:
        return f"the chat template {self.name}"

    def __reduce__(self) -> tuple[Any, ...]:  # other processes compile it anew
        return Template, (self.name, self.text, self.special)

    @property
    def marks(self) -> bool:
        """Whether it says itself what the model has written."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None

    def uses(self, name: str) -> bool:
        """Whether the name stands anywhere in the template."""
        return re.search(rf"\b{name}\b", self.text) is not None

    def render(self, messages: list[dict[str, Any]], tools: Any = None, prompt: bool = False) -> str:
        """The conversation as text; prompt: with what comes before the next answer of the assistant.

        Raises TemplateError, whatever went wrong in there.
        """
        self._sandbox.start()
        parts: list[str] = []
        size = 0
        try:
            for part in self._compiled.generate(
                messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **self.special
            ):
                size += len(part)
                self._sandbox._refuse_size(size)
                parts.append(part)
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("it calls itself without end") from None
        except Exception as error:  # a template is a program: anything can go wrong in it
            raise TemplateError(f"{type(error).__name__}: {error}"[:200]) from None
        return "".join(parts)


def hash_of(text: str) -> str:
    """What names a template: the hash of its text."""
    return files.hash_bytes(text.encode("utf-8", "surrogatepass"))


# --- where it comes from ----------------------------------------------------------------------------------


def read_special(directory: Path | None, tokenizer: FittedTokenizer) -> dict[str, str]:
    """bos_token, eos_token ... as a template knows them. directory: of the tokenizer's files; None: it was
    made here, and has an end alone."""
    named = {} if directory is None else special_tokens.read(directory, tokenizer.tokenizer)
    found = {key: named[key] for key in SPECIAL if key in named}
    if tokenizer.end is not None:
        found.setdefault("eos_token", str(tokenizer.tokenizer.id_to_token(tokenizer.end)))
    return found


def find(named: str, directory: Path | None) -> tuple[str, str]:
    """(name, text) of the template that `data.encode.template` names. directory: of the tokenizer's files.

    auto: chat_template.jinja there, or `chat_template` in tokenizer_config.json (the "default" of several).
    """
    if named == "auto":
        found = None if directory is None else own(directory)
        if found is None:
            where = "a tokenizer that is made here has none" if directory is None else f"{directory} has none"
            raise ConfigError(
                f"data.encode.template: auto takes the model's own template, but {where}; name one "
                f"({', '.join(BUILT_IN)}, or a .jinja file)"
            )
        return found
    if named in BUILT_IN:
        return named, BUILT_IN[named]
    path = file_of(named)
    return path.name, _text(path)


def file_of(named: str) -> Path:
    """The file of a template that is neither the model's own nor built in; ConfigError if there is none."""
    path = Path(named)
    if not path.is_file():
        choices = f"choices: auto, {', '.join(BUILT_IN)}, or a .jinja file"
        raise ConfigError(f"data.encode.template: {named}: no such file ({choices})")
    return path


def own(directory: Path) -> tuple[str, str] | None:
    """The template that a model's directory holds, if any."""
    if (directory / FILE).is_file():
        return FILE, _text(directory / FILE)
    given = special_tokens.said_in(directory / CONFIG).get("chat_template")
    if isinstance(given, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default", next(iter(named.values()), None))
    return (f"of {CONFIG}", given) if isinstance(given, str) and given else None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * MAX_TEMPLATE:
            raise ConfigError(f"{path}: a template has at most {MAX_TEMPLATE:,} characters")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no template, not valid utf-8") from None
