"""Text out of a Secret."""

from __future__ import annotations

import pytest

from dbranch.api.errors import InvalidInput
from dbranch.api.secrets import secret_text, secret_texts

SECRET = {"metadata": {"name": "shop-owner"}, "data": {"password": "cMOkc3M=", "empty": ""}}


def test_a_secrets_values_are_decoded() -> None:
    assert secret_text(SECRET, "password") == "päss"
    assert secret_texts(SECRET) == {"password": "päss", "empty": ""}


def test_a_missing_secret_key_or_value_is_none() -> None:
    assert secret_text(None, "password") is None
    assert secret_text({"metadata": {"name": "bare"}}, "password") is None
    assert secret_text(SECRET, "username") is None
    assert secret_text(SECRET, "empty") is None


def test_a_value_that_is_no_text_is_named() -> None:
    binary = {"metadata": {"name": "shop-owner"}, "data": {"password": "/w=="}}
    with pytest.raises(InvalidInput, match='Secret "shop-owner": the value of key "password" is not UTF-8'):
        secret_text(binary, "password")
