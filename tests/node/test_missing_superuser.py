"""A Postgres without the role that initdb made is known as such, in whatever language it says so."""

from __future__ import annotations

import pytest
from tests.node.machine import Node, owner_session

from dbranch.agent.postgres.answer import Answer
from dbranch.agent.postgres.server import observe_server


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_missing_superuser_is_known_in_any_language(
    up: Node, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    # gettext takes this before lc_messages, unless that is C.
    monkeypatch.setenv("LANGUAGE", language)
    monkeypatch.delenv("LC_ALL", raising=False)
    endpoint = up.start_postgres(up.create_root())
    with owner_session(up.layout, endpoint) as superuser:
        superuser.execute("create role keeper superuser login")
        # By a session of another user: nobody renames himself.
        superuser.execute("set session authorization keeper")
        assert not observe_server(up.layout, endpoint).missing_superuser
        for change, undo in (
            ("alter role postgres nologin", "alter role postgres login"),
            ("alter role postgres rename to boss", "alter role boss rename to postgres"),
        ):
            superuser.execute(change)
            server = observe_server(up.layout, endpoint)
            assert server.missing_superuser and server.answer is Answer.REFUSES, server
            assert ("role" in server.error) == (language == "en") and "postgres" in server.error
            superuser.execute(undo)
        assert observe_server(up.layout, endpoint).version
