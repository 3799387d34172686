"""Models on disk: config.json and model.safetensors, in Hugging Face's form where the family has one.

What is read was perhaps written by others: nothing in it is run, sizes are limited and compared with the
file's own header before memory is taken, and every tensor must be the one that the configuration announces.
What is particular to a kind of checkpoint is its page in `forms/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmtool.core import files, ranks, tensor_files
from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.shards import Piece, local, orders_of, piece, put, sorted_by
from llmtool.models import preprocessing
from llmtool.models.forms import FORMS, form_of, huggingface
from llmtool.models.forms.form import NOTHING, Form, Stored

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE, GENERATION_FILE = f"{WEIGHTS_FILE}.index.json", "generation_config.json"
MAX_JSON = 10_000_000  # bytes
FLOATS, INTEGERS = {"F32", "F16", "BF16"}, {"I64"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# what we do not use ourselves and hand on, so that others find the ends of a text where they were
CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    model: nn.Module,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the weights into `directory`; a shared output layer is written once.

    dtype: of the floating-point weights; LlmtoolError where one is too large for it. shard_bytes: weights
    above this go into several files with an index, None: one file whatever its size.
    """
    tensors = {name: as_dtype(name, tensor, dtype) for name, tensor in file_tensors(model).items()}
    precision = {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}
    files.write_json(directory / CONFIG_FILE, file_config(model) | precision)
    if (recipe := vars(model).get("preprocessing")) is not None:
        files.write_json(directory / preprocessing.FILE, recipe)
    shards = _shards(tensors, shard_bytes)
    for file, names in shards.items():
        part = {name: tensors[name] for name in names}
        files.write_bytes(directory / file, safetensors.torch.save(part, {"format": "pt"}))
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        parts = {name: [tensor] for name, tensor in tensors.items()}
        files.write_json(directory / INDEX_FILE, _index(places, parts))


def save_together(model: nn.Module, directory: Path) -> list[Path]:
    """The same in float32 by all ranks, of which each may hold parts of the weights; each writes some of the
    tensors. Returns the files of weights that this rank wrote. Raises ranks.RankFailedError."""
    parts = file_parts(model)
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    stored = form_of(model).stored(model)
    orders = {stored[name].name: order for name, order in orders_of(model).items() if name in stored}
    places, own = tensor_files.write(directory, stem, parts, orders)

    def rest() -> None:
        files.write_json(directory / CONFIG_FILE, file_config(model))
        if (recipe := vars(model).get("preprocessing")) is not None:
            files.write_json(directory / preprocessing.FILE, recipe)
        if len(set(places.values())) > 1:
            files.write_json(directory / INDEX_FILE, _index(places, parts))

    ranks.agreeing(rest if ranks.here().first else lambda: None)
    return own


def _index(places: Mapping[str, str], parts: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    total = sum(part.numel() * part.element_size() for them in parts.values() for part in them)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def file_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's file under the file's names, in the model's own precision."""
    return {
        name: torch.cat([part.cpu() for part in parts]) if len(parts) > 1 else parts[0].cpu().contiguous()
        for name, parts in file_parts(model).items()
    }


def file_parts(model: nn.Module) -> dict[str, list[Tensor]]:
    """The same as what makes each: a tensor of the model, or several, one below another."""
    assert not any(".lora_A." in name or name.endswith(".packed") for name in model.state_dict()), (
        "merge an adapter, or save it with peft_files.save_adapter"
    )
    form, copies = form_of(model), _copies(model)
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    stored = form.stored(model)
    for name, tensor in model.state_dict().items():
        if name in stored and name not in copies:
            start = (stored[name].rows or (0, 0))[0]
            parts.setdefault(stored[name].name, []).append((start, tensor.detach()))
    found = {
        name: [part for _, part in sorted(them, key=lambda pair: pair[0])] for name, them in parts.items()
    }
    return found | {name: [tensor] for name, tensor in form.filler(model).items()}


def file_config(model: nn.Module) -> dict[str, Any]:
    """What the model's config.json says, but for the precision of the file."""
    form = form_of(model)
    config = {"model_type": form.model_type, "architectures": [form.architectures[0]], **form.write(model)}
    return config | vars(model).get("carried", {})


def as_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another precision, whole numbers as they are; LlmtoolError where it would be infinite."""
    if not tensor.is_floating_point():
        return tensor
    result = tensor.to(dtype)
    if bool(torch.isfinite(tensor).all()) and not bool(torch.isfinite(result).all()):
        largest = float(tensor.abs().max())
        kind = str(dtype).removeprefix("torch.")
        raise LlmtoolError(
            f"{name} has values up to {largest:.3g}, too large for {kind}; bfloat16 holds them"
        )
    return result


def _shards(tensors: Mapping[str, Tensor], most: int | None) -> dict[str, list[str]]:
    """File -> the tensors in it, in their order, each file at most so many bytes but for a larger tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if most is not None and groups[-1] and size + tensor.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS_FILE: groups[0]}
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05}-of-{len(groups):05}.safetensors": names for number, names in enumerate(groups, 1)
    }


