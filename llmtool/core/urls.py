"""URLs as they may be shown and kept: without the credentials that they can carry."""

from __future__ import annotations

import re
from urllib.parse import unquote

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
# Parameters of signed URLs: of S3, Google, Azure (sig, se, sp, ...), CloudFront, Akamai, and what is a key, a
# token or a signature by its name.
_SECRET = re.compile(
    r"x-(amz|goog|oss|ms)-.*|.*(signature|token|secret|passw|credential|auth|apikey|api[_-]key|access).*|"
    r"sig|s[eprtv]|spr|sip|sdd|sk[tesv]|sk[ot]id|key|pwd|hmac|expires|policy|key-pair-id|hdn(ea|ts)",
    re.IGNORECASE,
)


def shown(url: str) -> str:
    """The URL without `user:password@` and without the parameters that sign it."""
    scheme, separator, rest = url.rpartition("://")
    if "://" in scheme:  # one URL within another
        outer = shown(scheme)
        if not outer.endswith(re.split("[?&/]", scheme)[-1]):  # within what is secret
            return outer
        scheme = outer
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    host, rest = rest[:end].rpartition("@")[2], rest[end:]
    path, mark, query = rest.partition("?")
    kept = [part for part in query.split("&") if not _SECRET.fullmatch(unquote(part.partition("=")[0]))]
    return scheme + separator + host + path + (mark if any(kept) else "") + "&".join(kept)


def without_secrets(text: str) -> str:
    """A text with every URL in it as `shown`."""
    return _URL.sub(lambda found: shown(found[0]), text) if "://" in text else text
