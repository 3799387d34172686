"""Personal data and secrets in text: a pattern for each kind, and the check that tells it from other numbers.

Every pattern takes time in proportion to the text, whoever wrote it: repetitions are bounded or possessive,
and what begins with a long run begins only where the run does. Patterns that begin with a digit look at what
stands before it afterwards, `[0-9](?<![a-z][0-9])`: Python finds the digits fast.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
Check = Callable[[re.Match[str]], Span | None]  # where in a match it stands; None: it is something else


@dataclass(frozen=True)
class Kind:
    """One kind of personal data. patterns: each with its check. needs: pieces of text of which one stands
    wherever the kind does, so that most texts are done with at a glance."""

    patterns: tuple[tuple[re.Pattern[str], Check], ...]
    needs: tuple[str, ...] = ()


def find(text: str, kinds: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, end, kind) of all there is in a text, in order. Of finds that overlap one is made, of the kind
    that comes first in KINDS."""
    found: list[tuple[int, int, int]] = []
    for rank, (name, kind) in enumerate(KINDS.items()):
        if name not in kinds or (kind.needs and not any(piece in text for piece in kind.needs)):
            continue
        for pattern, check in kind.patterns:
            for match in pattern.finditer(text):
                if (span := check(match)) is not None:
                    found.append((*span, rank))
    names = list(KINDS)
    merged: list[tuple[int, int, int]] = []
    for start, end, rank in sorted(found):
        if merged and start < merged[-1][1]:
            first, last, other = merged[-1]
            merged[-1] = first, max(last, end), min(rank, other)
        else:
            merged.append((start, end, rank))
    return [(start, end, names[rank]) for start, end, rank in merged]


def redact(text: str, kinds: Sequence[str]) -> tuple[str, list[str]]:
    """The text with a placeholder such as <EMAIL> for each find, and the kinds that were found."""
    pieces, at = [], 0
    found = find(text, kinds)
    for start, end, kind in found:
        pieces += [text[at:start], placeholder(kind)]
        at = end
    return "".join([*pieces, text[at:]]), list(dict.fromkeys(kind for _, _, kind in found))


def placeholder(kind: str) -> str:
    """What stands for it afterwards."""
    return f"<{kind.upper()}>"


def _whole(match: re.Match[str]) -> Span:
    return match.span()


def _digits(text: str) -> str:
    return "".join(filter(str.isdecimal, text))  # the patterns let no digits of other scripts in


