"""Language models of other architectures, run by transformers' own modules behind the contract of ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmtool.core.config import Section
from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.errors import ConfigError, first_line
from llmtool.models.cache import Cache
from llmtool.models.causal import Transformer
from llmtool.models.layers import Linear

MAX_PARAMETERS = 100_000  # tensors: a configuration must not keep us building for ever
MAX_BUFFERS = 2**30  # bytes of computed tables
PREFIX = "theirs."
Document = tuple[int, int, int]  # its row, where in it the document starts, and where it stops


class HuggingFaceConfig(Section):
    """A decoder that transformers runs; its own configuration says the rest."""

    family: Literal["huggingface"] = Field(default="huggingface", description="run by transformers")
    architecture: str = Field(description="transformers' class")
    depth: int = Field(gt=0, le=1024, description="number of blocks")
    width: int = Field(gt=0, description="size of a token's vector")
    context: int = Field(gt=0, le=1_048_576, description="the most tokens it sees at once")
    tie_embeddings: bool = Field(description="the output layer shares the embedding's weights")

    accepts: ClassVar[tuple[type, ...]] = (Tokens,)
    gives: ClassVar[tuple[type, ...]] = (NextToken,)


class Through(Transformer):
    """A language model of transformers'.

    Its modules never see a mask: several documents in a row, and rows filled up on the left, are laid out as
    rows of their own that start at position 0, which is exact for every architecture that looks back only.
    It takes no cache of ours.
    """

    caches = False
    config: HuggingFaceConfig  # type: ignore[assignment]

    def __init__(self, theirs: Any, config: HuggingFaceConfig, place: str) -> None:
        """place: of its config.json, for messages."""
        table, head = theirs.get_input_embeddings(), theirs.get_output_embeddings()
        super().__init__(config, Tokens(table.num_embeddings))  # type: ignore[arg-type]
        self.theirs, self.place = theirs, place
        self.head_name = next(PREFIX + name for name, module in theirs.named_modules() if module is head)
        self.plain = False  # whether its scores are the output layer's of the last hidden values, and no more

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(blocks_of(self.theirs, self.config.depth))

    @property
    def embeddings(self) -> list[nn.Module]:
        """The table of ids."""
        return [self.theirs.get_input_embeddings()]

    def hidden(self, inputs: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), what `logits` reads; 0 at filling where rows were laid out anew."""
        assert cache is None, "generation and scoring ask `caches`"
        assert inputs.shape[1] <= self.context, "more tokens than the context"
        documents = [] if segments is None else _documents(segments)
        if all(
            start == 0 for _, start, _ in documents
        ):  # at most one in a row; what follows is not looked at
            return self._run(inputs)
        index, found = [], []
        for _, group in groupby(sorted(documents, key=_size), key=_size):  # of about one length: less filling
            those = list(group)
            ids = inputs.new_zeros(len(those), max(stop - start for _, start, stop in those))  # (N, L)
            at = []
            for number, (row, start, stop) in enumerate(those):
                ids[number, : stop - start] = inputs[row, start:stop]
                at.append(number * ids.shape[1] + torch.arange(stop - start))
                index.append(row * inputs.shape[1] + torch.arange(start, stop))
            found.append(self._run(ids).flatten(0, 1)[torch.cat(at).to(inputs.device)])  # (tokens, D)
        hidden = torch.cat(found)
        flat = hidden.new_zeros(inputs.numel(), hidden.shape[-1])
        return flat.index_copy(0, torch.cat(index).to(inputs.device), hidden).view(*inputs.shape, -1)

    def _run(self, ids: Tensor) -> Tensor:
        if self.plain:
            return self.theirs.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        return self.theirs(input_ids=ids, use_cache=False, return_dict=True).logits

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): the scores of every token as the next one."""
        return self.theirs.get_output_embeddings()(hidden) if self.plain else hidden

    @property
    def output(self) -> tuple[nn.Module | None, float | None]:
        """Their output layer, where it makes the scores and nothing follows it."""
        return (self.theirs.get_output_embeddings() if self.plain else None), None

    def flops(self, tokens: int) -> int:
        """An estimate of the FLOPs of one row, forward and backward: 6 for each parameter and token,
        https://arxiv.org/abs/2001.08361, and attention's."""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return 6 * parameters * tokens + 12 * self.config.depth * tokens * tokens * self.config.width

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in one pass, for nothing is kept: about 16 vectors of its width, and its scores
        where those of all tokens are made."""
        return 4 * (16 * self.config.width + (0 if self.plain else self.inputs.vocabulary))

    def untie(self) -> None:
        """Give the output layer weights of its own, equal to the embedding's for now."""
        head = self.theirs.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        self.config = self.config.model_copy(update={"tie_embeddings": False})
        self.theirs.config.tie_word_embeddings = False

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Once the weights are there: tables that are computed and not stored, by building their modules
        again around the weights; and see whether `plain` holds. ConfigError where it does not run."""
        try:
            self._fill(device)
        except Exception as error:  # whatever another's code says of another's file
            raise ConfigError(f"{self.place}: transformers cannot run it ({first_line(error)})") from None

    def _fill(self, device: torch.device) -> None:
        twin = build(self.theirs.config, tables=True)
        for name, tensor in [*self.theirs.named_parameters(remove_duplicate=False)]:
            _put(twin, name, tensor)
        for name in (
            set(self.theirs.state_dict()) - dict(twin.named_parameters(remove_duplicate=False)).keys()
        ):
            _put(twin, name, self.theirs.get_buffer(name))
        self.theirs = twin.to(device)
        for module in self.theirs.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
        ids = torch.arange(min(8, self.context, self.inputs.vocabulary), device=device).unsqueeze(0)
        self.eval()
        whole = self(ids)
        try:
            self.plain = True
            self.plain = torch.allclose(self(ids), whole, rtol=1e-5, atol=1e-6)
        except (AttributeError, TypeError, RuntimeError):  # of a body that is called otherwise
            self.plain = False
        self.train()


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, tensor)


def _documents(segments: Tensor) -> list[Document]:
    """Where the documents of (B, T) numbers lie; 0 is filling."""
    found = []
    for row, numbers in enumerate(segments.tolist()):
        start = 0
        for number, run in groupby(numbers):
            stop = start + sum(1 for _ in run)
            if number:
                found.append((row, start, stop))
            start = stop
    return found


def _size(document: Document) -> int:
    """The power of two that its length fits into."""
    return (document[2] - document[1] - 1).bit_length()


def blocks_of(theirs: nn.Module, depth: int) -> nn.ModuleList:
    """The list of blocks: the first that is as long as the configuration says."""
    lists = (module for module in theirs.modules() if isinstance(module, nn.ModuleList))
    found = next((blocks for blocks in lists if len(blocks) == depth), None)
    if found is None:
        raise ConfigError(f"{type(theirs).__name__} has no list of {depth} blocks: it is not run here")
    return found


def file_names(theirs: Any) -> dict[str, str]:
    """Tensor of their module -> its name in files, which is an older one for some architectures."""
    from transformers.core_model_loading import revert_weight_conversion

    marks = {
        name: torch.empty(mark, device="meta") for mark, name in enumerate(theirs.state_dict(), 1)
    }  # by their sizes
    try:
        found = {tensor.numel(): name for name, tensor in revert_weight_conversion(theirs, marks).items()}
    except Exception:  # whatever taking tensors of such sizes apart leads to
        found = {}
    if found.keys() != set(range(1, len(marks) + 1)):
        raise ConfigError("files hold its weights in other parts than its modules do: it is not run here")
    return {name: found[mark.numel()] for name, mark in marks.items()}


# --- transformers itself -----------------------------------------------------------------------------------


def library() -> Any:
    """transformers, told to be silent and to fetch nothing; ConfigError where it is not installed."""
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # else it may fetch code while a model is built
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ImportError:
        raise ConfigError(
            "through: transformers needs the extra `huggingface`: pip install 'llmtool[huggingface]'"
        ) from None
    transformers.logging.set_verbosity_error()
    return transformers


def build(config: Any, tables: bool = False) -> Any:
    """Their module of their configuration, without weights. tables: computed tables have their values, on the
    CPU; else everything is on torch's current device, which is to be `meta`."""
    made = library().AutoModelForCausalLM.from_config
    with _parameters(to_meta=tables), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = made(config, attn_implementation="sdpa", dtype=torch.float32)
        except ValueError:  # of an architecture that has no such attention
            model = made(config, attn_implementation="eager", dtype=torch.float32)
    if (size := sum(buffer.nbytes for buffer in model.buffers())) > MAX_BUFFERS:
        raise ConfigError(f"its computed tables need {size:,} bytes; at most {MAX_BUFFERS:,} are made")
    return model


@contextmanager
def _parameters(to_meta: bool) -> Iterator[None]:
    """Counts the parameters that are made meanwhile, and keeps no values of them."""
    count = 0

    def made(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        nonlocal count
        count += 1
        if count > MAX_PARAMETERS:
            raise ConfigError(f"more than {MAX_PARAMETERS:,} tensors")
        if not to_meta or parameter is None or parameter.is_meta:  # the same object: ties stay ties
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(made)
    try:
        yield
    finally:
        hook.remove()
