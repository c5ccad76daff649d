"""Remove what is secret from texts and objects that leave the cluster in a bug report. Pure.

By what stands around it: the names of keys and variables, the forms of URIs, SQL, tokens and keys. What is removed
leaves `<redacted>`. It removes rather too much: a name that stands behind `secret:` is gone, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names

REDACTED: Final = "<redacted>"

_SECRET_WORD: Final = (
    r"pass(?:word|wd|phrase|file)?|pwd|secret|token|credentials?|conninfo|auth"
    r"|(?:api|access|account|private)[_-]?key"
)
_SECRET_KEY: Final = re.compile(rf"(?i)(?:{_SECRET_WORD})")
# They name objects.
_NAMING_KEYS: Final = frozenset({"secretName", "passwordSecret", "imagePullSecrets"})
# With backslashes before quotes, as often as the text was quoted.
_VALUE: Final = r"""(?:"(?:\\+.|[^"\\])*"?|'(?:''|\\+.|[^'\\])*'?|[^\s,;&)}\]"']+)"""
# The lengths are bounded, so that a long line takes no time of its square.
_PATTERNS: Final = (
    # A PEM block, also one that is cut off.
    (re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL), REDACTED),
    (re.compile(r"(?m)^[A-Za-z0-9+/]{60,}={0,2}$"), REDACTED),
    # scheme://user:password@
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^\s'\"<>]{0,2048}@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)\b((?:encrypted\s+)?password\s+)(E?'(?:''|\\+.|[^'\\])*'?)"), rf"\1'{REDACTED}'"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    # key=value, key: value, "key": "value", \"key\": \"value\", --key value.
    (
        re.compile(rf"(?i)((?:{_SECRET_WORD})[\w.-]{{0,64}}\\*[\"']?[ \t]*[=:][ \t]*\\*){_VALUE}"),
        rf"\1{REDACTED}",
    ),
    (re.compile(rf"(?i)(--[\w-]{{0,64}}(?:{_SECRET_WORD})[\w-]{{0,64}}\s+){_VALUE}"), rf"\1{REDACTED}"),
    (re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]+){0,2}"), REDACTED),
    (re.compile(r"SCRAM-SHA-256\$[^\s'\"]+"), REDACTED),
    (re.compile(r"\bmd5[0-9a-f]{32}\b"), REDACTED),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsur]_\w{20,}|\bxox[a-z]-[\w-]{10,}"), REDACTED),
)
# The whole object once more, as JSON.
_COPIES: Final = ("kubectl.kubernetes.io/last-applied-configuration",)


def redact_text(text: str) -> str:
    r"""Return a text without passwords, tokens, keys and the users and passwords of URIs.

    >>> redact_text("postgresql://app:pw@shop:5432/db failed, password=x y")
    'postgresql://<redacted>@shop:5432/db failed, password=<redacted> y'
    >>> redact_text("alter role app password 'it''s'; Authorization: Bearer abcdefgh123")
    "alter role app password '<redacted>'; Authorization: <redacted> <redacted>"
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_object(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of the API server without secrets, managedFields and the annotations of other tools.

    Of parameters of extensions and applications, which have a "." in their names, only the names stay.
    """
    redacted: dict[str, Any] = redact_value(body)
    meta = redacted.get("metadata")
    if isinstance(meta, dict):
        meta.pop("managedFields", None)
        annotations = {
            key: value if _is_own(key) else REDACTED
            for key, value in (meta.get("annotations") or {}).items()
            if key not in _COPIES
        }
        if annotations:
            meta["annotations"] = annotations
        else:
            meta.pop("annotations", None)
    return redacted


def redact_value(value: Any, key: str = "", inside: str = "") -> Any:
    """Return a value of JSON with its texts redacted; `key` is its own name, `inside` that of what holds it."""
    if isinstance(value, Mapping):
        return {str(k): redact_value(v, str(k), key) for k, v in value.items()}
    if isinstance(value, list):
        return [redact_value(item, key, inside) for item in value]
    if not isinstance(value, str):
        return value
    is_custom_parameter = inside == "parameters" and "." in key
    if is_custom_parameter or (_SECRET_KEY.search(key) and key not in _NAMING_KEYS):
        return REDACTED
    return redact_text(value)


def _is_own(annotation: str) -> bool:
    group = annotation.partition("/")[0]
    return group == names.GROUP or group.endswith(f".{names.GROUP}")