def _entropy(text: str) -> float:
    """Bits a character, by how often each of its characters stands there."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


# --- people -----------------------------------------------------------------------------------------------


def _email(match: re.Match[str]) -> Span | None:
    """From the name before the @, of at most 64 characters (RFC 5321, section 4.5.3.1), to the end."""
    text, at = match.string, match.start()
    start = at
    while start > max(0, at - 64) and _in_name(text[start - 1]):
        start -= 1
    return (start, match.end()) if start < at else None


def _in_name(character: str) -> bool:
    """Letters of scripts with blanks between words: in others the words before would count as the name."""
    return character in "._%+-" or (character.isalnum() and character < "\u0600")


_DATE = re.compile(r"[0-9]{1,2}[./-][0-9]{1,2}[./-](?:19|20)?[0-9]{2}(?![0-9])")


def _telephone(match: re.Match[str]) -> Span | None:
    """Of 7 to 15 digits (E.164) before an extension, and no date."""
    digits = len(_digits(_EXTENSION.split(match[0])[0]))
    return match.span() if 7 <= digits <= 15 and not _DATE.match(match[0]) else None


def _national(match: re.Match[str]) -> Span | None:
    """With the 0 in front: of 9 digits or more; of pairs (France) five, others are small tables; no ISBN."""
    digits = len(_digits(match[0]))
    if len(match[0]) == 10 and match[0].isdecimal() and _is_isbn(match[0]):
        return None
    if digits < 9 or (digits != 10 and max(map(len, _GROUPS.split(match[0]))) <= 2):
        return None
    return _telephone(match)


def _is_isbn(digits: str) -> bool:
    """Of ten digits (ISO 2108): those of English books begin with a 0."""
    return sum((10 - place) * int(digit) for place, digit in enumerate(digits)) % 11 == 0


def _after_a_cue(match: re.Match[str]) -> Span | None:
    """Any number of 7 digits or more behind a word such as Tel."""
    start = match.start()
    return _telephone(match) if _CUE.search(match.string, max(0, start - 24), start) else None


_GROUPS, _EXTENSION = re.compile("[^0-9]+"), re.compile("[xe]")
_GAP = "[ \u00a0.\\-\u2010-\u2015/]"  # between the groups of a number
_END = r"(?:[ ,]{0,2}(?:x|ext\.?) ?[0-9]{1,6})?(?![0-9A-Za-z_]|[.,][0-9])"  # with an extension
_INTERNATIONAL = rf"\+(?<![0-9A-Za-z]\+)[1-9][0-9]{{0,2}}(?:(?:{_GAP}|[()]){{0,3}}[0-9]){{6,13}}{_END}"
_BY_SHAPE = (
    r"[0-9(](?<![0-9A-Za-z_.,$€£+/-][0-9(])(?:"
    rf"(?<=\()[2-9][0-9]{{2}}\){_GAP}?[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}"  # (212) 555-0100
    rf"|(?<=[2-9])[0-9]{{2}}{_GAP}[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}"  # 212 555 0100
    r"|(?<=[0-9])[0-9]{2}(?:-[0-9]{3}-|\.[0-9]{3}\.)[0-9]{4}"  # 123-456-7890
    rf"|(?<=1){_GAP}\(?[2-9][0-9]{{2}}\)?{_GAP}[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}"  # 1-212-555-0100
    r"|(?<=1)[3-9][0-9](?:[ -]?[0-9]{4}){2}"  # 138 1234 5678, a Chinese mobile
    # 8 (495) 123-45-67, 8-800-123-45-67, Russia
    rf"|(?<=8){_GAP}?\([3489][0-9]{{2}}\){_GAP}?[0-9]{{3}}{_GAP}?[0-9]{{2}}{_GAP}?[0-9]{{2}}"
    rf"|(?<=8){_GAP}[3489][0-9]{{2}}{_GAP}[0-9]{{3}}{_GAP}[0-9]{{2}}{_GAP}[0-9]{{2}}"
    rf"|(?<=\()[1-9][0-9]\){_GAP}?[0-9]{{4,5}}{_GAP}[0-9]{{4}}"  # (11) 91234-5678, Brazil
    rf"){_END}"
)
_TRUNK = (
    r"[0(](?<![0-9A-Za-z_.,$€£+/-][0(])(?:"
    rf"(?<=\()0[0-9]{{1,4}}\){_GAP}{{0,2}}[0-9]{{2,8}}(?:{_GAP}{{1,2}}[0-9]{{2,8}}){{0,4}}"  # (020) 7946 0000
    r"|(?<=0)[1-9][0-9]{8,9}"  # 0612345678
    rf"|(?<=0)0?[1-9][0-9]{{0,4}}(?:{_GAP}{{1,2}}[0-9]{{2,8}}){{1,5}}"  # 020 7946 0000, 0044 20 ...
    rf"){_END}"
)
_CUE = re.compile(
    r"(?i:(?<![A-Za-zÀ-ÿА-Яа-яё])(?:(?:tele)?(?:phone|fax|fon)|tel|t[ée]l(?:[ée]phone)?|mob(?:ile?)?|cell|"
    r"whatsapp|handy|call|text|(?:my|your|his|her|our) number|тел(?:ефон)?)|电话|手机)"
    r"(?: ?(?:no|nr|number|us|me|him|her|at|on|is|号码|号|是|为)){0,3}[.:：)\s]{0,4}$"
)
_NUMBER = r"[0-9+(](?<![0-9A-Za-z_+(][0-9+(])(?:[ .()/-]{0,2}[0-9]){6,15}" + _END


def _public_address(match: re.Match[str]) -> Span | None:
    """Of the public internet; four digits, 4.3.2.1, are taken for the number of a version or a section."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return None
    return match.span() if address.is_global and len(match[0]) > len("4.3.2.1") else None


_V4 = r"[1-9](?<![A-Za-z0-9_.-][1-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_-]|\.[0-9])"
_V6 = (  # all of the public internet's begin with 2 or 3 (RFC 4291, section 2.4)
    r"[23](?<![A-Za-z0-9:.][23])[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}"
    r"(?:[0-9A-Fa-f]{1,4}|(?<=::))(?![A-Za-z0-9]|:[0-9A-Fa-f:])"
)

# --- numbers with check digits ----------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, the sum divides by ten."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


_ISSUERS = (  # of cards: first digits, numbers of digits
    (re.compile("4"), (13, 16, 19)),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile("3[47]|2131|1800"), (15,)),
    (re.compile("5[06-8]|6[37]"), range(12, 20)),
    (re.compile("30[0-5]|309|3[689]"), (14, 16)),
    (re.compile("6011|64[4-9]|65|62|35"), (16, 19)),
)


