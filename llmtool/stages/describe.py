"""What a model is and costs, whether the data suits it, and which families would: as data and as tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from torch import nn

from llmtool.core.config import Section
from llmtool.core.console import bytes_, count
from llmtool.core.contracts import InputSpec, NextToken, OutputSpec, Tokens
from llmtool.core.devices import PRECISIONS
from llmtool.data.chat import card_of
from llmtool.data.store import Dataset, input_spec
from llmtool.experiment import FinetuneConfig
from llmtool.models import preprocessing
from llmtool.models.accounting import Accounting, OptimizerName, account, recomputing
from llmtool.models.choice import FAMILIES, RULES, TOKENS_PER_PARAMETER, guide
from llmtool.stages import advise, fitting
from llmtool.stages.fitting import Proposal
from llmtool.stages.needs import ModelNeeds, adapted, proposals, setup_of
from llmtool.stages.room import average_bytes, packed, tokens_of
from llmtool.stages.settings import section_of
from llmtool.training import TrainConfig

CHARACTERS = 100  # letters, digits and signs of an English text; the estimate before the text has been read
CHINCHILLA = (
    "rule of thumb for compute-optimal training from the start: about 20 tokens per parameter "
    "(Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556)"
)
REPEATED = (
    "up to about 4 passes over the same tokens are worth nearly as much as new ones "
    "(Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264)"
)
TEXTS = (
    "a pretrained encoder learns from some hundred texts of a class; from the start many thousands are wanted"
)
TABLES = "no such rule holds for tables: more weights than rows is common, and the validation score decides"
COUNTED = (
    "one multiplication and one addition are 2 FLOPs; matrix products and attention (all T x T) are counted"
)
NOT_COUNTED = (
    "not counted: the device's own workspace, results that live for a moment, the data itself and, for "
    "the loss, anything but the usual one"
)
UNCHOSEN = "the model is chosen once the data is prepared"


@dataclass
class Subject:
    """What is to be described: a model that may be still to come, its data, and how it would be trained."""

    name: str  # a run or a checkpoint directory
    config: Section | None  # a member of ModelConfig; None: chosen once the data is prepared
    model: nn.Module | None  # on any device; None where its inputs or outputs are not known yet
    card: dict[str, Any] | None  # of the prepared data; None before `prepare`
    rows: int  # of one forward pass
    precision: str
    optimizer: OptimizerName
    device: str = "cpu"
    checkpointing: int | Literal["auto", "none", "all"] = "auto"  # how many blocks are recomputed
    fit: TrainConfig | None = None  # how it would be trained, where a file says so
    device_bytes: int | None = None  # memory of the device; None: not known
    assumed: list[str] = field(default_factory=list)  # what was guessed because the data is not prepared
    auto: str = ""  # why this model was chosen, where the file leaves that to us


def expected_inputs(encode: Any) -> tuple[InputSpec | None, str]:
    """What an `encode:` section will give, before `prepare`, and a note where that is a guess or unknown."""
    if encode.like is not None:
        chat = encode.as_ == "chat"
        return input_spec(card_of(encode.like)["inputs"]) if chat else Dataset.open(encode.like).inputs, ""
    if encode.as_ in ("text", "images"):
        return None, "the classes, and with them the size of the head, are known after `llmtool prepare`"
    if encode.gives is not Tokens:
        return None, "the number of features, and with it every size, is known after `llmtool prepare`"
    if encode.as_ == "moves":
        return Tokens(encode.build().fitted.vocabulary), ""
    tokenizer = encode.tokenizer
    added = len(encode.added_tokens()) if encode.as_ == "chat" else 0
    if tokenizer.kind == "characters":
        return Tokens(CHARACTERS), f"a vocabulary of {CHARACTERS} characters, until `llmtool prepare`"
    if tokenizer.kind == "bpe":
        return Tokens(
            tokenizer.vocabulary + added
        ), "the vocabulary is the configured one; a short text may give less"
    return Tokens(tokenizer.fit(lambda: iter(())).vocabulary + added), ""  # bytes and files read no text


def describe(subject: Subject) -> dict[str, Any]:
    """The description as plain data, ready for JSON; parts that need prepared data are None and named."""
    model: Any = subject.model
    missing = []
    if model is None:
        missing.append(
            "structure, sizes, FLOPs, memory, time: what goes in and out is known after `llmtool prepare`"
        )
    if subject.card is None:
        missing.append("rows and tokens available: known after `llmtool prepare`")
    family = getattr(subject.config, "family", "")
    figures, recomputed = (None, 0) if model is None else _account(subject, model)
    return {
        "format": 1,
        "name": subject.name,
        "family": family,
        "auto": subject.auto,
        "config": {} if subject.config is None else subject.config.model_dump(mode="json", by_alias=True),
        "inputs": None if model is None else _spec(model.inputs) | _pixels(subject.card),
        "outputs": None if model is None else _spec(model.outputs),
        "needs_prepare": missing,
        "assumed": list(subject.assumed),
        "structure": None if figures is None else asdict(figures.tree),
        "parameters": None
        if figures is None
        else {"total": figures.parameters, "trainable": figures.trainable},
        "flops": None if figures is None else _flops(figures),
        "memory": None if figures is None else _memory(figures, subject, recomputed),
        "data": None if subject.card is None else _data(subject.card, figures),
        "works": RULES[family].works if family in RULES else "",
        "advice": _advice(subject),
        "families": _families(subject),
        "guide": [{"problem": line.problem, "choice": line.choice} for line in guide()],
    }


def _account(subject: Subject, model: nn.Module) -> tuple[Accounting, int]:
    """The account of a step, and how many blocks are recomputed in it."""

    def fits(recomputed: int) -> bool:
        return subject.device_bytes is None or figures.needs(recomputed).fits(subject.device_bytes)

    length, how = tokens_of(model), (subject.precision, subject.optimizer, subject.device)
    figures = account(model, subject.rows, length, *how, packed(subject.card, length))
    if subject.fit is not None and subject.fit.ema:
        figures.memory = replace(figures.memory, optimizer=figures.memory.optimizer + average_bytes(model))
    blocks, asked = len(figures.kept.blocks), subject.checkpointing
    if asked == "auto":
        recomputed = next((count for count in range(blocks) if fits(count)), blocks)
    else:
        recomputed = blocks if asked == "all" else 0 if asked == "none" else min(asked, blocks)
    return (recomputing(figures, model, recomputed) if recomputed else figures), recomputed


def _advice(subject: Subject) -> dict[str, Any] | None:
    """Which families suit the data, at what cost, and what to beat; None before it is prepared."""
    card, model = subject.card, subject.model
    if card is None or not card["splits"].get("train"):
        return None
    device, precision = torch.device(subject.device), PRECISIONS[subject.precision]
    outputs = getattr(model, "outputs", None)
    if isinstance(outputs, NextToken):  # the data's tokens, of which the model may have room for more
        outputs = NextToken(card["inputs"]["vocabulary"])
    problem = advise.problem_of(card, outputs, device)
    families = advise.advise(problem, device, precision, getattr(subject.config, "family", ""))
    return {"families": families, "baseline": advise.baseline(card), "hints": advise.hints(card, problem)}


def _spec(spec: InputSpec | OutputSpec | None) -> dict[str, Any]:
    if spec is None:
        return {"kind": "nothing"}
    name = type(spec).__name__
    found = {"kind": "next_token" if name == "NextToken" else name.lower(), **asdict(spec)}
    unsaid = ("columns", "features")  # which features belong together, and that none stand beside a text
    return {name: value for name, value in found.items() if value or name not in unsaid}


def _pixels(card: dict[str, Any] | None) -> dict[str, Any]:
    """Of pictures, what becomes of their pixels before the model sees them."""
    if card is None or card["inputs"]["kind"] != "images":
        return {}
    inputs, how = card["inputs"], card["encoder"].get("standardisation")
    if "mean" in inputs:
        return {"pixels": f"(0 to 255) less {inputs['mean']}, divided by {inputs['std']}"}
    if how is None:
        return {"pixels": f"standardised in a way that is not known (there is no {preprocessing.FILE})"}
    mean, deviation = ([round(value, 4) for value in how[key]] for key in ("mean", "deviation"))
    return {"pixels": f"(0 to 255) x {how['factor']:.6g} less {mean}, divided by {deviation}"}


def _proposals(subject: Subject, figures: Accounting) -> list[Proposal]:
    fit = subject.fit
    if fit is None:
        return []
    batch = fit.batch if isinstance(fit.batch, int) else subject.rows
    return what_fits(subject, fit, batch, subject.rows, (figures.flops_forward, figures.flops_backward))


def what_fits(
    subject: Subject, fit: TrainConfig, batch: int, rows: int, flops: tuple[float, float], less: int = 0
) -> list[Proposal]:
    """Changes with which a training fits that does not (stages.fitting); batch, rows: as they are resolved.

    flops: of a row, forward and backward. less: bytes that four bits save.
    """
    assert subject.model is not None
    assert subject.device_bytes is not None
    tuned = isinstance(fit, FinetuneConfig)
    sizes = None if tuned else subject.config  # the start's are as they are
    model = adapted(subject.model, fit.method if isinstance(fit, FinetuneConfig) else None)
    needs = ModelNeeds(model, sizes, subject.device, subject.card, less)
    setup = setup_of(section_of(fit), fit, batch, rows, subject.precision, sizes)
    return proposals(setup, needs, flops, subject.device_bytes)


def _flops(figures: Accounting) -> dict[str, Any]:
    return {
        "unit": "token" if figures.tokens > 1 else "row",
        "forward": figures.flops_forward // figures.tokens,
        "backward": figures.flops_backward // figures.tokens,
        "row_forward": figures.flops_forward,
        "row_backward": figures.flops_backward,
        "row_again": figures.flops_again,
        "tokens_per_row": figures.tokens,
        "note": COUNTED,
    }


def _memory(figures: Accounting, subject: Subject, recomputed: int) -> dict[str, Any]:
    parts = figures.memory
    fits = None if subject.device_bytes is None else parts.fits(subject.device_bytes)
    return {
        "training": {
            "rows": figures.rows,
            "tokens_per_row": figures.tokens,
            "precision": subject.precision,
            "optimizer": subject.optimizer,
            "device": subject.device,
        },
        **asdict(parts),
        "allocator": parts.allocator,
        "total": parts.total,
        "recomputed": recomputed,  # blocks, and below activations with none, one, two ... of them
        "activations_by_recomputed": [figures.kept.bytes(n) for n in range(len(figures.kept.blocks) + 1)],
        "device_bytes": subject.device_bytes,
        "fits": fits,
        "proposals": fitting.document(_proposals(subject, figures)) if fits is False else [],
        "note": NOT_COUNTED,
    }


def _data(card: dict[str, Any], figures: Accounting | None) -> dict[str, Any]:
    splits = {
        name: {key: meta[key] for key in ("rows", "tokens", "documents", "trained", "longest") if key in meta}
        for name, meta in card["splits"].items()
    }
    unit = "tokens" if card["inputs"]["kind"] == "tokens" else "rows"
    available = splits.get("train", {}).get(unit, 0)
    result = {"encoding": card["encoding"], "splits": splits, "unit": unit, "available": available}
    result |= {"targets": _targets(card["targets"]), "notes": list(card.get("notes", []))}
    if figures is None or not splits:  # of a checkpoint whose data is gone
        return result | {"per_parameter": None, "verdict": None, "rule": None}
    ratio = available / max(figures.parameters, 1)
    tokens = unit == "tokens"
    verdict = _verdict(available, figures.parameters) if tokens else None
    rule = CHINCHILLA if tokens else TEXTS if card["inputs"]["kind"] == "tokens" else TABLES
    return result | {"per_parameter": round(ratio, 4), "verdict": verdict, "rule": rule}


def _targets(targets: dict[str, Any]) -> dict[str, Any]:
    return {key: targets[key] for key in ("kind", "names", "counts", "mean", "scale") if key in targets}


def _verdict(tokens: int, parameters: int) -> str:
    wanted = TOKENS_PER_PARAMETER * parameters
    if tokens >= wanted:
        return f"{count(tokens)} tokens are enough for one pass over {count(wanted)}, what this size wants"
    passes = wanted / max(tokens, 1)
    if passes <= 4:
        return f"{count(tokens)} tokens, {passes:.1f} passes for the {count(wanted)} it wants; {REPEATED}"
    fitting = max(tokens * 4 // TOKENS_PER_PARAMETER, 1)
    return (
        f"{count(tokens)} tokens, {passes:.0f} passes for the {count(wanted)} wanted; {REPEATED}. Beyond, "
        "it may learn the text by heart: watch the validation score, finetune, or take some "
        f"{count(fitting)} parameters"
    )


def _families(subject: Subject) -> list[dict[str, Any]]:
    own = getattr(subject.config, "family", "")
    model: Any = subject.model
    inputs: type | None = None if model is None else type(model.inputs)
    if inputs is None and subject.card is not None:
        inputs = type(input_spec(subject.card["inputs"]))
    accepted = (inputs,) if inputs else getattr(subject.config, "accepts", ())
    return [
        {
            "family": member.model_fields["family"].default,
            "takes": [spec.__name__.lower() for spec in member.accepts],
            "gives": [
                "next token" if s.__name__ == "NextToken" else s.__name__.lower() for s in member.gives
            ],
            "suits": member.suits,
            "accepts_these_inputs": any(spec in member.accepts for spec in accepted),
            "chosen": member.model_fields["family"].default == own,
        }
        for member in FAMILIES.values()
    ]


# --- for people -------------------------------------------------------------------------------------


def show(description: dict[str, Any]) -> Group:
    """The description as rich renderables, for a terminal or a plain log."""
    parts: list[RenderableType] = [
        Text(f"{description['name']}: {description['family'] or UNCHOSEN}", style="bold")
    ]
    if description["auto"]:
        parts.append(Text(f"chosen for this data: {description['auto']}"))
    if description["inputs"]:
        gives = words(description["outputs"])
        parts.append(Text(f"takes {words(description['inputs'])}; gives {gives}"))
    if description["works"]:
        parts.append(Text(f"how it works: {description['works']}"))
    parts += [Text(f"assumed: {note}") for note in description["assumed"]]
    parts += [Text(f"not known yet: {note}") for note in description["needs_prepare"]]
    if description["structure"]:
        root = Tree(_label(description["structure"], ""))
        _grow(root, description["structure"])
        parts += [Text(), root, _costs(description)]
    parts += [Text(f"data: {line}") for line in data_lines(description)]
    return Group(*parts, *_show_advice(description))


def _show_advice(description: dict[str, Any]) -> Iterator[RenderableType]:
    """Which families suit: by the data's own figures, or in general where these are not known yet."""
    advice = description["advice"]
    if advice is None:
        families = _table("which families take these inputs", "family", "takes", "here", "suits")
        for family in description["families"]:
            fits = "chosen" if family["chosen"] else "yes" if family["accepts_these_inputs"] else "no"
            families.add_row(family["family"], ", ".join(family["takes"]), fits, family["suits"])
        yield families
        general = _table("which model for which problem", "problem", "choice")
        for row in description["guide"]:
            general.add_row(row["problem"], row["choice"].replace("`", ""))
        yield general
        return
    for about, columns, rows in (
        ("which families suit this data, the first choice first", advise.WHY, advise.reasons(advice)),
        ("what they cost here, in the size proposed", advise.COSTS, advise.prices(advice)),
    ):
        table = _table(about, *columns)
        for row in rows:
            table.add_row(*row)
        yield table
    for line in [f"to beat: {advice['baseline']}", *advice["hints"]]:
        yield Text(line)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, max_width=72, overflow="fold")
    return table


