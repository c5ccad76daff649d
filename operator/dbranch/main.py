"""`dbranch-server controller|agent|proxy`: one image, three roles."""

from __future__ import annotations

import argparse
import importlib
import sys

_ROLES = {
    "controller": "bind projects to nodes, create Services, Secrets and proxies, report conditions",
    "agent": "manage the pools, snapshots and Postgres pods of one node",
    "proxy": "forward the connections of one project to its active branch",
}


def main(argv: list[str] | None = None) -> None:
    """Run one role until the process is terminated. Only that role's modules are imported."""
    parser = argparse.ArgumentParser(prog="dbranch-server", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True, metavar="ROLE")
    for role, description in _ROLES.items():
        roles.add_parser(role, help=description, description=description)
    role = parser.parse_args(argv).role
    importlib.import_module(f"dbranch.{role}.main").main()


if __name__ == "__main__":
    main(sys.argv[1:])