def load(directory: Path) -> nn.Module:
    """The model of a directory, in float32 on the CPU. ConfigError or LlmtoolError name file and problem."""
    model = skeleton(directory)
    form, copies = form_of(model), _copies(model)
    state, stored = model.state_dict(), form.stored(model)
    wanted = {name: tensor for name, tensor in state.items() if name in stored and name not in copies}
    tensors = _read(weight_files(directory), wanted, stored, copies, form)
    for name, tensor in state.items():  # what the form has no place for starts at zero
        if name not in stored:
            tensors[name] = torch.zeros_like(tensor, device="cpu")
    model.load_state_dict(tensors, strict=False, assign=True)
    for copy, original in copies.items():  # what is shared is shared again
        parent, _, leaf = copy.rpartition(".")
        setattr(model.get_submodule(parent), leaf, model.get_parameter(original))
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # an assigned tensor brings its own flag along
    with NoValues():
        for module in model.modules():
            if callable(fill := getattr(module, "fill", None)):  # tables that are computed and not stored
                fill(torch.device("cpu"))
    return model


@torch.no_grad()
def restore(model: nn.Module, directory: Path) -> None:
    """Put the weights of a directory into a model of the same kind, in place: of one that ranks hold in parts
    each reads no more than its own."""
    form, copies, state = form_of(model), _copies(model), model.state_dict()
    stored = form.stored(model)
    wanted = {name: tensor for name, tensor in state.items() if name in stored and name not in copies}
    orders = orders_of(model)  # of these, all is read
    likes = wanted | {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in wanted.items()
        if name in orders
    }
    found = _read(weight_files(directory), likes, stored, copies, form)
    for name, tensor in wanted.items():
        if name in orders:
            put(tensor, sorted_by(found[name], orders[name]))
        else:
            local(tensor).copy_(found[name])


def skeleton(directory: Path) -> nn.Module:
    """The model of a directory on the meta device: shapes and structure, no weights."""
    path = directory / CONFIG_FILE
    data = read_json(path)
    form = _form_for(data, path)
    try:
        with torch.device("meta"), NoValues():
            model = form.read(data, path)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first.get("ctx", {}).get("error", first["msg"])
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{reason}") from None
    vars(model)["carried"] = _carried(data, directory)
    vars(model)["preprocessing"] = preprocessing.read(directory / preprocessing.FILE)
    return model


def carry(model: nn.Module, **ids: int | None) -> None:
    """Ids that config.json is to hand on (bos_token_id ...), unless the model came with others."""
    carried = vars(model).setdefault("carried", {})
    vars(model)["carried"] = {key: value for key, value in ids.items() if value is not None} | carried


def take_generation(model: nn.Module, directory: Path) -> None:
    """Have the model carry what the generation_config.json of a directory says, if there is one."""
    vars(model)["carried"] = vars(model).get("carried", {}) | _carried({}, directory)


