"""The examples in each command's help, by what is typed. Lines of at most 78 characters; tests parse them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "": (
        "dbranch init shop                   # a project, with the branch main",
        "dbranch create feature-x --use      # a branch, and switch to it",
        "dbranch psql                        # on the active branch",
    ),
    "create": (
        "dbranch create feature-x --use      # from the active branch; switch to it",
        "dbranch create fixed --from-snapshot before-migration",
        "dbranch create pr-118 -s main --ttl 3d --if-exists replace   # in CI",
    ),
    "use": ("dbranch use feature-x", "dbranch use main --timeout 5m"),
    "list": ("dbranch list -o wide", "dbranch list --watch", "dbranch list --deleted"),
    "show": ("dbranch show", "dbranch show feature-x"),
    "tree": ("dbranch tree", "dbranch tree -o mermaid"),
    "logs": (
        "dbranch logs feature-x -f",
        "dbranch logs --since 10m --timestamps",
        "dbranch logs feature-x --previous   # of the container before its restart",
    ),
    "stop": ("dbranch stop feature-x", "dbranch stop --all --yes"),
    "resume": ("dbranch resume feature-x", "dbranch resume --all"),
    "restart": (
        "dbranch restart feature-x",
        "dbranch restart feature-x --reset-alter-system",
    ),
    "extend": ("dbranch extend feature-x 2d", "dbranch extend pr-118 12h"),
    "protect": (
        "dbranch protect feature-x           # until it is unprotected",
        "dbranch protect feature-x --for 7d",
    ),
    "unprotect": ("dbranch unprotect feature-x",),
    "reset": (
        "dbranch reset feature-x             # to its source's present data",
        'dbranch reset feature-x --to-time "2h ago"',
        "dbranch reset pr-118 --to-branch main --discard --yes  # in CI",
    ),
    "undo": ("dbranch undo feature-x",),
    "history": ("dbranch history feature-x", "dbranch history feature-x -o wide"),
    "wait": (
        "dbranch wait feature-x --timeout 5m",
        "dbranch wait feature-x --for deleted",
        "dbranch wait feature-x --for PostgresReady=False",
    ),
    "delete": (
        "dbranch delete feature-x            # 'undelete' brings it back for a day",
        "dbranch delete pr-118 pr-119 --yes --ignore-not-found --purge",
    ),
    "undelete-project": ("dbranch undelete-project shop",),
    "undelete": ("dbranch undelete feature-x           # those that can be: list --deleted",),
    "psql": (
        "dbranch psql feature-x",
        "dbranch psql -- -c 'select count(*) from item'",
        "dbranch psql feature-x --superuser",
    ),
    "url": (
        "dbranch url",
        "dbranch url feature-x --format jdbc",
        'eval "$(dbranch url --format env)"',
    ),
    "start": ("dbranch start", "dbranch start --port 6432 --branches"),
    "load": ("dbranch load shop.dump", "zcat shop.sql.gz | dbranch load - feature-x"),
    "dump": (
        "dbranch dump main shop.dump         # pg_dump's custom format",
        "dbranch dump main shop.sql.zst --schema-only",
        "dbranch dump main - | dbranch load - feature-x",
    ),
    "schedule": (
        "dbranch schedule main --snapshots '0 * * * *' --keep 24",
        "dbranch schedule feature-x --refresh '0 3 * * *' --time-zone Europe/Berlin",
        "dbranch schedule main               # show them, with the last and the next",
    ),
    "snapshot": (
        "dbranch snapshot create before-migration",
        "dbranch snapshot list",
    ),
    "snapshot create": (
        "dbranch snapshot create before-migration",
        "dbranch snapshot create nightly -b main --ttl 7d",
    ),
    "snapshot list": ("dbranch snapshot list", "dbranch snapshot list -o wide"),
    "snapshot show": ("dbranch snapshot show before-migration",),
    "snapshot delete": ("dbranch snapshot delete before-migration --yes",),
    "init": (
        "dbranch init shop",
        "dbranch init shop --size 60Gi --parameter shared_buffers=1GB",
        "dbranch init shop --image ghcr.io/me/postgres:17 --run-as-user 26",
    ),
    "status": ("dbranch status", "dbranch status -p shop -o wide"),
    "current": ("dbranch current", "dbranch current 2>/dev/null         # for a prompt"),
    "project": ("dbranch project list", "dbranch project set-default shop"),
    "project list": ("dbranch project list", "dbranch project list -n team-a -o name"),
    "project create": ("dbranch project create shop", "dbranch project create shop --size 60Gi"),
    "project show": ("dbranch project show -p shop",),
    "project current": ("dbranch project current",),
    "project set-default": ("dbranch project set-default shop",),
    "project delete": ("dbranch project delete shop", "dbranch project delete shop --yes --no-wait"),
    "doctor": ("dbranch doctor", "dbranch doctor -A -o json"),
    "report": ("dbranch report", "dbranch report -A --lines 5000 /tmp/dbranch.tar.gz"),
    "orphan": ("dbranch orphan list", "dbranch orphan delete 0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"),
    "orphan list": ("dbranch orphan list", "dbranch orphan list -o name"),
    "orphan delete": ("dbranch orphan delete 0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d",),
    "orphan allow": ("dbranch orphan allow 0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d team-b",),
    "completion": (
        'eval "$(dbranch completion bash)"   # zsh, too',
        "dbranch completion fish > ~/.config/fish/completions/dbranch.fish",
    ),
}