def is_card(digits: str) -> bool:
    """Whether an issuer's cards have such numbers, and the check digit is right."""
    known = any(len(digits) in sizes and first.match(digits) for first, sizes in _ISSUERS)
    return known and luhn(digits)


def _card(match: re.Match[str]) -> Span | None:
    digits = _digits(match[0])
    if is_card(digits):
        return match.span()
    parts = match[0].replace("-", " ").split(" ")
    if len(parts) == 5 and is_card("".join(parts[:4])):  # what follows is another number
        return match.start(), match.end() - len(parts[4]) - 1
    return None


_CARD = (
    r"[1-6](?<![A-Za-z0-9_.+-][1-6])[0-9]{3}(?:"
    r"([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|([ -]?)[0-9]{6}\2[0-9]{4,5}|[0-9]{8,15})"
    r"(?![0-9A-Za-z_])"
)

_IBAN_LENGTHS = {  # the registry of ISO 13616, https://www.swift.com/standards/data-standards/iban
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27,
    "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28,
    "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23,
    "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27,
    "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18,
    "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33,
    "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def is_iban(text: str) -> bool:
    """Whether the length is that of the country, and the check digits are right (ISO 7064, MOD 97-10)."""
    turned = text[4:] + text[:4]
    return len(text) == _IBAN_LENGTHS.get(text[:2]) and (
        int("".join(str(int(character, 36)) for character in turned)) % 97 == 1
    )


def _iban(match: re.Match[str]) -> Span | None:
    """The characters of the country's length; what else the pattern took in are the next words."""
    length = _IBAN_LENGTHS.get(match[0][:2], 0)
    taken = [place for place, character in enumerate(match[0]) if character.isalnum()][:length]
    if not length or len(taken) < length or not is_iban("".join(match[0][place] for place in taken)):
        return None
    end = match.start() + taken[-1] + 1
    return None if match.string[end : end + 1].isalnum() else (match.start(), end)


_IBAN = r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z][0-9]{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}"