class NoValues(TorchFunctionMode):
    """Leaves out what only sets values: on the meta device there are none, and trying to draw normal ones
    imports torch's compiler (1 s)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each of its functions."""
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _form_for(data: dict[str, Any], path: Path) -> Form:
    if huggingface.is_chosen(data, path):
        return huggingface.HuggingFaceForm(data)
    kind = data.get("model_type")
    known = [form.model_type for form in FORMS]
    if kind not in known:
        longer = [name for name in known if name.startswith(str(kind))]  # gemma3: gemma3_text
        raise ConfigError(
            f"{path}: model_type {str(kind)[:100]!r} is not known{suggest(kind, longer or known)} "
            f"(known: {', '.join(known)}){huggingface.HINT.format(name=CONFIG_FILE)}"
        )
    return next(form for form in FORMS if form.model_type == kind)


def _carried(data: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The ids that others need; generation_config.json, with the several ends of chat models, goes first."""
    carried: dict[str, Any] = {}
    path = directory / GENERATION_FILE
    for source in (data, read_json(path) if path.is_file() else {}):
        for key in CARRIED:
            value = source.get(key)
            several = value if isinstance(value, list) and 0 < len(value) <= 100 else [value]
            if all(isinstance(one, int) and not isinstance(one, bool) for one in several):
                carried[key] = value
    return carried


# --- reading what others wrote ---------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; LlmtoolError when it is missing, too large, or something else."""
    if path.is_file() and path.stat().st_size > MAX_JSON:
        raise LlmtoolError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_JSON:,} are read")
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise LlmtoolError(f"{path}: expected a mapping")
    return data


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a checkpoint, and the names in each by its index (None: it has none)."""
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return {single: None}
    if not index.is_file():
        _refuse_other_formats(directory, single)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LlmtoolError(f"{index}: weight_map: expected a mapping of names to files")
    shards: dict[Path, set[str] | None] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", file):
            raise LlmtoolError(
                f"{index}: {name[:99]}: {str(file)[:99]!r} is not the name of a file beside it"
            )
        names = shards.setdefault(directory / file, set())
        assert names is not None
        names.add(name)
    for path in shards:
        if not path.is_file():
            raise LlmtoolError(f"{path}: no such file, and {INDEX_FILE} says that weights are in it")
    return dict(sorted(shards.items()))


def read_tensors(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Exactly the tensors `wanted` (name -> shape) of a safetensors file, in float32, or LlmtoolError."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in wanted.items()}
    return _read({path: None}, empty, {name: Stored(name) for name in wanted}, {}, None)


def _read(
    shards: Mapping[Path, set[str] | None],
    wanted: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
    copies: Mapping[str, str],
    form: Form | None,
) -> dict[str, Tensor]:
    """Exactly the tensors `wanted` (our name -> one of that shape and kind) from the files that hold them.

    stored: the name map. copies: tensors that may be in the files too, if they are equal to another one
    (our name -> that one's).
    """
    likes = _in_file(wanted, stored)
    copied = {stored[name].name: original for name, original in copies.items()}
    with ExitStack() as stack:
        headers: dict[str, tuple[Path, str, Any]] = {}
        for path, listed in shards.items():
            file = stack.enter_context(_opened(path))
            names = set(file.keys())
            if listed is not None and (lost := sorted(listed - names)):
                raise LlmtoolError(f"{path}: lacks {_some(lost)}, which {INDEX_FILE} says is in it")
            for key in sorted(names):
                name = _full_name(key, likes, form)
                if name is None:
                    continue
                if name in headers:
                    raise LlmtoolError(f"{path}: {key} is in {headers[name][0].name} too")
                headers[name] = (path, key, file)
        extra = {name: headers.pop(name) for name in copied if name in headers}
        _refuse_other_names(next(iter(shards)), set(headers), set(likes))
        for name, (path, key, file) in headers.items():  # shapes and types first: they cost no memory
            with _named(path):
                _refuse_other_tensor(path, key, file.get_slice(key), likes[name])
        tensors: dict[str, Tensor] = {}
        for name, like in wanted.items():
            path, key, file = headers[stored[name].name]
            with _named(path):
                there = piece(like)  # of a tensor that ranks hold in parts, this one's
                tensors[name] = _tensor(file, key, stored[name].rows, like.dtype, there)
            assert tensors[name].shape == there.shape
            if not bool(torch.isfinite(tensors[name]).all()):
                raise LlmtoolError(f"{path}: {key} contains NaN or infinity")
        for name, (path, key, file) in extra.items():
            with _named(path):
                there = piece(wanted[copied[name]])
                same = torch.equal(_tensor(file, key, None, torch.float32, there), tensors[copied[name]])
            if not same:
                raise LlmtoolError(f"{path}: {key} differs from the embedding that {CONFIG_FILE} ties it to")
    return tensors


def _in_file(wanted: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """What each tensor of the file must be like; one that holds several of ours ends where the last does."""
    likes: dict[str, Tensor] = {}
    for name, like in wanted.items():
        place = stored[name]
        if place.rows is not None:
            rows = max(place.rows[1], len(likes[place.name]) if place.name in likes else 0)
            like = torch.empty(rows, *like.shape[1:], dtype=like.dtype, device="meta")
        likes[place.name] = like
    return likes


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _named(path), safetensors.safe_open(path, framework="pt") as file:
        yield file


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file's reader, with the file's name."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise LlmtoolError(f"{path}: not a whole safetensors file ({error})") from None
    except OSError as error:
        raise LlmtoolError(f"{path}: {error.strerror or error}") from None


def _tensor(file: Any, key: str, rows: tuple[int, int] | None, dtype: torch.dtype, there: Piece) -> Tensor:
    if there.empty:
        return torch.empty(there.shape, dtype=dtype)
    if not there.shape:
        return file.get_tensor(key).to(dtype, copy=True)
    first, *others = there.slices
    above = 0 if rows is None else rows[0]
    found = file.get_slice(key)[(slice(above + first.start, above + first.stop), *others)]
    return found.to(dtype, copy=True)


def _full_name(key: str, likes: Mapping[str, Tensor], form: Form | None) -> str | None:
    """A tensor's name with the prefix that files of a body alone leave out; None for what is not used."""
    prefix, unused = (form.prefix, form.unused) if form is not None else ("", NOTHING)
    key = form.renamed(key) if form is not None else key
    name = f"{prefix}{key}" if key not in likes and f"{prefix}{key}" in likes else key
    return None if name not in likes and unused.search(name) else name


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_other_names(path: Path, names: set[str], wanted: set[str]) -> None:
    for problem, them in (("lacks", sorted(wanted - names)), ("has the unexpected", sorted(names - wanted))):
        if them:
            raise LlmtoolError(f"{path}: {problem} {_some(them)}")


def _refuse_other_tensor(path: Path, key: str, header: Any, like: Tensor) -> None:
    shape, dtypes = tuple(like.shape), FLOATS if like.is_floating_point() else INTEGERS
    if tuple(header.get_shape()) != shape:
        raise LlmtoolError(
            f"{path}: {key} has the shape {tuple(header.get_shape())}; {CONFIG_FILE} says {shape}"
        )
    if header.get_dtype() not in dtypes:
        raise LlmtoolError(f"{path}: {key} is {header.get_dtype()}; expected {', '.join(sorted(dtypes))}")


def _refuse_other_formats(directory: Path, path: Path) -> None:
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise LlmtoolError(
            f"{directory / pickles[0]}: a pickle can run code and is not read; convert it to {WEIGHTS_FILE}"
        )
    raise LlmtoolError(f"{path}: no such file")


def _copies(model: nn.Module) -> dict[str, str]:
    """Parameters that are another one under a second name -> that one's first name."""
    first: dict[int, str] = {}
    copies: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            copies[name] = first[id(parameter)]
    return copies
