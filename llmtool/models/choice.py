"""Which family for which problem, how large, and why: the rules that describe, init and `model: auto` share.

A rule looks at specs and counts only. Figures in it are rules of thumb, with their source or with the story
under configs/ that measured them; the validation score has the last word.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmtool.core.contracts import Classes, Features, Images, InputSpec, NextToken, OutputSpec, Tokens, Values
from llmtool.models import ModelConfig

FAMILIES: dict[str, Any] = {
    member.model_fields["family"].default: member
    for member in typing.get_args(typing.get_args(ModelConfig)[0])
}
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556
PASSES = 4  # over the same tokens are worth nearly as much as new ones: https://arxiv.org/abs/2305.16264
# FLOPs that half an hour of training has, about: on two CPU cores at 30 GFLOP/s each, or on a GPU at a third
# of an A100's peak. A choice must not change with what a machine happens to do meanwhile: nothing is timed.
AFFORDABLE = {"cpu": 60e9 * 1800, "cuda": 100e12 * 1800}
SIZES = (  # depth, heads, width of a transformer, from the smallest on
    (2, 2, 64), (3, 3, 96), (4, 4, 128), (4, 6, 192), (6, 4, 256), (6, 6, 384), (8, 8, 512), (12, 12, 768),
    (24, 16, 1024), (24, 16, 2048),
)  # fmt: skip
FEW_ROWS, MANY_ROWS = 1_000, 1_000_000  # of a table
MANY_TEXTS, MANY_PICTURES = 100_000, 1_000_000  # from which the larger family can be learned from the start
LITTLE = 64  # pixels a side, up to which the stem of a convolutional network must keep them all


@dataclass(frozen=True)
class Problem:
    """What decides: what goes in, what comes out, how much there is to learn from.

    rows: of the train split (of text to go on with: its documents). tokens: of the train split.
    longest: tokens of its longest row; 0: not known. device: "cpu" or "cuda".
    whole: each document must fit into the context (conversations, games). game: its tokens are moves.
    """

    inputs: InputSpec
    outputs: OutputSpec
    rows: int
    tokens: int = 0
    longest: int = 0
    whole: bool = False
    device: str = "cpu"
    game: bool = False


@dataclass(frozen=True)
class Choice:
    """A family for a problem. rank: 0 comes first. model: keys of `model:`. train: keys of `train:` that went
    well with it."""

    family: str
    rank: int
    why: str
    against: str
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """The family's own configuration, its defaults filled in."""
        return FAMILIES[self.family].model_validate({"family": self.family, **self.model})


@dataclass(frozen=True)
class Rule:
    """What there is to say of a family: how it works, and what it is worth for a problem that it can take."""

    works: str
    choose: Callable[[Problem], Choice]


def choices(problem: Problem) -> list[Choice]:
    """Every family that takes these inputs and gives these outputs, the first choice first."""
    found = [
        RULES[name].choose(problem)
        for name, member in FAMILIES.items()
        if type(problem.inputs) in member.accepts
        and isinstance(problem.outputs, member.gives)
        # from the start, a decoder reads classes of texts no better than an encoder, which sees both sides
        and (name != "transformer" or isinstance(problem.outputs, NextToken))
        and (name == "encoder" or not getattr(problem.inputs, "features", 0))
    ]
    return sorted(found, key=lambda choice: choice.rank)


# --- tables -----------------------------------------------------------------------------------------------


def _hidden(rows: int) -> list[int]:
    width = 64 if rows < 2_000 else 256 if rows < 200_000 else 512
    return [width, width]


def _epochs(rows: int) -> int:
    """Passes over a table: small ones need many for their few hundred steps, large ones few."""
    return 100 if rows < 2_000 else 40 if rows < 20_000 else 20 if rows < 200_000 else 5


def _mlp(problem: Problem) -> Choice:
    rows = problem.rows
    few = rows < FEW_ROWS
    size = f"{rows:,} training rows"
    return Choice(
        "mlp",
        0 if few else 2,
        f"{size} are few: a small network learns them in seconds, and a larger one would not know more"
        if few
        else f"the plain network, quickest to train and to run, a fair first answer for {size}",
        "gradient-boosted trees are often as good on so few rows (https://arxiv.org/abs/2207.08815)"
        if few
        else "on tables of this size trees, or an ensemble of networks, are mostly a little better",
        {"hidden": _hidden(rows), **({} if few else {"dropout": 0.1})},
        {"budget": {"epochs": _epochs(rows)}, "optimizer": {"name": "adamw", "lr": 1e-3 if few else 3e-3}},
    )


