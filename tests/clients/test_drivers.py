"""Drivers of other languages through the proxy, without and with TLS; each program prints `ok` at its end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.node.proxy_backend import PASSWORD, USER, MakeProxy, wait_until

HERE = Path(__file__).parent


def command_of(driver: str, installed: Path) -> list[str]:
    """Return the command that runs the driver's test program."""
    jar = str(installed / "postgresql.jar")
    return {
        "jdbc": ["java", "-cp", jar, str(HERE / "Driver.java")],
        "node-postgres": ["node", str(HERE / "driver.js")],
        "pgx": [str(installed / "pgx")],
    }[driver]


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("driver", ["jdbc", "node-postgres", "pgx"])
def test_a_driver_through_the_proxy(
    make_proxy: MakeProxy, tls: Path, installed: Path, driver: str, encrypted: bool
) -> None:
    proxy = make_proxy(tls, tls_required=encrypted)
    certificate = str(tls / "tls.crt") if encrypted else ""
    done = subprocess.run(
        [*command_of(driver, installed), "127.0.0.1", str(proxy.port), USER, PASSWORD, certificate],
        env={**os.environ, "NODE_PATH": str(installed / "node_modules")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    wait_until(lambda: not proxy.switchboard.sessions)
