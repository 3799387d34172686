"""What is learned and how it is judged; the union is the register."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llmtool.tasks.classification import ClassificationConfig
from llmtool.tasks.language import LanguageConfig
from llmtool.tasks.multilabel import MultilabelConfig
from llmtool.tasks.regression import RegressionConfig

TaskConfig = Annotated[
    ClassificationConfig | MultilabelConfig | RegressionConfig | LanguageConfig, Field(discriminator="kind")
]


def default_task(targets: dict[str, Any]) -> TaskConfig:
    """The task that a card's targets suggest: classes, labels, values or the next token."""
    kinds = {"classes": ClassificationConfig, "values": RegressionConfig, "next_token": LanguageConfig}
    kinds |= {"labels": MultilabelConfig}
    task: TaskConfig = kinds[targets["kind"]]()
    return task