def _resident(match: re.Match[str]) -> Span | None:
    """The 18 characters of a Chinese identity number: GB 11643, check character by ISO 7064, MOD 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(weight * int(digit) for weight, digit in zip(weights, match[0], strict=False))
    return match.span() if "10X98765432"[total % 11] == match[0][-1].upper() else None


_SSN = (  # areas, groups and serial numbers that are never given out are left
    r"[0-8](?<![0-9A-Za-z_-][0-8])(?!(?<=0)00|(?<=6)66)[0-9]{2}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}"
    r"(?![0-9A-Za-z_-])"
)
_CN_ID = (
    r"[1-9](?<![0-9A-Za-z_][1-9])[0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
    r"[0-9]{3}[0-9Xx](?![0-9A-Za-z_])"
)

# --- secrets ----------------------------------------------------------------------------------------------

_WORD = "A-Za-z0-9_-"
_TOKENS = (  # as their issuers document them; the names of the public scanners' rules tell them apart
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{36,255}+|github_pat_[A-Za-z0-9_]{50,255}+",
    r"gl(?:pat|dt|rt|ptt|oas|soat)-[A-Za-z0-9_-]{20,100}+",  # GitLab
    r"sk-[A-Za-z0-9_-]{20,255}+",  # OpenAI, Anthropic and those that do as they do
    r"[srp]k_(?:live|test|prod)_[A-Za-z0-9]{10,255}+|whsec_[A-Za-z0-9+/]{24,100}+",  # Stripe
    r"xox[abceoprs]-[A-Za-z0-9-]{10,255}+|xapp-[0-9]-[A-Za-z0-9-]{10,255}+",  # Slack
    r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,100}+",
    r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{20,255}+",  # Google
    r"hf_[A-Za-z0-9]{30,60}+",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,255}+|dckr_pat_[A-Za-z0-9_-]{27}",
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}+",  # SendGrid
    r"do[opr]_v1_[a-f0-9]{64}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dapi[a-f0-9]{32}",
    r"key-[a-f0-9]{32}|SK[a-f0-9]{32}",  # Mailgun, Twilio
    r"(?:bot)?[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
    r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
)
_TOKEN_NEEDS = (
    "AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-",
    "glrt-", "glptt-", "gloas-", "glsoat-", "sk-", "k_live_", "k_test_", "k_prod_", "whsec_", "xox", "xapp-",
    "hooks.slack.com", "AIza", "GOCSPX-", "ya29.", "hf_", "npm_", "pypi-", "dckr_pat_", "SG.", "_v1_",
    "shpat_", "shpca_", "shppa_", "shpss_", "dapi", "key-", "SK", ":AA", "AGE-SECRET-KEY-",
)  # fmt: skip
_TOKEN = rf"(?<![{_WORD}])(?:{'|'.join(_TOKENS)})"
_SIGN = r"[:=][>=]?[ \t]{0,3}\\?"  # what stands between a name and its value, in code, settings and JSON
_NAMED = _SIGN + r"[\"']?([A-Za-z0-9+/_.~-]{16,200}+=*+)"
_SECRET_NAME = re.compile(  # aws_secret_access_key, "apiKey", AccountKey
    r"(?i:(?:api|access|secret|auth|account|private|client|encryption|signing)[_-]?(?:access[_-]?)?"
    r"(?:key|token|secret)|token|secret)(?:_id)?\\?[\"']?[ \t]{0,3}:?$"
)
RANDOM = 3.0  # bits a character: 32 random hexadecimal digits have about 3.7


def _token(match: re.Match[str]) -> Span | None:
    """No small words joined by dashes: sk-learn-is-a-library."""
    text = match[0]
    words = text.islower() and not any(map(str.isdigit, text))
    return match.span() if not words and _entropy(text) >= RANDOM else None


def _named_secret(match: re.Match[str]) -> Span | None:
    value, start = match[1], match.start()
    if not _SECRET_NAME.search(match.string, max(0, start - 48), start):
        return None
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return match.span(1) if mixed and _entropy(value) >= RANDOM else None


def _jwt(match: re.Match[str]) -> Span | None:
    """Whose header is JSON and names an algorithm (RFC 7515, section 4)."""
    head = match[1]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return None
    return match.span() if isinstance(header, dict) and "alg" in header else None


_JWT = rf"(?<![{_WORD}])(eyJ[{_WORD}]{{8,2000}}+)\.[{_WORD}]{{8,}}+\.[{_WORD}]{{8,}}+"
_BODY = r"[A-Za-z0-9+/=\s\\:,.()]*+(?:-(?!----)[A-Za-z0-9+/=\s\\:,.()]*+)*+"
_PRIVATE = (  # to its end; where that is missing, as far as lines of base64 go on
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rf"(?:{_BODY}-----END [A-Z0-9 ]{{1,60}}-----|(?:(?:\s|\\[nr]){{0,4}}[A-Za-z0-9+/=]{{32,}}+)*+)"
)
_IN_URL = r"://([^\s/:@?#\"'<>]{1,64}+:[^\s/@\"'<>]{1,128}+)@"
_QUOTED = _SIGN + r"(?:\"([^\s\"<>{}\\]{6,128}+)|'([^\s'<>{}\\]{6,128}+))\\?[\"']"
_PASSWORD_NAME = re.compile(r"(?i:passw(?:or)?d|pwd)\\?[\"']?[ \t]{0,3}:?$")


def _password(match: re.Match[str]) -> Span | None:
    """No plain word: "password": "required"."""
    start, group = match.start(), 1 if match[1] is not None else 2
    named = _PASSWORD_NAME.search(match.string, max(0, start - 16), start)
    value = match[group]
    word = value.isalpha() and (value.islower() or value.isupper() or value.istitle())
    return match.span(group) if named and not word else None


def _compiled(*patterns: tuple[str, Check]) -> tuple[tuple[re.Pattern[str], Check], ...]:
    return tuple((re.compile(pattern), check) for pattern, check in patterns)


_AT = r"@(?:[\w-]{1,63}+\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
KINDS = {
    "private_key": Kind(_compiled((_PRIVATE, _whole)), ("PRIVATE KEY",)),
    "jwt": Kind(_compiled((_JWT, _jwt)), ("eyJ",)),
    "api_key": Kind(_compiled((_TOKEN, _token)), _TOKEN_NEEDS),
    "named_secret": Kind(_compiled((_NAMED, _named_secret)), ("=", ":")),
    "password": Kind(
        _compiled((_IN_URL, lambda match: match.span(1)), (_QUOTED, _password)),
        ("://", "assw", "ASSW", "pwd"),
    ),
    "iban": Kind(_compiled((_IBAN, _iban))),
    "credit_card": Kind(_compiled((_CARD, _card))),
    "cn_id": Kind(_compiled((_CN_ID, _resident))),
    "us_ssn": Kind(_compiled((_SSN, _whole)), ("-",)),
    "email": Kind(_compiled((_AT, _email)), ("@",)),
    "ip": Kind(_compiled((_V4, _public_address), (_V6, _public_address)), (".", ":")),
    "phone": Kind(
        _compiled(
            (_INTERNATIONAL, _telephone),
            (_BY_SHAPE, _telephone),
            (_TRUNK, _national),
            (_NUMBER, _after_a_cue),
        )
    ),
}
