"""The SCRAM verifier, held against the example of RFC 7677."""

from __future__ import annotations

import base64

import pytest

from dbranch.api.scram import is_verifier_of, saslprep, verifier_of

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")


def test_the_example_of_rfc_7677() -> None:
    """The server signature of the example follows from the ServerKey in the verifier."""
    import hashlib
    import hmac

    server_key = base64.b64decode(verifier_of("pencil", SALT).rpartition(":")[2])
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    signature = hmac.digest(server_key, message.encode(), hashlib.sha256)
    assert base64.b64encode(signature).decode() == "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("password", ["s3cret/with:odd@signs", "pässwörd", "日本語", " ", "a\u00adb"])
def test_a_verifier_is_of_its_own_password_only(password: str) -> None:
    verifier = verifier_of(password, b"x" * 16)
    assert is_verifier_of(verifier, password)
    assert is_verifier_of(verifier + "\n", password)
    assert not is_verifier_of(verifier, password + "x")
    assert not is_verifier_of("md5abc", password)


def test_saslprep_maps_as_rfc_4013_says() -> None:
    assert saslprep("I\u00adX") == "IX"
    assert saslprep("\u2168") == "IX"
    assert saslprep("a\u00a0b") == "a b"
    assert saslprep("\u0627\u0031") == "\u0627\u0031"
