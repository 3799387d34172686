"""The evaluation suites: questions in files that a language model answers, games that it plays; one class
for each kind."""

from typing import Annotated

from pydantic import Field

from llmtool.evaluation.exact_match import ExactMatch
from llmtool.evaluation.last_word import LastWord
from llmtool.evaluation.multiple_choice import MultipleChoice
from llmtool.evaluation.perplexity import Perplexity
from llmtool.evaluation.play import Play

SuiteConfig = Annotated[
    MultipleChoice | ExactMatch | LastWord | Perplexity | Play, Field(discriminator="kind")
]