def _tabm(problem: Problem) -> Choice:
    rows = problem.rows
    fits = rows >= FEW_ROWS and (rows <= MANY_ROWS or problem.device == "cuda")
    return Choice(
        "tabm",
        1,
        f"an ensemble of networks that share most of their weights, strong on tables such as this one of "
        f"{rows:,} training rows (https://arxiv.org/abs/2410.24210)"
        if fits
        else f"an ensemble of networks that share most of their weights; {rows:,} training rows are "
        + ("few for it" if rows < FEW_ROWS else "many for a CPU"),
        "each row is computed once per member: slower than one network; trees need less care",
        {},
        dict(FAMILIES["tabm"].recipe),
    )


# --- texts with a class or a number -----------------------------------------------------------------------


def _bag(problem: Problem) -> Choice:
    assert not isinstance(problem.outputs, NextToken)
    # with many outputs a weight for each would fill the memory: a vector for each n-gram, as in the paper
    vectors = {"width": 32} if problem.outputs.n > 32 else {}
    return Choice(
        "bag",
        0,
        f"counts which words and phrases say what: from the start the best there is for {problem.rows:,} "
        "texts, in minutes on a CPU, however long they are (https://arxiv.org/abs/1607.01759)",
        "it does not read: negation and irony over more than a few words are lost; a pretrained encoder, "
        "fine-tuned, is better where there is one for the language",
        ({"ngrams": 3, "buckets": 2**20} if problem.rows >= 10_000 else {}) | vectors,
        {
            "budget": {"epochs": 2 if problem.rows >= 10_000 else 4},
            "batch": 32,
            "optimizer": {"name": "adamw", "lr": 0.02, "weight_decay": 0},
            "schedule": {"name": "linear"},
        },
    )


def _encoder(problem: Problem) -> Choice:
    length = problem.inputs.length if isinstance(problem.inputs, Tokens) else None
    depth, heads, width = (2, 4, 128) if problem.rows < MANY_TEXTS else (4, 4, 256)
    enough = problem.rows >= MANY_TEXTS
    return Choice(
        "encoder",
        1,
        (
            f"{problem.rows:,} texts can teach a small one from the start what follows from the order of "
            "words"
            if enough
            else "reads each text whole; pretrained, with `finetune`, it is the first choice from some "
            "hundred texts of a class on"
        ),
        "from the start it learns the language from the labels alone: slow, and seldom better than counting "
        f"words below some {MANY_TEXTS:,} texts",
        {"depth": depth, "heads": heads, "width": width, "context": length or 512, "dropout": 0.1,
         "pooling": "mean"},
        {"budget": {"epochs": 4 if enough else 10}, "optimizer": {"name": "adamw", "lr": 1e-3}},
    )  # fmt: skip


# --- the next token ---------------------------------------------------------------------------------------


def _transformer(problem: Problem) -> Choice:
    assert isinstance(problem.inputs, Tokens)
    context = _context(problem)
    by_data = problem.tokens * PASSES // TOKENS_PER_PARAMETER
    # a parameter costs 6 FLOPs for each of 20 tokens: https://arxiv.org/abs/2001.08361, section 2.1
    by_time = int(math.sqrt(AFFORDABLE[problem.device] / (6 * TOKENS_PER_PARAMETER)))
    limit = min(by_data, by_time)
    vocabulary = problem.inputs.vocabulary
    chosen = min(SIZES, key=lambda size: abs(math.log(_parameters(size, vocabulary) / max(limit, 1))))
    depth, heads, width = chosen
    size = _parameters(chosen, vocabulary)
    bound = (
        f"{problem.tokens:,} training tokens, read {PASSES} times, are enough for some {_round(by_data):,}"
    )
    if by_time < by_data:
        bound = f"half an hour on {'a GPU' if problem.device == 'cuda' else 'two CPU cores'} trains some "
        bound += f"{_round(by_time):,}"
    passes = TOKENS_PER_PARAMETER * size / max(problem.tokens, 1)
    epochs = min(20, math.ceil(passes) if passes > 1 else max(0.01, float(f"{passes:.1g}")))
    few = problem.tokens < 10_000_000
    return Choice(
        "transformer",
        0,
        f"the only family that goes on with a {'record' if problem.game else 'text'}; with "
        f"{_round(size):,} parameters: {bound} "
        f"({TOKENS_PER_PARAMETER} tokens a parameter, https://arxiv.org/abs/2203.15556)",
        "it knows the rules as far as it has learned them: some moves will be illegal, fewer with more games"
        if problem.game
        else f"{problem.tokens:,} tokens teach little of a language: `finetune` a pretrained model, which "
        "needs far fewer"
        if few
        else "a pretrained model, fine-tuned, knows more than any that is trained here from the start",
        {"architecture": "qwen3", "depth": depth, "heads": heads, "width": width, "context": context},
        {
            "budget": {"epochs": epochs},
            "optimizer": {"name": "muon", "lr": 0.02, "adamw_lr": 6e-3},
            "schedule": {"name": "linear", "warmup": 0.02},
        },
    )


