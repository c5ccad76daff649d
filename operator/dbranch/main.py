"""`dbranch-server controller|agent|proxy`: one image, three roles."""

from __future__ import annotations

import argparse
import importlib
import sys

_ROLES = {
    "controller": "binds projects to nodes, makes Services, Secrets and proxies, says what is true",
    "agent": "on each node: pools, snapshots, Postgres pods",
    "proxy": "forwards a project's port to its active branch",
}


def main(argv: list[str] | None = None) -> None:
    """Runs one role until it is told to end. Each role imports only what it needs."""
    parser = argparse.ArgumentParser(prog="dbranch-server", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")
    for role, does in _ROLES.items():
        roles.add_parser(role, help=does, description=does)
    role = parser.parse_args(argv).role
    importlib.import_module(f"dbranch.{role}.main").main()


if __name__ == "__main__":
    main(sys.argv[1:])
