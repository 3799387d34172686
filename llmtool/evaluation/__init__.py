"""Scoring a model: the loop over batches, what the figures must reach, and the report a person reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.config import Section, suggest
from llmtool.data.sources import SplitName
from llmtool.evaluation.attribution import ExplainConfig
from llmtool.evaluation.baselines import BaselinesConfig
from llmtool.evaluation.probe import ProbeConfig
from llmtool.evaluation.requirements import Requirements, splits_of, suites_of
from llmtool.evaluation.suites import SuiteConfig


class SamplesConfig(Section):
    """Texts that a language model writes, to be read beside its figures."""

    prompts: list[str] = Field(
        default=[""], min_length=1, description="what each text begins with; empty: a document's start"
    )
    tokens: int = Field(
        default=200, gt=0, le=100_000, description="tokens written after each prompt, unless the text ends"
    )
    temperature: float = Field(
        default=0.8,
        ge=0,
        description="1: as the model learned; below: surer; 0: always the likeliest token",
    )
    top_k: int | None = Field(default=None, gt=0, description="choose among this many likeliest tokens only")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="choose among the likeliest that together have this probability"
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="choose among those at least so many times as likely as the likeliest",
    )
    count: int = Field(default=1, gt=0, le=1000, description="texts for each prompt")


class EvaluateConfig(Section):
    """Which model is scored on what, and what the figures must reach."""

    of: str | None = Field(
        default=None,
        description="a run (what it fine-tuned, else what it trained), a stage of a run, a checkpoint, a "
        "model in Hugging Face's layout, or hf://owner/name@commit; "
        "default: this run's finetune where there is one, else its train",
    )
    splits: list[SplitName] | None = Field(
        default=None,
        min_length=1,
        description="which splits are scored; default: validation and test, those that exist",
    )
    require: Requirements = Field(
        default={}, description='what a figure must reach, as in {test.f1: ">=0.85"}; unmet: exit 3'
    )
    metric: str | None = Field(
        default=None,
        description="the figure that is held against baselines and slices; "
        "default: accuracy, rmse or loss, mean_average_precision of several labels",
    )
    compare: str | None = Field(
        default=None, description="an evaluated run to compare with, row by row, from its saved predictions"
    )
    baselines: BaselinesConfig = Field(
        default=BaselinesConfig(), description="simple models of the same data, to be held against"
    )
    slices: bool = Field(
        default=True, description="look for the parts of the data on which the model does worse"
    )
    batch: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        default="auto", description="rows scored at once"
    )
    flip: bool = Field(
        default=False,
        description="pictures: each is judged together with its mirror image, by the mean of both",
    )
    explain: ExplainConfig | None = Field(
        default=None, description="why the model said so: `{}` for tables, labelled texts and pictures"
    )
    samples: SamplesConfig | None = Field(default=None, description="language models: continuations to read")
    probe: ProbeConfig | None = Field(
        default=None, description="models of games: read the board out of the hidden states"
    )
    suites: list[SuiteConfig] = Field(
        default=[],
        description="language models: questions in local files, games against fixed opponents; "
        "finetune asks before and after",
    )

    @model_validator(mode="after")
    def _suites_have_names_of_their_own(self) -> Self:
        names = [suite.name for suite in self.suites]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"suites: two of them are called {name}; give each a `name`")
        for name in suites_of(self.require):
            if name not in names:
                known = f" (suites: {', '.join(names)})" if names else ""
                raise ValueError(f"require: there is no suite {name!r}{suggest(name, names)}{known}")
        return self

    @model_validator(mode="after")
    def _changes_have_something_to_change_from(self) -> Self:
        for name in self.require:
            if ".change" in name and self.compare is None:
                raise ValueError(f"require: {name} is a change, but `compare` names no run to compare with")
        return self

    @model_validator(mode="after")
    def _required_splits_are_scored(self) -> Self:
        if self.splits is not None:
            if len(set(self.splits)) < len(self.splits):
                raise ValueError(f"splits: {', '.join(self.splits)} names a split twice")
            for split in splits_of(self.require):
                if split not in self.splits:
                    raise ValueError(
                        f"require: {split} is a split that `splits` leaves out ({', '.join(self.splits)})"
                    )
        return self