def _parameters(size: tuple[int, int, int], vocabulary: int) -> int:
    """Of a block: 4 width^2 in attention and 8 in SwiGLU; the output layer shares the embedding's weights."""
    depth, _, width = size
    return 12 * depth * width**2 + vocabulary * width


def _round(value: float) -> int:
    """Two digits of it."""
    return int(float(f"{value:.2g}"))


def _context(problem: Problem) -> int:
    """Tokens seen at once: of whole documents the longest; else what one of usual length has."""
    if problem.whole and problem.longest:
        return max(16, problem.longest)
    usual = problem.tokens // max(problem.rows, 1)
    most = 512 if problem.device == "cuda" else 256
    return min(most, max(64, 2 ** math.ceil(math.log2(max(usual, 1))))) if problem.rows > 1 else most // 2


# --- pictures ---------------------------------------------------------------------------------------------


def _convnet(problem: Problem) -> Choice:
    """As configs/images/cifar10.yaml and fashion_mnist.yaml found it."""
    assert isinstance(problem.inputs, Images)
    side, grey = max(problem.inputs.height, problem.inputs.width), problem.inputs.channels == 1
    little, wide = side <= LITTLE, problem.device == "cuda"
    model: dict[str, Any] = {"stem": "small" if little else "large"}
    if little and wide:
        model |= {"stem_width": 64, "widths": [64, 128, 256], "depths": [2, 2, 2]}
    elif little:
        model |= {"stem_width": 32, "widths": [32, 64, 128], "depths": [1, 1, 1]}
        if not grey:
            model |= {"widths": [32, 128, 256], "depths": [1, 2, 2]}
    elif not wide:
        model |= {"stem_width": 32, "widths": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
    few = problem.rows < 2_000
    changed = {"crop": max(1, side // 12)} | ({} if grey else {"flip": True})
    train: dict[str, Any] = {
        "budget": {"epochs": 60 if few else 30 if wide else 12 if grey else 20},
        "batch": 32 if few else 128,
        "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True, "weight_decay": 5e-4}
        if few
        else {"name": "muon", "lr": 0.02, "adamw_lr": 3e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.2},
        "augment": changed,
    }
    return Choice(
        "convnet",
        0,
        f"knows from the start that what is near belongs together, so {problem.rows:,} pictures teach it "
        f"more than a transformer; {side} pixels a side want the "
        + ("small stem, which keeps them all" if little else "large stem, which soon has fewer of them"),
        "with some hundred pictures of a class a pretrained one, fine-tuned, is far better"
        if problem.rows < 10_000
        else "a pretrained one, fine-tuned, gets there in fewer passes",
        model | {"shortcut": "pooling", "zero_init": True},
        train if few else train | {"ema": 0.998},
    )


def _convnext(problem: Problem) -> Choice:
    assert isinstance(problem.inputs, Images)
    little = max(problem.inputs.height, problem.inputs.width) <= LITTLE
    return Choice(
        "convnext",
        2,
        "a convolutional network in the transformer's manner: pretrained ones, fine-tuned, are among the "
        "best",
        "from the start it learns slower than a convnet on fewer than a million pictures",
        {"patch": 1, "widths": [48, 96, 192], "depths": [2, 2, 2]} if little else {},
        {"budget": {"epochs": 30}, "optimizer": {"name": "adamw", "lr": 1e-3}},
    )


def _vit(problem: Problem) -> Choice:
    assert isinstance(problem.inputs, Images)
    many = problem.rows >= MANY_PICTURES and problem.device == "cuda"
    return Choice(
        "vit",
        -1 if many else 1,
        f"{problem.rows:,} pictures are enough to learn even what is near what"
        if many
        else "pretrained ones, fine-tuned, are among the best from some hundred pictures of a class on",
        "it wants more memory and time for each picture than a convnet"
        if many
        else f"from the start it must learn what is near what, too: {problem.rows:,} pictures are few for "
        "that (https://arxiv.org/abs/2010.11929)",
        {"patch": _patch(problem.inputs)},
        {"budget": {"epochs": 30}, "optimizer": {"name": "adamw", "lr": 1e-3}},
    )


def _patch(picture: Images) -> int:
    """Pixels a side that divide the picture: of large ones 16 at most, of little ones some 8 x 8 patches."""
    both = math.gcd(picture.height, picture.width)
    most = max(2, min(16, max(picture.height, picture.width) // 7))
    found = max(size for size in range(1, most + 1) if both % size == 0)
    return found if picture.height * picture.width <= 4096 * found**2 else both


# --- the table --------------------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "mlp": Rule(
        "every layer takes weighted sums of all numbers before it and keeps what is positive: the first "
        "finds simple patterns of the columns, the next patterns of these, the last weighs them for the "
        "answer",
        _mlp,
    ),
    "tabm": Rule(
        "many multilayer perceptrons at once that share their large matrices and differ in small vectors "
        "which scale them; each gives its own answer, and their mean is more often right than any of them",
        _tabm,
    ),
    "bag": Rule(
        "every word and every pair of words has a weight for each answer, which counts the more, the "
        "better its presence tells the answers apart; those that a text holds are added up",
        _bag,
    ),
    "encoder": Rule(
        "every token's vector gathers, block by block, what it needs from all other tokens of its text "
        "(attention) and is reworked on its own (feed-forward); one vector of the whole text is weighed for "
        "the answer",
        _encoder,
    ),
    "transformer": Rule(
        "every token's vector gathers, block by block, what it needs from the tokens before it (attention) "
        "and is reworked on its own (feed-forward); the last one is compared with every token of the "
        "vocabulary, which gives the chance of each to come next",
        _transformer,
    ),
    "convnet": Rule(
        "small filters slide over the picture: the first find edges and colours, later ones, on ever fewer "
        "pixels, patterns of these; blocks add to what came before instead of replacing it, so that many can "
        "be trained; the mean over the picture is weighed for the answer",
        _convnet,
    ),
    "convnext": Rule(
        "large filters look at each channel alone, then linear layers mix the channels of each pixel, on "
        "ever fewer pixels; the mean over the picture is weighed for the answer",
        _convnext,
    ),
    "vit": Rule(
        "the picture is cut into patches, each becomes a vector, and these gather, block by block, what they "
        "need from all others (attention); one vector of the whole is weighed for the answer",
        _vit,
    ),
}


@dataclass(frozen=True)
class Advice:
    """A line of the guide: a problem in words, one of its kind (None: no data of ours is), and what to do."""

    problem: str
    choice: str
    family: str | None = None
    example: Problem | None = None


GUIDE = (
    Advice(
        "a class or a number for each row of a table, from some thousand rows on",
        "`encode: {as: features}` and `family: tabm`; `evaluate` fits gradient-boosted trees beside it",
        "tabm",
        Problem(Features(20), Classes(2), 20_000),
    ),
    Advice(
        "a class or a number for each row of a table of some hundred rows",
        "`family: mlp`, small; compare with gradient-boosted trees, which often win "
        "(https://arxiv.org/abs/2207.08815)",
        "mlp",
        Problem(Features(4), Values(1), 500),
    ),
    Advice(
        "a class or a number for each text, with no pretrained model at hand",
        "`encode: {as: text}` and `family: bag`, minutes on a CPU",
        "bag",
        Problem(Tokens(8192, 256), Classes(2), 20_000, 4_000_000),
    ),
    Advice(
        "a class or a number for each text, with a pretrained encoder",
        "`encode: {as: text, tokenizer: {kind: file, path: its directory}}` and `finetune`: some hundred "
        "texts of a class are enough",
    ),
    Advice(
        "text, or another sequence, to go on with",
        "`encode: {as: tokens}` and `family: transformer`, from the start with many tokens (20 for each "
        "parameter); with few `finetune` a checkpoint, by `lora` when memory is short",
        "transformer",
        Problem(Tokens(65), NextToken(65), 1, 1_000_000),
    ),
    Advice(
        "answers to instructions, conversations",
        "`encode: {as: chat}`, best with `finetune` from a model that knows the language",
        "transformer",
        Problem(Tokens(4096), NextToken(4096), 1_000, 200_000, 512, whole=True),
    ),
    Advice(
        "a class or a number for each picture",
        "`family: convnet`, with `stem: small` up to 64 pixels a side; with few pictures `finetune` a "
        "pretrained convnet, convnext or vit",
        "convnet",
        Problem(Images(1, 28, 28), Classes(10), 60_000),
    ),
    Advice("the same kind of rows, other classes", "`finetune` with `method: {kind: head}` for few rows, "
           "`full` for many"),
    Advice("sound", "no family of this version takes it"),
)  # fmt: skip


def guide() -> list[Advice]:
    """The lines that speak of what this version has."""
    return [line for line in GUIDE if line.family is None or line.family in FAMILIES]
