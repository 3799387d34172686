"""A cleaning step that repairs text which was once decoded in the wrong encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmtool.core.config import Section
from llmtool.core.errors import ConfigError
from llmtool.data.cleaning import Applied
from llmtool.data.corpus import Verdict, over_texts

if TYPE_CHECKING:
    import pandas as pd


class FixText(Section):
    """Repair mojibake ("sÃ³" is "só") and take out control characters, with ftfy (https://ftfy.readthedocs.io).

    Quotation marks, ligatures, wide characters and line ends stay: `normalize` writes text uniformly.
    """

    step: Literal["fix_text"]
    columns: list[str] = Field(default=["text"], min_length=1, description="columns of text")
    html: bool = Field(default=False, description="write characters for HTML entities such as &amp; too")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """No row leaves; rows changed."""
        try:
            import ftfy
        except ImportError:
            raise ConfigError("fix_text needs ftfy: pip install 'llmtool[corpus]'") from None
        config = ftfy.TextFixerConfig(
            unescape_html=self.html,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            normalization=None,
            explain=False,
        )

        def look(text: str) -> Verdict:
            if text.isascii() and text.isprintable() and not (self.html and "&" in text):
                return Verdict(text)  # nothing to repair, which is the rule
            repaired = ftfy.fix_text(text, config)
            return Verdict(repaired, None, ("repaired (fix_text)",) if repaired != text else ())

        return over_texts(frame, self.columns, self.step, look)
