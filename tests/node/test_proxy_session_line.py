"""The line that the proxy logs for each session: what a client may write into it, and what it says of the session."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tests.node.proxy_backend import USER, MakeProxy, Proxy, branch_of, wait_until
from tests.node.proxy_talk import build_startup

from dbranch.proxy.refusals import MAX_FIELD_CHARACTERS
from dbranch.runtime.logs import LineFormatter


def session_lines(proxy: Proxy, caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """Return the fields of the first `count` lines, once there are so many."""

    def records() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "dbranch.session"]

    wait_until(lambda: len(records()) >= count)
    return [record.fields for record in records()]  # type: ignore[attr-defined]


def test_the_line_has_the_routes_generation_the_tls_version_and_the_application(
    make_proxy: MakeProxy, tls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(tls)
    with proxy.connect(sslmode="require", application_name="billing") as connection:
        assert branch_of(connection) == "main"
    session_lines(proxy, caplog, 1)
    proxy.apply(active="feature-x")
    with proxy.connect(sslmode="disable") as connection:
        assert branch_of(connection) == "feature-x"
    encrypted, plain = session_lines(proxy, caplog, 2)
    assert (encrypted["generation"], encrypted["branch"]) == (1, "main")
    assert (encrypted["tls"], encrypted["application_name"]) == ("TLSv1.3", "billing")
    assert (plain["generation"], plain["branch"], plain["tls"]) == (2, "feature-x", "")


def test_a_client_writes_neither_long_nor_unprintable_text_into_the_log(
    make_proxy: MakeProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy()
    name = "\x1b[2J\n\u202e" + "x" * 5000
    with proxy.raw() as sock:
        parameters = {"user": USER, "database": "postgres", "application_name": name}
        sock.sendall(build_startup(parameters))
        assert sock.recv(1) == b"R"
    fields = session_lines(proxy, caplog, 1)[0]
    assert fields["application_name"].startswith("\\x1b[2J\\n\\u202exxx")
    assert len(fields["application_name"]) < 2 * MAX_FIELD_CHARACTERS
    record = next(record for record in caplog.records if record.name == "dbranch.session")
    for as_json in (False, True):
        line = LineFormatter(as_json).format(record)
        assert line.isprintable() and len(line) < 1000