def _costs(description: dict[str, Any]) -> Table:
    table = _table("costs", "", "")
    table.show_header = False
    for name, value in cost_rows(description):
        table.add_row(name, value)
    return table


def cost_rows(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the model costs, name and value; parts of a sum are indented."""
    parameters, flops, memory = (description[key] for key in ("parameters", "flops", "memory"))
    yield (
        "parameters",
        f"{count(parameters['total'])}, {count(parameters['trainable'])} of them trained",
    )
    unit = flops["unit"]
    yield (
        f"FLOPs per {unit}",
        f"{count(flops['forward'])} forward, {count(flops['backward'])} backward",
    )
    training = memory["training"]
    rows = f"{training['rows']} rows"
    rows += f" of {training['tokens_per_row']} tokens" if training["tokens_per_row"] > 1 else ""
    yield "memory to train", f"{rows} at once, {training['precision']}, {training['optimizer']}"
    blocks = len(memory["activations_by_recomputed"]) - 1
    for part in ("weights", "gradients", "optimizer", "activations", "allocator", "total"):
        if part == "allocator" and not memory[part]:
            continue
        more = f", {memory['recomputed']} of {blocks} blocks recomputed" if memory["recomputed"] else ""
        yield f"  {part}", bytes_(memory[part]) + (more if part == "activations" else "")
    if memory["fits"] is not None:
        answer = "fits" if memory["fits"] else "does not fit"
        yield "  device", f"{answer} in {bytes_(memory['device_bytes'])} (a tenth kept free)"
    for at, change in enumerate(memory["proposals"]):
        yield "  fits with" if at == 0 else "  or with", f"{change['options']}: {change['says']}"


def _grow(tree: Tree, component: dict[str, Any]) -> None:
    for part, alike in grouped(component["parts"]):
        branch = tree.add(_label(part, alike))
        _grow(branch, part)


def grouped(parts: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Parts with their names; a run of equal ones as one ("0 to 11")."""
    runs: list[list[dict[str, Any]]] = []
    for part in parts:
        if runs and _without_names(runs[-1][0]) == _without_names(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    for run in runs:
        first, last = run[0]["name"], run[-1]["name"]
        yield run[0], first if len(run) == 1 else f"{first} to {last} ({len(run)} alike)"


def _without_names(part: dict[str, Any]) -> dict[str, Any]:
    """Equal for blocks of equal make: their own name is their number, their parts' names count."""
    return {key: value for key, value in part.items() if key != "name" or not value.isdigit()}


def _label(part: dict[str, Any], name: str) -> Text:
    return Text.assemble((title(part, name), "bold"), "  ", (facts(part), "dim"))


def title(part: dict[str, Any], name: str) -> str:
    """A part of the model, by its name (none: the whole) and kind."""
    return f"{name}: {part['kind']}" if name else str(part["kind"])


def facts(part: dict[str, Any]) -> str:
    """What a part does, how many parameters it has, and the shape of what comes out."""
    found = [part["does"]]
    if part["parameters"]:
        frozen = part["parameters"] - part["trainable"]
        found.append(
            f"{count(part['parameters'])} parameters" + (f", {count(frozen)} frozen" if frozen else "")
        )
    if part["shape"]:
        found.append(" x ".join(map(str, part["shape"])))
    return "; ".join(found)


def data_lines(description: dict[str, Any]) -> Iterator[str]:
    """Rows of each split, and how they stand to the model's size."""
    data = description["data"]
    if data is None:
        return
    for name, counts in data["splits"].items():
        yield f"{name}: " + ", ".join(f"{value:,} {key}" for key, value in counts.items())
    if data["per_parameter"] is not None:
        yield f"train {data['unit']} per parameter: {data['per_parameter']:.3g}"
    for key in ("verdict", "rule"):
        if data[key]:
            yield data[key]


def words(spec: dict[str, Any]) -> str:
    """What goes in or comes out, in words."""
    return {
        "features": lambda: f"rows of {spec['width']} numbers",
        "images": lambda: (
            f"pictures of {spec['height']} x {spec['width']} pixels in {spec['channels']} "
            f"channel{'s' if spec['channels'] > 1 else ''}, {spec.get('pixels', 'standardised')}"
        ),
        "tokens": lambda: f"tokens of a vocabulary of {spec['vocabulary']:,}",
        "classes": lambda: f"one of {spec['n']} classes",
        "labels": lambda: f"any of {spec['n']} labels",
        "values": lambda: f"{spec['n']} number{'s' if spec['n'] > 1 else ''}",
        "next_token": lambda: "the next token at every position",
        "nothing": lambda: "nothing yet: its head comes with fine-tuning",
    }[spec["kind"]]()
