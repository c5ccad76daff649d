"""Text out of a Secret as the API server returns it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from dbranch.api.errors import InvalidInput


def secret_text(secret: Mapping[str, Any] | None, key: str) -> str | None:
    """Return the text under `key` of a Secret's data; None if the Secret, the key or its value is missing.

    Raises InvalidInput if the value is not UTF-8 text.

    >>> secret_text({"data": {"password": "cGVuY2ls"}}, "password")
    'pencil'
    """
    value = ((secret or {}).get("data") or {}).get(key)
    if not value:
        return None
    try:
        return base64.b64decode(value).decode()
    except ValueError as error:
        name = (secret or {}).get("metadata", {}).get("name", "")
        raise InvalidInput(
            f'Secret "{name}": the value of key "{key}" is not UTF-8 text; correct it'
        ) from error


def secret_texts(secret: Mapping[str, Any]) -> dict[str, str]:
    """Return a Secret's data as `{key: text}`. Raises InvalidInput if a value is not UTF-8 text."""
    return {key: secret_text(secret, key) or "" for key in secret.get("data") or {}}
