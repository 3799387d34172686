"""A cleaning step that takes personal data and secrets out of text, or the rows in which they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from pydantic import Field

from llmtool.core.config import Section
from llmtool.data.cleaning import Applied
from llmtool.data.corpus import Verdict, over_texts
from llmtool.data.sensitive import KINDS, find, redact

if TYPE_CHECKING:
    import pandas as pd

KindName = Literal[
    "private_key", "jwt", "api_key", "named_secret", "password", "iban", "credit_card", "cn_id", "us_ssn",
    "email", "ip", "phone",
]  # fmt: skip


class PersonalData(Section):
    """Write a placeholder such as <EMAIL> over personal data and secrets, or drop the rows that hold any.

    What has check digits is checked: cards (Luhn), IBANs (mod 97), Chinese identity numbers; addresses of the
    internet are public ones. Names of people and postal addresses are not found.
    """

    of_all_texts: ClassVar[bool] = True  # without `columns`: of a cell that is no text nothing is said
    step: Literal["personal_data"]
    columns: list[str] | None = Field(
        default=None, min_length=1, description="columns of text; default: all, where what is no text stays"
    )
    do: Literal["redact", "drop"] = Field(
        default="redact", description="write a placeholder, or drop the whole row"
    )
    kinds: list[KindName] = Field(
        default=list(get_args(KindName)), min_length=1, description="what is looked for"
    )

    def apply(self, frame: pd.DataFrame) -> Applied:
        """Rows changed, or one reason, for each kind."""
        columns = list(frame.columns) if self.columns is None else self.columns
        return over_texts(frame, columns, self.step, self._look, others=self.columns is None)

    def _look(self, text: str) -> Verdict:
        if self.do == "drop":
            found = {kind for _, _, kind in find(text, self.kinds)}
            first = next((kind for kind in KINDS if kind in found), None)
            return Verdict(text, None if first is None else f"{first} found ({self.step})")
        written, kinds = redact(text, self.kinds)
        return Verdict(written, None, tuple(f"{kind} redacted ({self.step})" for kind in kinds))
